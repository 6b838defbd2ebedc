"""The ONNX file of a network."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import torch
from torch import nn

from cnn_lightning.errors import UsageError
from cnn_lightning.export.deployed import Deployed, pool_last

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # PyTorch's exporter writes this one itself; for others it converts the finished file
IR_VERSION = 8  # of the first release with this opset: ONNX 1.13, ONNX Runtime 1.14
INPUT, OUTPUTS = "images", ["scores", "probabilities"]


def to_onnx(deployed: Deployed, shape: Sequence[int]) -> "ModelProto":
    """Translate a network to ONNX.

    Args:
        deployed: The network, with what is before and after it.
        shape: (C, H, W) of an image, without padding.

    Returns:
        A model with the input "images", (batch, C, H, W) uint8, and the outputs "scores" and "probabilities",
        (batch, num_classes) float32. It has no path or source line of this machine.

    Raises:
        UsageError: PyTorch's exporter cannot translate the network.
    """
    import onnx  # here, because it is slow and of an extra, as everywhere in this folder

    copied = Deployed(_pool_last_if_same(deployed, shape), [0.0], [0.0], deployed.pad, deployed.temperature)
    copied.scale, copied.shift = deployed.scale, deployed.shift
    # channels_last would be written as transposed weights.
    copied = copied.to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, *shape, dtype=torch.uint8)  # PyTorch would take a batch of 1 for a fixed size
    try:
        with quiet():
            program = torch.onnx.export(
                copied,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=OUTPUTS,
                opset_version=OPSET,
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # also those of the network's own code, which the exporter runs
        raise UsageError(f"PyTorch cannot export {type(deployed.net).__name__}: {_reason(error)}") from error
    if program is None:
        raise UsageError(f"PyTorch cannot export {type(deployed.net).__name__}")
    model = program.model_proto
    model.ir_version = IR_VERSION
    _remove_notes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporter and quantiser print, warn and log: users can act on none of it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _pool_last_if_same(deployed: Deployed, shape: Sequence[int]) -> nn.Module:
    """Move max-pooling, unless a network calls its layers in another way than one after the other."""
    images = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs, moved = deployed.prepare(images), pool_last(deployed.net)
    with torch.inference_mode():
        expected = deployed.net(inputs)
        try:
            is_same = torch.allclose(moved(inputs), expected, rtol=1e-4, atol=1e-4)
        except (RuntimeError, ValueError, TypeError):  # its shapes do not fit any more
            is_same = False
    return moved if is_same else copy.deepcopy(deployed.net)


def _reason(error: BaseException) -> str:
    """First line of the error that caused all others."""
    while error.__cause__:
        error = error.__cause__
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _remove_notes(model: "ModelProto") -> None:
    """Remove the exporter's notes: half of a small file, with the paths of the user's code."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
