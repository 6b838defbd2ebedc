"""What a network's probabilities for the test images are worth, in figures."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnn_lightning.errors import UsageError

BINS = 15  # of confidence, as in Guo et al. 2017
ENSEMBLE = "ensemble"  # its name among those of the checkpoints


class Bins(NamedTuple):
    """Images by confidence: bin k holds those with a confidence in (k / 15, (k + 1) / 15].

    Attributes:
        count: (15,) int64: number of images.
        confidence: (15,) float64: their mean confidence, 0 without images.
        accuracy: (15,) float64: the share of them that is classified correctly, 0 without images.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Probabilities and true classes of N images, and every figure that follows from them.

    All figures are computed in float64, in which torchmetrics gives none but counts. A class that is absent or never
    predicted has precision, recall and F1 of 0.

    Args:
        labels: (N,) int64: true classes, on the CPU.
        probabilities: (N, C) float64: of every class, on the CPU; rows sum to 1, as a softmax in float64 gives them.
        class_names: C names.

    Raises:
        UsageError: The network gives no numbers.
        ValueError: The arguments do not fit together, or rows do not sum to 1.
    """

    labels: Tensor
    probabilities: Tensor
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        shape, expected = tuple(self.probabilities.shape), (len(self.labels), len(self.class_names))
        if shape != expected or 0 in shape:
            raise ValueError(f"probabilities of shape {shape}, expected {expected} and at least one image")
        if self.probabilities.dtype != torch.float64 or self.labels.dtype != torch.int64:
            raise ValueError(f"{self.probabilities.dtype} and {self.labels.dtype}, expected float64 and int64")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} of {len(self.class_names)} classes")
        if not self.probabilities.isfinite().all():
            raise UsageError(
                "the network gives NaN, expected probabilities: its training has diverged, name another checkpoint"
            )
        if (self.probabilities.sum(dim=1) - 1).abs().max() > 1e-8:
            raise ValueError("the probabilities of an image do not sum to 1: take the softmax in float64")

    @classmethod
    def ensemble(cls, evaluations: Sequence["Evaluation"]) -> "Evaluation":
        """Average the probabilities that several networks give the same images.

        Raises:
            ValueError: The images or classes are not the same.
        """
        first = evaluations[0]
        for other in evaluations[1:]:
            if not torch.equal(other.labels, first.labels) or tuple(other.class_names) != tuple(first.class_names):
                raise ValueError("an ensemble needs the same images and classes for all its networks")
        mean = torch.stack([one.probabilities for one in evaluations]).mean(dim=0)
        return cls(first.labels, mean, first.class_names)

    @cached_property
    def predicted(self) -> Tensor:
        """(N,) int64: the class with the highest probability, the first of them if several have it."""
        return self.probabilities.argmax(dim=1)

    @cached_property
    def confidence(self) -> Tensor:
        """(N,) float64: the probability of the predicted class."""
        return self.probabilities.amax(dim=1)

    @cached_property
    def is_correct(self) -> Tensor:
        """(N,) bool: whether the predicted class is the true one."""
        return self.predicted == self.labels

    @cached_property
    def losses(self) -> Tensor:
        """(N,) float64: −ln of the true class's probability; at most 708, of which the probability is the least."""
        true = self.probabilities.gather(1, self.labels[:, None]).squeeze(1)
        return true.clamp(min=torch.finfo(torch.float64).tiny).log().abs()  # abs, because −ln 1 would be −0

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """Number of correctly classified images."""
        return int(self.is_correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of correctly classified images, in [0, 1]."""
        return self.correct / self.total

    @property
    def loss(self) -> float:
        """Mean cross-entropy, with the natural logarithm."""
        return self.losses.mean().item()

    @cached_property
    def confusion_matrix(self) -> Tensor:
        """(C, C) int64: how many images of the class of the row were taken for the class of the column."""
        return multiclass_confusion_matrix(self.predicted, self.labels, num_classes=len(self.class_names))

    @property
    def support(self) -> Tensor:
        """(C,) int64: number of images of each class."""
        return self.confusion_matrix.sum(dim=1)

    @property
    def precision(self) -> Tensor:
        """(C,) float64: of the images taken for a class, the share that belongs to it."""
        return _share(self.confusion_matrix.diag(), self.confusion_matrix.sum(dim=0))

    @property
    def recall(self) -> Tensor:
        """(C,) float64: of the images of a class, the share that was taken for it."""
        return _share(self.confusion_matrix.diag(), self.support)

    @property
    def f1(self) -> Tensor:
        """(C,) float64: harmonic mean of precision and recall."""
        return _share(2 * self.confusion_matrix.diag(), self.confusion_matrix.sum(dim=0) + self.support)

    @cached_property
    def bins(self) -> Bins:
        """The images in 15 bins of equal width by their confidence."""
        # Ours, because torchmetrics puts a confidence on an edge in the bin above, and works in float32.
        edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
        where = torch.bucketize(self.confidence, edges)
        count, confidence, correct = (
            torch.bincount(where, weights, minlength=BINS)
            for weights in (None, self.confidence, self.is_correct.double())
        )
        return Bins(count, _share(confidence, count), _share(correct, count))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, in [0, 1] (Guo et al. 2017, arXiv 1706.04599).

        The mean difference of confidence and accuracy over the bins, each weighted by its number of images.
        """
        count, confidence, accuracy = self.bins
        return ((accuracy - confidence).abs() * count).sum().item() / self.total

    def figures(self) -> dict[str, Any]:
        """All figures as plain numbers, for JSON."""
        by_class = zip(self.precision, self.recall, self.f1, self.support, strict=True)
        by_bin = zip(*self.bins, strict=True)
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "classes": [
                {"class": name} | _named(("precision", "recall", "f1", "images"), values)
                for name, values in zip(self.class_names, by_class, strict=True)
            ],
            "confusion_matrix": self.confusion_matrix.tolist(),
            "calibration": [
                {"above": k / BINS, "up_to": (k + 1) / BINS} | _named(("images", "confidence", "accuracy"), values)
                for k, values in enumerate(by_bin)
            ],
        }

    def write_csv(self, path: Path) -> None:
        """Write a row for each image: what it is, what it was taken for, and every probability to the last digit.

        The columns are ``index`` (from 0), ``true``, ``predicted``, ``correct`` (1 or 0), ``confidence``, ``loss``
        and the names of the classes.
        """
        columns = (self.labels, self.predicted, self.is_correct.int(), self.confidence, self.losses, self.probabilities)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["index", "true", "predicted", "correct", "confidence", "loss", *self.class_names])
            for index, (true, predicted, correct, confidence, loss, probabilities) in enumerate(rows):
                names = self.class_names[true], self.class_names[predicted]
                table.writerow([index, *names, correct, confidence, loss, *probabilities])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Part of whole in float64, 0 where there is nothing."""
    return part.double() / whole.clamp(min=1)


def _named(names: Sequence[str], values: Sequence[Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in zip(names, values, strict=True)}
