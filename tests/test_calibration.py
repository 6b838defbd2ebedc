"""Temperature and threshold: what they are, where they are saved, and who uses them."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from cnn_lightning import MNIST, ImageClassifier
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.calibration import (
    UNCALIBRATED,
    Calibration,
    calibrate,
    calibration_file,
    load_calibration,
    save_calibration,
)
from cnn_lightning.reporting.evaluation import Evaluation

CPU = "--trainer.accelerator=cpu"


def overconfident(images=4000, factor=3.0, seed=0):
    """Logits whose true temperature is the factor, since the labels are drawn from logits / factor."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return factor * logits, labels


def test_the_temperature_is_found_and_holds_for_other_images():
    calibration = calibrate(*overconfident(), risk=0.05)
    assert calibration.temperature == pytest.approx(3, rel=0.1)
    logits, labels = overconfident(seed=1)
    test = Evaluation(labels, logits.softmax(1), [*"abcde"], calibration)
    assert test.calibrated.calibration_error < 0.03 < 0.15 < test.calibration_error
    assert test.calibrated.loss < test.loss
    assert (test.calibrated.predicted == test.predicted).all()
    assert test.risk_interval()[0] < 0.05, "the share of wrong answers that was asked for"


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.floats(0.02, 0.5), st.integers(0, 99))
def test_as_many_answers_as_the_risk_allows(images, risk, seed):
    logits, labels = overconfident(images, 0.7, seed)
    calibration = calibrate(logits, labels, risk)
    confidence, predicted = calibration.apply(logits.softmax(1)).max(1)
    given, wrong = confidence >= calibration.threshold, predicted != labels
    assert (calibration.answered, calibration.wrong) == (given.sum(), (given & wrong).sum())
    assert calibration.images == images
    # Each threshold that would give more answers, counted one by one.
    for other in confidence[~given].tolist():
        more = confidence >= other
        assert (int((more & wrong).sum()) + 1) / (int(more.sum()) + 1) > risk
        assert calibration.is_reached or (more & wrong).any() or other < 0.8
    if calibration.is_reached:
        assert (calibration.wrong + 1) / (calibration.answered + 1) <= risk
    else:
        assert not calibration.wrong


def test_edges():
    logits, labels = torch.eye(3) * 4, torch.arange(3)
    sure = calibrate(logits, labels, risk=0.3)
    assert (sure.temperature, sure.answered, sure.is_reached) == (1, 3, True)
    assert sure.threshold == pytest.approx(logits.double().softmax(1)[0, 0].item(), rel=1e-5)
    assert calibrate(logits / 9, labels, risk=0.1).threshold == 0.8, "too few images to show the risk"
    none = calibrate(logits, labels.roll(1), risk=0.3)  # all are wrong
    assert (none.answered, none.is_reached) == (0, False)
    assert none.threshold == 2, "float32 would round a number just above 1"
    assert [Calibration(threshold=share).threshold_text for share in (0.8, 0.95678, 0.9999962, 1.0)] == [
        *("80.00%", "95.68%", "99.99962%", "100%")
    ]
    assert calibrate(logits * torch.nan, labels) == calibrate(logits[:0], labels[:0]) == UNCALIBRATED


def test_a_file_belongs_to_one_checkpoint(tmp_path):
    path, calibration = tmp_path / "best.ckpt", Calibration(1.25, 0.9, 0.01, 50, 40, 1)
    path.write_bytes(b"weights")
    assert load_calibration(path) == UNCALIBRATED
    save_calibration(calibration, path)
    assert load_calibration(path) == calibration
    written = json.loads(calibration_file(path).read_text())
    changes = {"temperature": 0}, {"threshold": "high"}, {"temperature": None}, {"other": 1}, {"risk": "x"}
    for change in (*changes, {"threshold": float("inf")}):
        calibration_file(path).write_text(json.dumps(written | change))
        assert load_calibration(path) == UNCALIBRATED, change
    for text in ("", "[]", "1", "{"):
        calibration_file(path).write_text(text)
        assert load_calibration(path) == UNCALIBRATED, text
    save_calibration(calibration, path)
    path.write_bytes(b"other weights")
    assert load_calibration(path) == UNCALIBRATED


def test_brier_score_and_risk_coverage_as_others_compute_them():
    logits, labels = overconfident(300)
    test = Evaluation(labels, logits.softmax(1), [*"abcde"])
    one_against_all = [brier_score_loss(labels == label, test.probabilities[:, label]) for label in range(5)]
    assert test.brier_score == pytest.approx(sum(one_against_all))
    wrong = (~test.is_correct)[test.confidence.argsort(descending=True)].numpy()
    risks = [wrong[:count].mean() for count in range(1, 301)]
    assert test.risk_coverage.numpy() == pytest.approx(np.array(risks))
    assert test.area_under_risk_coverage == pytest.approx(np.mean(risks))
    tied = Evaluation(torch.tensor([0, 1, 0]), torch.tensor([[0.75, 0.25]] * 3, dtype=torch.float64), ["a", "b"])
    assert tied.risk_coverage.tolist() == pytest.approx([1 / 3] * 3), "whatever their order"


