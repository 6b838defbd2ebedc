import csv
import json

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.evaluation import BINS, Evaluation

NAMES = ("T-shirt/top", "a, b", 'the "c"', "d", "naïve")


def evaluation(seed=0, count=500):
    """Probabilities that often point to the true class; the last class is absent, the last but one never predicted."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=torch.Generator().manual_seed(0))
    scores = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    scores[torch.arange(count), labels] += 1
    scores[:, 3] = -9
    return Evaluation(labels, scores.softmax(1), NAMES)


def of(labels, probabilities):
    rows = torch.tensor(probabilities, dtype=torch.float64)
    return Evaluation(torch.tensor(labels), rows, [f"class {k}" for k in range(rows.shape[1])])


def check_against_scikit_learn(ours, true, predicted, probabilities):
    """``true`` and ``predicted`` are labels, ``probabilities`` is (N, 5)."""
    classes = np.arange(5)
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    assert ours["accuracy"] == accuracy_score(true, predicted)
    assert ours["correct"] == accuracy_score(true, predicted, normalize=False)
    assert ours["balanced_accuracy"] == pytest.approx(recall[support > 0].mean(), abs=1e-12)
    assert ours["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0), abs=1e-12)
    assert ours["loss"] == pytest.approx(log_loss(true, probabilities, labels=classes), abs=1e-9)
    for name, theirs in {"precision": precision, "recall": recall, "f1": f1, "images": support}.items():
        assert [row[name] for row in ours["classes"]] == pytest.approx(theirs, abs=1e-9)
    assert ours["confusion_matrix"] == confusion_matrix(true, predicted, labels=classes).tolist()
    accuracy, confidence = calibration_curve(true == predicted, probabilities.max(axis=1), n_bins=BINS)
    filled = [row for row in ours["calibration"] if row["images"]]
    assert [row["accuracy"] for row in filled] == pytest.approx(accuracy, abs=1e-9)
    assert [row["confidence"] for row in filled] == pytest.approx(confidence, abs=1e-9)
    error = sum(row["images"] * abs(a - c) for row, a, c in zip(filled, accuracy, confidence, strict=True)) / len(true)
    assert ours["calibration_error"] == pytest.approx(error, abs=1e-9)


def test_all_figures_are_those_of_scikit_learn():
    ours = evaluation()
    assert 0 < ours.correct < ours.total
    check_against_scikit_learn(ours.figures(), ours.labels.numpy(), ours.predicted.numpy(), ours.probabilities.numpy())


def test_the_csv_alone_gives_all_figures(tmp_path):
    ours = evaluation()
    ours.write_csv(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    true, predicted = (np.array([NAMES.index(row[column]) for row in rows]) for column in ("true", "predicted"))
    probabilities = np.array([[float(row[name]) for name in NAMES] for row in rows])
    check_against_scikit_learn(ours.figures(), true, predicted, probabilities)
    assert np.array_equal(probabilities, ours.probabilities.numpy())  # to the last digit
    assert [row["index"] for row in rows] == [str(index) for index in range(500)]
    assert [float(row["confidence"]) for row in rows] == probabilities.max(axis=1).tolist()
    assert [int(row["correct"]) for row in rows] == (true == predicted).tolist()
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(ours.loss, abs=1e-12)


def test_figures_can_be_written_as_json():
    figures = evaluation().figures()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert [row["class"] for row in figures["classes"]] == list(NAMES)


def test_a_class_that_is_absent_or_never_predicted_counts_as_0():
    ours = evaluation()
    assert ours.by_class["images"][4] == 0
    assert 3 not in ours.predicted
    for shares in (ours.by_class[name] for name in ("precision", "recall", "f1")):
        assert shares[3:].tolist() == [0, 0]
        assert shares[:3].min() > 0


def test_unbalanced_classes():
    """90 of 100 images are of one class, and all are predicted as it."""
    rows = [[0.8, 0.1, 0.1]] * 100
    ours = of([0] * 90 + [1] * 10, rows)
    assert (ours.accuracy, ours.balanced_accuracy) == (0.9, 0.5)  # the third class has no images
    assert ours.balanced_accuracy == balanced_accuracy_score(ours.labels, ours.predicted)
    assert ours.macro_f1 == pytest.approx((2 * 0.9 / 1.9 + 0) / 2, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    ours = of([0, 1, 0], [[0.6, 0.4], [0.4, 0.6], [1.0, 0.0]])  # 0.6 = 9/15
    assert ours.bins["images"].nonzero().flatten().tolist() == [8, 14]
    assert ours.bins["images"][8] == 2


def test_calibration_error_by_hand():
    # Bin of 0.7: half of two images right; bin of 0.9: one image, right.
    ours = of([0, 1, 0], [[0.7, 0.3], [0.7, 0.3], [0.9, 0.1]])
    assert ours.calibration_error == pytest.approx((2 * 0.2 + 1 * 0.1) / 3, abs=1e-12)


def test_losses_are_finite_and_never_negative_zero():
    ours = of([0, 1], [[1.0, 0.0], [1.0, 0.0]])
    assert ours.losses.tolist() == pytest.approx([0, 708.396], abs=1e-3)
    assert str(ours.losses[0].item()) == "0.0"


def test_an_ensemble_averages_probabilities():
    first, second = evaluation(0), evaluation(1)
    both = Evaluation.ensemble([first, second])
    assert torch.equal(both.probabilities, (first.probabilities + second.probabilities) / 2)
    assert both.accuracy > max(first.accuracy, second.accuracy)  # their mistakes are independent
    assert torch.equal(Evaluation.ensemble([first]).probabilities, first.probabilities)


@pytest.mark.parametrize(
    "other",
    [
        evaluation(count=499),
        Evaluation(evaluation().labels.flip(0), evaluation().probabilities, NAMES),
        Evaluation(evaluation().labels, evaluation().probabilities, NAMES[::-1]),
    ],
)
def test_an_ensemble_needs_the_same_images_and_classes(other):
    with pytest.raises(ValueError, match="same images and classes"):
        Evaluation.ensemble([evaluation(), other])


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (torch.tensor([0]), torch.tensor([[0.5, 0.6]]).double(), "sum to 1"),
        (torch.tensor([0]), torch.tensor([[0.5, 0.5]]), "expected float64"),
        (torch.tensor([2]), torch.tensor([[0.5, 0.5]]).double(), "labels 2 to 2 of 2 classes"),
        (torch.tensor([0, 1]), torch.tensor([[0.5, 0.5]]).double(), r"expected \(2, 2\)"),
        (torch.zeros(0).long(), torch.zeros(0, 2).double(), "at least one image"),
    ],
)
def test_refuses_what_does_not_fit(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(labels, probabilities, ("a", "b"))


def test_a_diverged_network_is_reported():
    with pytest.raises(UsageError, match="diverged"):
        of([0], [[float("nan"), float("nan")]])
