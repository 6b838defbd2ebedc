"""A network as a list of operators and tensors that the JavaScript of the page can run.

``torch.export`` gives the graph. This is our own translation, because ONNX Runtime Web, which would run an exported
file, weighs 13 MB and cannot be loaded from a file:// address.
"""

import math
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from cnn_lightning.draw.folding import folded
from cnn_lightning.draw.nodes import module_of, operator_of, pair_of, result_of
from cnn_lightning.errors import UsageError

Arguments = dict[str, Any]

# Operators that map each value on its own -> the argument that changes their result, and its name in a layer.
ELEMENTWISE: dict[str, Arguments] = {
    **{name: {} for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid")},
    "leaky_relu": {"negative_slope": "slope"},
    "clamp": {"min": "low", "max": "high"},
    "hardtanh": {"min_val": "low", "max_val": "high"},
    "gelu": {"approximate": "approximate"},
}
RESHAPING = ("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze")
SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy")  # they return their input
# Operator of ATen -> the method that reads its arguments.
TRANSLATED = {
    "_native_batch_norm_legit_no_training": "batch_norm",  # in evaluation mode
    "conv2d": "conv2d",
    "linear": "linear",
    "max_pool2d": "pool",
    "avg_pool2d": "pool",
    "adaptive_max_pool2d": "append",
    "adaptive_avg_pool2d": "append",
    "mean": "mean",
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "neg"), "combine"),
    "cat": "cat",
    "pad": "pad",
    "pixel_unshuffle": "pixel_unshuffle",
    "softmax": "softmax",
    "log_softmax": "softmax",
}


@dataclass
class Program:
    """What a network computes for one image.

    Attributes:
        input: (C, H, W) of the image.
        layers: The operators in order. Each has "name" (of its module in the network), "kind", "inputs" (0 is the
            image, n the output of the n-th layer), "shape" (of its output, without the batch) and its arguments, where
            "weight" and "bias" are indices of ``tensors``.
        tensors: Parameters, float32; batch normalisation is folded into the layer that it follows, see folding.py.
    """

    input: list[int]
    layers: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


def program_of(net: nn.Module, example: Tensor) -> Program:
    """Translate a network into a program.

    Args:
        net: Maps (1, C, H, W) float32 images to (1, num_classes) logits; on the CPU, in evaluation mode.
        example: (1, C, H, W) float32.

    Raises:
        UsageError: ``torch.export`` cannot trace the network, or it uses an operator that the page does not know.
    """
    name = type(net).__name__
    try:
        with torch.no_grad(), redirect_stderr(StringIO()):  # where tracing fails, torch prints the whole graph
            # An empty table keeps the operators as they are written, but makes those in place functional.
            exported = torch.export.export(net, (example,)).run_decompositions({})
    except RuntimeError as error:
        raise UsageError(f"torch.export cannot trace {name}: {str(error).strip().splitlines()[0]}") from error
    translation = _Translation(name, exported, example)
    layers = translation.program.layers[: translation.output]
    if not layers or len(layers[-1]["shape"]) != 1:
        raise UsageError(f"{name} does not return scores of shape (1, num_classes), which the page needs")
    layers, tensors = folded(layers, translation.program.tensors)
    return Program(translation.program.input, layers, [tensor.float() for tensor in tensors])