SHORT = ("--trainer.limit_train_batches=2", "--data.val_size=200")  # it shall make mistakes


def expected(run, root, risk):
    """The calibration of best.ckpt, computed without a Trainer."""
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt").eval()
    data = MNIST(root, val_size=200)
    data.setup("validate")
    images, labels = data.part("val")
    with torch.no_grad():
        return calibrate(model(data.normalize(images)), labels, risk)


def test_fit_saves_that_of_the_best_checkpoint(train, tiny_root):
    run = train("--data=MNIST", *SHORT, "--risk=0.2", "--trainer.max_epochs=3", "--model.optimizer.lr=0.003")
    saved, computed = load_calibration(run / "checkpoints/best.ckpt"), expected(run, tiny_root, 0.2)
    assert saved.temperature == pytest.approx(computed.temperature, rel=1e-3)
    assert saved.threshold == pytest.approx(computed.threshold, rel=1e-3)
    assert (saved.risk, saved.images) == (0.2, 200)
    before = (run / "checkpoints/best.calibration.json").read_bytes()
    # Resumed with a learning rate of 0, the checkpoint stays, and its calibration.
    fit(["--ckpt_path=last", "--data=MNIST", *SHORT, f"--data.root={tiny_root}", "--trainer.max_epochs=3", CPU])
    assert (run / "checkpoints/best.calibration.json").read_bytes() == before


def test_evaluate_calibrates_what_is_not_calibrated(train, tiny_root, capsys):
    run = train("--data=MNIST", *SHORT)
    path = run / "checkpoints/best.calibration.json"
    saved = path.read_bytes()
    evaluate([CPU, "--report=false"])
    output = capsys.readouterr().out
    assert "Calibrated on" not in output
    assert path.read_bytes() == saved
    path.unlink()
    evaluate([CPU, "--report=false", "--data.split_seed=1"])  # other validation images: it was trained with most
    lines = capsys.readouterr().out.splitlines()
    assert "Not calibrated for a risk of 0.10%: the settings of --data differ from those in training" in lines
    evaluate([CPU, "--report=false", "--trainer.limit_val_batches=1"])  # one batch
    assert "Not calibrated for a risk of 0.10%: --trainer.limit_val_batches or" in capsys.readouterr().out
    assert not path.exists()
    evaluate([CPU, "--report=false"])
    assert f"Calibrated on 200 validation images, saved as {path}" in capsys.readouterr().out
    again, first = json.loads(path.read_text()), json.loads(saved)
    assert again.pop("checkpoint_sha256") == first.pop("checkpoint_sha256")
    assert again == pytest.approx(first, rel=1e-3)
    evaluate([CPU, "--risk=0.3"])
    output = capsys.readouterr().out
    computed = expected(run, tiny_root, 0.3)
    assert load_calibration(run / "checkpoints/best.ckpt").threshold == pytest.approx(computed.threshold, rel=1e-3)
    with (run / "report_0/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    given = [row for row in table if row["answered"] == "1"]
    assert all((float(row["calibrated_confidence"]) >= computed.threshold) == (row in given) for row in table)
    wrong = sum(row["correct"] == "0" for row in given)
    shown = json.loads((run / "report_0/figures.json").read_text())["checkpoints"][f"{run}/checkpoints/best.ckpt"]
    assert (shown["calibrated"]["answered"], shown["calibrated"]["wrong"]) == (len(given), wrong)
    assert f"answers     {len(given) / 100:.1%} given" in output
    assert f"({wrong}/{len(given)}, 95 % interval" in output
    assert f"calibration {shown['calibration_error']:.2%} error; " in output
    assert f"Brier       {shown['brier_score']:.4f}" in output


def test_without_validation_images_or_place_to_save(train, capsys, monkeypatch):
    def without_images(self):
        raise UsageError("no validation images here")

    run = train("--data=MNIST", *SHORT)
    calibration_file(run / "checkpoints/best.ckpt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(MNIST, "prepare_data", without_images)
        with pytest.raises(SystemExit):
            evaluate([CPU, "--report=false"])
    assert "no validation images here" in capsys.readouterr().err
    calibration_file(run / "checkpoints/best.ckpt").mkdir()  # as good as a folder that cannot be written
    evaluate([CPU, "--report=false"])
    output = capsys.readouterr().out
    assert "Calibrated on 200 validation images, not saved in" in output
    assert re.search(r"^answers ", output, re.MULTILINE)


@pytest.mark.parametrize("risk", ["0", "1", "-0.1"])
def test_invalid_risk(risk, error_of):
    message = error_of(fit, f"--risk={risk}", "--data=Digits")
    assert message == f"error: risk is {float(risk)}, expected more than 0 and less than 1: change --risk"
