"""Errors of LeNetCNN on corrupted images, which the errors of other networks are compared with."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

# dataset, corruption, strength, error: means of 3 seeds, written by ``python -m tests.baseline``.
FILE = Path(__file__).with_name("baseline.csv")


def relative_error(dataset: str, accuracies: Mapping[str, Sequence[float]]) -> float | None:
    """Compute the mean over corruptions of a network's error relative to that of LeNetCNN, 1 for the same error.

    The errors of all strengths are summed before they are divided (mCE, Hendrycks and Dietterich 2019, arXiv
    1903.12261).

    Args:
        dataset: Its name.
        accuracies: Corruption -> accuracies in all strengths, in [0, 1].

    Returns:
        The relative error; None if LeNetCNN was not measured on the dataset.
    """
    baseline: dict[str, float] = defaultdict(float)
    with FILE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dataset"] == dataset:
                baseline[row["corruption"]] += float(row["error"])
    if not baseline:
        return None
    errors = {name: sum(1 - accuracy for accuracy in by_strength) for name, by_strength in accuracies.items()}
    ratios = [error / baseline[name] for name, error in errors.items() if baseline[name]]
    return sum(ratios) / len(ratios)
