"""The ONNX file of a network with 8-bit weights and activations."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cnn_lightning.export.onnx_model import INPUT, quiet

if TYPE_CHECKING:
    from onnx import ModelProto

# Operators that compute with quantised numbers, and those between them that keep the scale of their input.
OPERATORS = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Flatten"]
BATCH = 100


def quantized(path: Path, images: Tensor) -> "ModelProto":
    """Quantise a model: 8-bit weights with a scale for each output channel, activations with one for each tensor.

    Both are stored as uint8. Biases are stored as float16, and the scores are not quantised.

    Args:
        path: What ``to_onnx`` returned, as a file; the quantised model is written next to it for a moment.
        images: (N, C, H, W) uint8: training images; the least and the greatest activation of each tensor are measured
            on them.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, arXiv 1712.05877.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    result = path.with_suffix(".int8.part")
    with quiet():
        quantization.quantize_static(
            path,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    model = onnx.load(result)
    result.unlink()
    _make_weights_unsigned(model)
    _compact(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def constant_bytes(model: "ModelProto") -> int:
    """Count the bytes of all weights, biases, scales and zero points of a model; not those of shapes, int64."""
    from onnx import TensorProto, numpy_helper

    tensors = (tensor for tensor in model.graph.initializer if tensor.data_type != TensorProto.INT64)
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)


def _make_weights_unsigned(model: "ModelProto") -> None:
    """Store int8 weights q as uint8 q + 128 with zero point 128, the same numbers.

    ONNX Runtime multiplies uint8 activations by int8 weights with VPMADDUBSW on processors with AVX2 or AVX-512 but
    without VNNI, and sums of two products saturate at 16 bits. Products of uint8 by uint8 do not saturate.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-and-why-do-i-need-to-try-u8u8
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = (node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors)
    for name in {name for node in nodes for name in (node.input[0], node.input[2])}:
        values = numpy_helper.to_array(tensors[name]).astype(np.int16) + 128
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.uint8), name))


def _compact(model: "ModelProto") -> None:
    """Store biases as float16, and equal zero points once."""
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zero_points: dict[tuple[Any, ...], str] = {}
    for node in list(graph.node):
        name = node.input[2] if len(node.input) > 2 else ""
        if name not in tensors:
            continue
        values = numpy_helper.to_array(tensors[name])
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.input[2] = zero_points.setdefault((values.dtype, values.shape, values.tobytes()), name)
        elif node.op_type in ("Conv", "Gemm") and np.abs(values).max() < np.finfo(np.float16).max:
            tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
            node.input[2] = f"{name}_float"
            graph.node.insert(0, helper.make_node("Cast", [name], [node.input[2]], to=1))
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    del graph.value_info[:]  # of each tensor between two operators, its shape, which follows from the operators
