"""Whether an exported file computes what PyTorch computes, and how fast both are."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnn_lightning.errors import UsageError
from cnn_lightning.export.deployed import Deployed
from cnn_lightning.export.onnx_model import INPUT, OUTPUTS

SCORE_LIMIT = 1e-4  # of a difference between scores, times the greatest score
PROBABILITY_LIMIT = 1e-5
INT8_LOSS = 0.01  # share of the images; int8 networks usually lose a tenth of that
BATCH = 256  # of the verification and of the time of a batch
SECONDS = 1.0  # of measuring each time


@dataclass(frozen=True)
class Outputs:
    """What a network computes for N images.

    Args:
        scores: (N, num_classes) float.
        probabilities: (N, num_classes) float, calibrated.
    """

    scores: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Comparison:
    """How the outputs of a file differ from those of PyTorch.

    Args:
        images: Number of images.
        equal: For how many of them the class is the same.
        score_difference: Greatest difference of a score.
        probability_difference: Greatest difference of a probability.
    """

    images: int
    equal: int
    score_difference: float
    probability_difference: float


def run_torch(deployed: Deployed, images: Tensor) -> Outputs:
    """Compute the outputs of (N, C, H, W) uint8 images with PyTorch."""
    with torch.inference_mode():
        return _joined([deployed(batch) for batch in images.split(BATCH)])


def run_onnx(path: Path, images: Tensor) -> Outputs:
    """Compute the outputs of (N, C, H, W) uint8 images with ONNX Runtime on the CPU.

    Raises:
        UsageError: ONNX Runtime cannot read or run the file.
    """
    try:
        run = session(path)
        return _joined([run(batch.numpy()) for batch in images.split(BATCH)])
    except Exception as error:  # those of ONNX Runtime have no other base
        raise UsageError(f"ONNX Runtime cannot run {path.name}: {str(error).splitlines()[0]}") from error


def session(path: Path) -> Callable[[np.ndarray], Any]:
    """Load a file into ONNX Runtime, with as many threads as PyTorch uses; returns what runs a batch of images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3  # errors only
    loaded = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: loaded.run(OUTPUTS, {INPUT: images})


def compare(found: Outputs, expected: Outputs) -> Comparison:
    """Compare the outputs of a file with those of PyTorch.

    Raises:
        UsageError: They have another shape, for example because the batch size is fixed in the file.
    """
    shapes = [tuple(outputs.scores.shape) for outputs in (found, expected)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the file gives scores of shape {shapes[0]}, PyTorch {shapes[1]}: forward must not fix the batch size"
        )
    equal = found.scores.argmax(dim=1) == expected.scores.argmax(dim=1)
    differences = [
        (getattr(found, name).double() - getattr(expected, name).double()).abs().max().item() for name in OUTPUTS
    ]
    return Comparison(len(equal), int(equal.sum()), *differences)


def check_same(name: str, found: Outputs, expected: Outputs) -> Comparison:
    """Compare the outputs of a file that must be those of PyTorch except for rounding.

    Where PyTorch's two highest scores are closer than the rounding, the class may be the other one.

    Args:
        name: Of the file, for messages.
        found: Outputs of the file.
        expected: Outputs of PyTorch.

    Raises:
        UsageError: A class, a score or a probability differs.
    """
    result = compare(found, expected)
    limit = SCORE_LIMIT * max(1.0, expected.scores.abs().max().item())
    best, second = expected.scores.double().topk(2, dim=1).values.unbind(dim=1)
    others = found.scores.argmax(dim=1) != expected.scores.argmax(dim=1)
    wrong = int((others & (best - second > limit)).sum())
    # Written so that NaN, which is not below any limit, is an error.
    is_same = result.score_difference <= limit and result.probability_difference <= PROBABILITY_LIMIT
    if wrong or not is_same:
        raise UsageError(
            f"{name} is not what PyTorch computes: of {result.images:,} images {wrong:,} have another class, scores "
            f"differ by up to {result.score_difference:.2g} (limit {limit:.2g}), probabilities by up to "
            f"{result.probability_difference:.2g} (limit {PROBABILITY_LIMIT:g})"
        )
    return result


def check_int8(found: Outputs, expected: Outputs, labels: Tensor | None) -> Comparison:
    """Compare the outputs of the int8 file, which differ, with those of PyTorch.

    Args:
        found: Outputs of the file.
        expected: Outputs of PyTorch.
        labels: (N,) int64: true classes; None where they are not known.

    Raises:
        UsageError: More than 1 % of the images lose their right class, on balance; without labels, their class.
    """
    result = compare(found, expected)
    if labels is None:
        loss, what = 1 - result.equal / result.images, "changes the class of"
    else:
        right = [(outputs.scores.argmax(dim=1) == labels).double().mean().item() for outputs in (expected, found)]
        loss, what = right[0] - right[1], "loses the right class of"
    if loss > INT8_LOSS or not found.scores.isfinite().all():
        raise UsageError(f"int8.onnx {what} {loss:.2%} of the images, expected at most {INT8_LOSS:.0%}", "int8")
    return result


def check_weights(path: Path, net: nn.Module) -> None:
    """Load a safetensors file into a network of the same structure and compare all tensors.

    Raises:
        UsageError: A tensor differs in a bit.
    """
    from safetensors.torch import load_file

    fresh = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    fresh.load_state_dict(load_file(path))
    # As bytes, so that NaN equals NaN.
    saved = {name: tensor.contiguous().numpy().tobytes() for name, tensor in fresh.state_dict().items()}
    wrong = [name for name, tensor in net.state_dict().items() if tensor.contiguous().numpy().tobytes() != saved[name]]
    if wrong:
        raise UsageError(f"{path.name} holds other weights than the network: {', '.join(wrong)}")


def milliseconds(run: Callable[[], object]) -> float:
    """Measure a call: the median of its repetitions in a second, at least three, after a few to warm up."""
    times: list[float] = []
    for _ in range(3):
        run()
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return 1000 * median(times)


def _joined(batches: Sequence[Sequence[Any]]) -> Outputs:
    return Outputs(*(torch.cat([torch.as_tensor(part) for part in parts]) for parts in zip(*batches, strict=True)))
