"""Metrics computed from predicted probabilities."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.calibration import UNCALIBRATED, Calibration

BINS = 15  # of confidence, as in Guo et al. 2017
ENSEMBLE = "ensemble"  # its name in a mapping of checkpoints to evaluations


@dataclass(eq=False)
class Evaluation:
    """Predicted probabilities and true classes of N images, with the metrics computed from them.

    Metrics are float64, which torchmetrics does not offer. Undefined precision, recall and F1 are 0.

    Args:
        labels: (N,) int64: true classes, on the CPU.
        probabilities: (N, C) float64 on the CPU; each row sums to 1, so the softmax must be float64 as well.
        class_names: C names.
        calibration: Of the network.

    Attributes:
        predicted: (N,) int64: the class with the highest probability, the first of them in a tie.
        confidence: (N,) float64: probability of the predicted class.
        is_correct: (N,) bool: whether the predicted class is the true one.
        losses: (N,) float64: cross-entropy in nats, at most 708 because probabilities are clamped to the least float64.
        total, correct: Number of images, and of correctly classified ones.
        accuracy, loss: Share of correctly classified images in [0, 1], and mean cross-entropy in nats.
        brier_score: In [0, 2]: mean squared distance of the probabilities from the one-hot true class.
        balanced_accuracy: Mean recall of the classes that have images, in [0, 1]; all classes count alike.
        macro_f1: Mean F1 of the classes that have images or are predicted, in [0, 1].
        confusion_matrix: (C, C) int64: number of images by true class (row) and predicted class (column).
        by_class: (C,) float64 ``precision``, ``recall`` and ``f1`` of each class, and (C,) int64 ``images``.
        bins: (15,) int64 ``images`` with a confidence in (k / 15, (k + 1) / 15] for k from 0 to 14, and (15,) float64
            ``confidence`` and ``accuracy``, their means or 0.
        calibration_error: In [0, 1]: mean of |accuracy − confidence| over the bins, weighted by their counts (ECE).

    Raises:
        UsageError: The probabilities are not finite.
        ValueError: The arguments do not fit together, or rows do not sum to 1.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599; Brier 1950, Verification of
        Forecasts Expressed in Terms of Probability; Geifman and El-Yaniv 2017, Selective Classification for Deep Neural
        Networks, arXiv 1705.08500.
    """

    labels: Tensor
    probabilities: Tensor
    class_names: Sequence[str]
    calibration: Calibration = UNCALIBRATED

    def __post_init__(self) -> None:
        self._check()
        self.confidence, self.predicted = self.probabilities.max(dim=1)
        self.is_correct = self.predicted == self.labels
        true = self.probabilities.gather(1, self.labels[:, None]).squeeze(1)
        self.losses = true.clamp(min=torch.finfo(torch.float64).tiny).log().abs()  # abs, because −ln 1 would be −0
        self.total, self.correct = len(self.labels), int(self.is_correct.sum())
        self.accuracy, self.loss = self.correct / self.total, self.losses.mean().item()

        # Σ (p − y)² = Σ p² − 2 p_true + 1, because y is 1 for the true class alone.
        self.brier_score = (self.probabilities.square().sum(dim=1) - 2 * true + 1).mean().item()

        self.confusion_matrix = multiclass_confusion_matrix(self.predicted, self.labels, len(self.class_names))
        correct, predicted, images = (self.confusion_matrix.diag(), *map(self.confusion_matrix.sum, (0, 1)))
        self.by_class = {
            "precision": _divide(correct, predicted),
            "recall": _divide(correct, images),
            "f1": _divide(2 * correct, predicted + images),
            "images": images,
        }
        # As scikit-learn computes both.
        self.balanced_accuracy = self.by_class["recall"][images > 0].mean().item()
        self.macro_f1 = self.by_class["f1"][images + predicted > 0].mean().item()
        # Custom because torchmetrics works in float32 and puts a confidence on an edge into the bin above.
        bin_of = torch.bucketize(self.confidence, torch.arange(1, BINS, dtype=torch.float64) / BINS)
        sums = (None, self.confidence, self.is_correct.double())
        count, confidence, right = (torch.bincount(bin_of, values, minlength=BINS) for values in sums)
        self.bins = {"images": count, "confidence": _divide(confidence, count), "accuracy": _divide(right, count)}
        distance = (self.bins["accuracy"] - self.bins["confidence"]).abs()
        self.calibration_error = (distance * count).sum().item() / self.total

    @cached_property
    def risk_coverage(self) -> Tensor:
        """(N,) float64: share of wrong answers among the k with the highest confidence, for k from 1 to N."""
        _, group = self.confidence.unique(return_inverse=True)
        # Answers with the same confidence share their errors, whatever their order.
        images = torch.bincount(group)
        wrong = (torch.bincount(group, ~self.is_correct) / images).repeat_interleave(images).flip(0)
        return wrong.cumsum(0) / torch.arange(1, self.total + 1)

    @property
    def area_under_risk_coverage(self) -> float:
        """Mean of ``risk_coverage`` (AURC), in [0, 1]; low where wrong answers have a low confidence."""
        return self.risk_coverage.mean().item()

    @cached_property
    def calibrated(self) -> "Evaluation":
        """The same images with calibrated probabilities."""
        return Evaluation(self.labels, self.calibration.apply(self.probabilities), self.class_names)

    @cached_property
    def is_answered(self) -> Tensor:
        """(N,) bool: whether the calibrated probability of the answer reaches the threshold."""
        return self.calibrated.confidence >= self.calibration.threshold

    @property
    def answered(self) -> int:
        """Number of images whose answer is given."""
        return int(self.is_answered.sum())

    @property
    def wrong_answers(self) -> int:
        """How many of the answers given are wrong."""
        return int((self.is_answered & ~self.is_correct).sum())

    def risk_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the share of wrong answers among those given (Clopper and Pearson 1934)."""
        if not self.answered:
            return 0.0, 1.0
        interval = binomtest(self.wrong_answers, self.answered).proportion_ci(method="exact")
        return interval.low, interval.high

    def _check(self) -> None:
        shape, expected = tuple(self.probabilities.shape), (len(self.labels), len(self.class_names))
        if shape != expected or 0 in shape:
            raise ValueError(f"probabilities have shape {shape}, expected {expected} and at least one image")
        if self.probabilities.dtype != torch.float64 or self.labels.dtype != torch.int64:
            raise ValueError(f"{self.probabilities.dtype} and {self.labels.dtype}, expected float64 and int64")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} of {len(self.class_names)} classes")
        if not self.probabilities.isfinite().all():
            raise UsageError(
                "the network gives NaN, expected probabilities: its training has diverged, choose another checkpoint"
            )
        if (self.probabilities.sum(dim=1) - 1).abs().max() > 1e-8:
            raise ValueError("the probabilities of an image do not sum to 1, expected a float64 softmax")

    @classmethod
    def ensemble(cls, evaluations: Sequence["Evaluation"]) -> "Evaluation":
        """Average the probabilities that several networks predict for the same images.

        Raises:
            ValueError: The images or classes differ.
        """
        first = evaluations[0]
        for other in evaluations[1:]:
            if not torch.equal(other.labels, first.labels) or tuple(other.class_names) != tuple(first.class_names):
                raise ValueError("an ensemble needs the same images and classes for all its networks")
        mean = torch.stack([one.probabilities for one in evaluations]).mean(dim=0)
        return cls(first.labels, mean, first.class_names)

    def figures(self) -> dict[str, Any]:
        """All metrics as plain numbers, for JSON."""
        names = ["accuracy", "correct", "total", "balanced_accuracy", "macro_f1", "loss", "brier_score"]
        names += ["calibration_error", "area_under_risk_coverage"]
        edges = {"above": torch.arange(BINS).double() / BINS, "up_to": torch.arange(1, BINS + 1).double() / BINS}
        return {name: getattr(self, name) for name in names} | {
            "classes": _rows({"class": self.class_names} | self.by_class),
            "confusion_matrix": self.confusion_matrix.tolist(),
            "calibration": _rows(edges | self.bins),
            "calibrated": None if self.calibration.risk is None else self._calibrated_figures(),
        }

    def _calibrated_figures(self) -> dict[str, Any]:
        names = ("loss", "brier_score", "calibration_error", "area_under_risk_coverage")
        counts = {"answered": self.answered, "wrong": self.wrong_answers, "wrong_interval": [*self.risk_interval()]}
        return {"from": asdict(self.calibration), **counts} | {name: getattr(self.calibrated, name) for name in names}

    def write_csv(self, path: Path) -> None:
        """Write one row per image, with every probability to the last digit.

        The columns are ``index`` (from 0), ``true``, ``predicted``, ``correct`` (1 or 0), ``confidence``, ``loss``,
        the names of the classes; and of a calibrated network ``calibrated_confidence`` and ``answered`` (1, or 0 where
        the answer is withheld).
        """
        names = ["index", "true", "predicted", "correct", "confidence", "loss", *self.class_names]
        before = (self.labels, self.predicted, self.is_correct.int(), self.confidence, self.losses, self.probabilities)
        more = {"calibrated_confidence": self.calibrated.confidence, "answered": self.is_answered.int()}
        more = {} if self.calibration.risk is None else more
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*names, *more])
            rows = zip(*(column.tolist() for column in (*before, *more.values())), strict=True)
            for index, (true, predicted, correct, confidence, loss, probabilities, *rest) in enumerate(rows):
                names = [self.class_names[true], self.class_names[predicted]]
                table.writerow([index, *names, correct, confidence, loss, *probabilities, *rest])


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = (column.tolist() if isinstance(column, Tensor) else column for column in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _divide(part: Tensor, whole: Tensor) -> Tensor:
    """Divide in float64, with 0 / 0 = 0."""
    return part.double() / whole.clamp(min=1)
