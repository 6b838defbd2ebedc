"""How far to trust a network's probabilities: a temperature and a threshold, from the validation images alone."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from cnn_lightning.checkpointing.files import write_file

RISK = 0.001  # share of wrong answers that is asked for, unless the user asks for another
TEMPERATURES = (0.1, 10.0)  # the range that is searched


@dataclass(frozen=True)
class Calibration:
    """What turns the logits of one checkpoint into probabilities, and when its answers are withheld.

    Args:
        temperature: Divides the logits before the softmax; above 1 where the network is overconfident.
        threshold: An answer is withheld if its calibrated probability is lower; 2 where all are.
        risk: Share of wrong answers among those given that was asked for, in [0, 1]; None where nothing was measured.
        images: Number of validation images.
        answered: Number of validation images whose answers are given.
        wrong: How many of these answers are wrong.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599; Geifman and El-Yaniv 2017,
        Selective Classification for Deep Neural Networks, arXiv 1705.08500.
    """

    temperature: float = 1.0
    threshold: float = 0.8
    risk: float | None = None
    images: int = 0
    answered: int = 0
    wrong: int = 0

    @property
    def threshold_text(self) -> str:
        """The threshold in percent, with as many digits as tell it from 100 %."""
        digits = max(2, math.ceil(-math.log10(1 - self.threshold)) - 1) if self.threshold < 1 else 0
        return f"{self.threshold:.{digits}%}"

    @property
    def is_reached(self) -> bool:
        """Whether the validation images are enough to show the risk that was asked for."""
        return self.risk is not None and _upper_risk(self.wrong, self.answered) <= self.risk

    def apply(self, probabilities: Tensor) -> Tensor:
        """Return the calibrated probabilities, float64, of (N, num_classes) probabilities of the network."""
        return (probabilities.double().log() / self.temperature).softmax(dim=1)


# Of a checkpoint that was not calibrated.
UNCALIBRATED = Calibration()


def calibrate(logits: Tensor, labels: Tensor, risk: float = RISK) -> Calibration:
    """Fit a temperature, then choose the threshold that gives as many answers as the risk allows.

    The share of wrong answers is counted as if one more image had been answered wrongly: without this, the threshold
    that fits the validation images best would be too low for others. If they are too few to show the risk, the
    threshold is above the calibrated probability of every wrong answer, and at least that of ``UNCALIBRATED``.

    Args:
        logits: (N, num_classes) float, of validation images.
        labels: (N,) int64: true classes.
        risk: Share of wrong answers among those given, in [0, 1].

    Returns:
        The calibration; ``UNCALIBRATED`` where there are no images, or logits that are not finite.
    """
    if not len(labels) or not logits.isfinite().all():
        return UNCALIBRATED
    logits = logits.double().cpu()
    labels = labels.cpu()
    temperature = fit_temperature(logits, labels)
    confidence, predicted = (logits / temperature).softmax(dim=1).max(dim=1)
    confidence, order = confidence.sort(descending=True)
    wrong = (predicted != labels)[order].cumsum(0).tolist()
    # An answer is given with all that are as probable, so only the last of equal ones can be the last one given.
    ends = [*((confidence[:-1] != confidence[1:]).nonzero()[:, 0] + 1).tolist(), len(labels)]
    allowed = [end for end in ends if _upper_risk(wrong[end - 1], end) <= risk]
    if allowed:
        answered = max(allowed)
        threshold = _threshold(confidence.tolist(), answered)
    else:
        without_errors = max((end for end in ends if not wrong[end - 1]), default=0)
        threshold = max(_threshold(confidence.tolist(), without_errors), UNCALIBRATED.threshold)
        answered = int((confidence >= threshold).sum())
    errors = wrong[answered - 1] if answered else 0
    return Calibration(temperature, threshold, risk, len(labels), answered, errors)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the lowest cross-entropy, from 0.1 to 10.

    It is 1 where no image is misclassified: the cross-entropy would fall with the temperature without end.

    Args:
        logits: (N, num_classes) float64.
        labels: (N,) int64.
    """
    if (logits.argmax(dim=1) == labels).all():
        return 1.0
    bounds = [math.log(temperature) for temperature in TEMPERATURES]
    loss = minimize_scalar(lambda log: cross_entropy(logits / math.exp(log), labels).item(), bounds=bounds)
    return math.exp(loss.x)


def calibration_file(checkpoint: Path) -> Path:
    """Return the path of the file next to a checkpoint: ``best.calibration.json`` for ``best.ckpt``."""
    return checkpoint.with_suffix(".calibration.json")


def sha256_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def save_calibration(calibration: Calibration, checkpoint: Path) -> None:
    """Write the file next to a checkpoint, with the SHA-256 of the checkpoint.

    Raises:
        OSError: It cannot be written.
    """
    content = {"checkpoint_sha256": sha256_of(checkpoint), **asdict(calibration)}
    write_file(calibration_file(checkpoint), f"{json.dumps(content, indent=1)}\n".encode())


def load_calibration(checkpoint: Path) -> Calibration:
    """Read the file next to a checkpoint.

    Returns:
        The calibration; ``UNCALIBRATED`` where there is no file, or one that belongs to another checkpoint.
    """
    try:
        content = json.loads(calibration_file(checkpoint).read_bytes())
        if content.pop("checkpoint_sha256") != sha256_of(checkpoint):
            return UNCALIBRATED
        calibration = Calibration(**content)
        numbers: list[Any] = [calibration.temperature, calibration.threshold, calibration.risk]
        is_valid = all(0 < number < math.inf for number in numbers)
        return calibration if is_valid else UNCALIBRATED
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return UNCALIBRATED


def _upper_risk(wrong: int, answered: int) -> float:
    return (wrong + 1) / (answered + 1)


def _threshold(confidence: Sequence[float], answered: int) -> float:
    """Return a threshold between the last answer that is given and the first one that is not."""
    if answered == len(confidence):
        return confidence[-1] * (1 - 1e-6)  # the same image must pass in other programs, which round differently
    if not answered:
        return 2.0  # not just above 1, which float32 would round to 1
    return (confidence[answered - 1] + confidence[answered]) / 2