class _Translation:
    """Walks through the nodes of an exported graph; each method of ``TRANSLATED`` reads the arguments of an operator.

    Args:
        name: Name of the network, for messages.
        exported: Its graph.
        example: The input that it was exported with.

    Attributes:
        output: Number of the value that the network returns.
    """

    def __init__(self, name: str, exported: ExportedProgram, example: Tensor) -> None:
        self.name, self.module = name, exported.graph_module
        self.program = Program(list(example.shape[1:]))
        self.values: dict[fx.Node, int] = {}  # node -> 0 for the image, n for the output of the n-th layer
        signature = exported.graph_signature
        places = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        state = {**exported.state_dict, **exported.constants}
        self.parameters = {place: state[key].detach().double() for place, key in places.items()}
        if len(signature.user_outputs) != 1:
            raise UsageError(f"{name} returns several tensors, expected scores of shape (1, num_classes) alone")
        (output,) = (node for node in exported.graph.nodes if node.name == signature.user_outputs[0])
        needed = {output}  # not what checks its input or updates buffers
        for node in reversed(exported.graph.nodes):
            needed.update(node.all_input_nodes if node in needed else ())
        for node in exported.graph.nodes:
            if node.op == "placeholder" and node.name in signature.user_inputs:
                self.values[node] = 0
            elif node.op == "call_function" and node in needed:
                self._translate(node)
        self.output = self.values.get(output, 0)

    def _translate(self, node: fx.Node) -> None:
        """Append the layer of a node, or note whose value it repeats."""
        if node.target is getitem:  # the first of several results; the others are indices and statistics
            self.values[node] = self._value(node, node.args[0])
            return
        operator = operator_of(node)
        normalized = node.normalized_arguments(self.module, normalize_to_only_use_kwargs=True)
        arguments = dict(normalized.kwargs) if normalized else {}
        result = result_of(node)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            raise self._unknown(node, "whose result is no tensor of floats")
        if operator in SAME or (operator in RESHAPING and result.ndim not in (2, 4)):
            self.values[node] = self._value(node, arguments["input"])
        elif result.shape[:1] != (1,) or result.ndim not in (2, 4):
            raise self._unknown(node, f"with a result of shape {tuple(result.shape)}")
        elif operator in RESHAPING:
            number = self._value(node, arguments["input"])
            before = self.program.layers[number - 1]["shape"] if number else self.program.input
            same = before == list(result.shape[1:])
            self.values[node] = number if same else self._append(node, arguments, kind="flatten")
        elif operator in ELEMENTWISE:
            settings = {ours: arguments[theirs] for theirs, ours in ELEMENTWISE[operator].items()}
            self.values[node] = self._append(node, arguments, **settings)
        elif operator in TRANSLATED:
            self.values[node] = getattr(self, f"_{TRANSLATED[operator]}")(node, arguments)
        else:
            raise self._unknown(node)

    def _append(self, node: fx.Node, arguments: Arguments, **settings: Any) -> int:
        """Append a layer; return the number of its output."""
        operands = arguments.get("tensors", [arguments.get("input"), arguments.get("other")])
        inputs = [self._value(node, operand) for operand in operands if isinstance(operand, fx.Node)]
        shape = list(result_of(node).shape[1:])
        layer = {"name": module_of(node), "kind": operator_of(node), "inputs": inputs, "shape": shape, **settings}
        self.program.layers.append(layer)
        return len(self.program.layers)

    def _batch_norm(self, node: fx.Node, arguments: Arguments) -> int:
        """A scale and a shift of each channel, from the statistics of training."""
        mean, variance = (self._parameter(node, arguments[name]) for name in ("running_mean", "running_var"))
        weight, bias = (arguments[name] for name in ("weight", "bias"))
        scale = (variance + arguments["eps"]).rsqrt() * (1 if weight is None else self._parameter(node, weight))
        shift = (0 if bias is None else self._parameter(node, bias)) - mean * scale
        return self._append(node, arguments, kind="batch_norm", weight=self._store(scale), bias=self._store(shift))

    def _conv2d(self, node: fx.Node, arguments: Arguments) -> int:
        weights, dilation, padding = self._weights(node, arguments), list(arguments["dilation"]), arguments["padding"]
        if isinstance(padding, str):
            sides = self.program.tensors[weights["weight"]].shape[2:]
            both = [0, 0] if padding == "valid" else [d * (k - 1) for d, k in zip(dilation, sides, strict=True)]
            if any(side % 2 for side in both):
                raise self._unknown(node, "with padding 'same' and an even kernel")
            padding = [side // 2 for side in both]
        place = {"stride": list(arguments["stride"]), "padding": list(padding), "dilation": dilation}
        return self._append(node, arguments, **weights, **place, groups=arguments["groups"])

    def _linear(self, node: fx.Node, arguments: Arguments) -> int:
        if result_of(node).ndim != 2:
            raise self._unknown(node, "on feature maps that are not flat")
        return self._append(node, arguments, **self._weights(node, arguments))

    def _weights(self, node: fx.Node, arguments: Arguments) -> dict[str, Any]:
        places = {name: arguments[name] for name in ("weight", "bias")}
        return {name: place and self._store(self._parameter(node, place)) for name, place in places.items()}

    def _pool(self, node: fx.Node, arguments: Arguments) -> int:
        if arguments["ceil_mode"] or arguments.get("divisor_override") or {*arguments.get("dilation", [1])} != {1}:
            raise self._unknown(node, "with ceil_mode, divisor_override or dilation")
        kernel, stride, padding = (pair_of(arguments[name]) for name in ("kernel_size", "stride", "padding"))
        counted = {"count_include_pad": arguments["count_include_pad"]} if "count_include_pad" in arguments else {}
        return self._append(node, arguments, kernel=kernel, stride=stride or kernel, padding=padding, **counted)

    def _mean(self, node: fx.Node, arguments: Arguments) -> int:
        if {dim % 4 for dim in arguments.get("dim") or []} != {2, 3}:
            raise self._unknown(node, "over other dimensions than height and width")
        return self._append(node, arguments, kind="adaptive_avg_pool2d")

    def _combine(self, node: fx.Node, arguments: Arguments) -> int:
        """Sum, difference, product or quotient of two feature maps of one shape, or of one and a number."""
        operator, other, alpha = operator_of(node), arguments.get("other", 0), arguments.get("alpha", 1)
        if not isinstance(other, fx.Node) and alpha == 1 and math.isfinite(other):
            factors = {"mul": other, "div": other and 1 / other, "rsub": -1, "neg": -1}
            offsets = {"add": other, "sub": -other, "rsub": other}
            numbers = {"factor": factors.get(operator, 1), "offset": offsets.get(operator, 0)}
            return self._append(node, arguments, kind="affine", **numbers)
        same = isinstance(other, fx.Node) and result_of(other).shape == result_of(arguments["input"]).shape
        if operator not in ("add", "sub", "mul", "div") or alpha != 1 or not same:
            raise self._unknown(node, "of different shapes, or with a number that is not usual")
        return self._append(node, arguments)

    def _cat(self, node: fx.Node, arguments: Arguments) -> int:
        if arguments["dim"] % result_of(node).ndim != 1:
            raise self._unknown(node, "along another dimension than the channels")
        return self._append(node, arguments)

    def _pad(self, node: fx.Node, arguments: Arguments) -> int:
        if arguments["mode"] != "constant" or arguments["value"] or len(arguments["pad"]) != 4:
            raise self._unknown(node, "other than with zeros on the four sides")
        return self._append(node, arguments, sides=list(arguments["pad"]))

    def _pixel_unshuffle(self, node: fx.Node, arguments: Arguments) -> int:
        return self._append(node, arguments, factor=arguments["downscale_factor"])

    def _softmax(self, node: fx.Node, arguments: Arguments) -> int:
        if result_of(node).ndim != 2 or arguments["dim"] not in (1, -1):
            raise self._unknown(node, "over another dimension than the classes")
        return self._append(node, arguments)

    def _value(self, node: fx.Node, operand: Any) -> int:
        if operand not in self.values:
            raise self._unknown(node, "of a tensor that is no feature map")
        return self.values[operand]

    def _parameter(self, node: fx.Node, operand: fx.Node) -> Tensor:
        if operand.name not in self.parameters:
            raise self._unknown(node, "with a weight that is computed")
        return self.parameters[operand.name]

    def _store(self, tensor: Tensor) -> int:
        self.program.tensors.append(tensor)
        return len(self.program.tensors) - 1

    def _unknown(self, node: fx.Node, why: str = "") -> UsageError:
        place = f" in {module_of(node)}" if module_of(node) else ""
        return UsageError(f"{self.name} uses {operator_of(node)}{place}{why and f' {why}'}, which the page cannot run")
