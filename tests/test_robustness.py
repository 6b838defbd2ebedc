"""Attacks, detection and the relative error, and the whole of ``evaluate.py --robust``."""

import csv
import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import binary_auroc, binary_roc

from cnn_lightning import MLP, Digits
from cnn_lightning.cli import report_facts
from cnn_lightning.cli import robustness as command
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.data.scale_shift import scale_and_shift
from cnn_lightning.reporting.calibration import load_calibration
from cnn_lightning.reporting.evaluation import Evaluation
from cnn_lightning.robustness import attacks
from cnn_lightning.robustness.attacks import EPSILONS, attack, logits_of
from cnn_lightning.robustness.baseline import FILE, relative_error
from cnn_lightning.robustness.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from cnn_lightning.robustness.detection import detect
from tests import baseline


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def digits():
    """Digits with a border, and an MLP that was trained on them."""
    data = Digits(pad=2)
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(0)
    net = MLP(1, 10, 32)
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    images, labels = data.part("train")
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(net(data.normalize(images)), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return data, net.eval()


@pytest.fixture
def few_corruptions(monkeypatch):
    """Every third corruption, which takes a third of the time."""
    for number, name in enumerate([*CORRUPTIONS]):
        if number % 3:
            monkeypatch.delitem(CORRUPTIONS, name)


class TestAttack:
    def test_raises_the_loss_within_the_ball(self, digits, monkeypatch):
        data, net = digits
        images, labels = data.part("test")
        scale, shift = scale_and_shift(data.normalize, images.shape[1:])

        def loss(pixels):
            with torch.no_grad():
                return cross_entropy(logits_of(net, pixels, scale, shift), labels).item()

        clean = images / 255
        with torch.no_grad():
            torch.testing.assert_close(logits_of(net, clean, scale, shift), net(data.normalize(images)))
        before = loss(clean)
        assert before < 0.5
        for epsilon in (0.02, 0.1):
            one, ten = (attack(net, images, labels, scale, shift, epsilon, steps) for steps in (1, 10))
            for attacked in (one, ten):
                assert attacked.dtype == torch.float32
                assert 0 <= attacked.min() <= attacked.max() <= 1
                assert (attacked - clean).abs().max().item() == pytest.approx(epsilon, abs=1e-6)
            assert before + 0.02 < loss(one) < loss(ten)
        assert all(parameter.grad is None for parameter in net.parameters())
        assert not net.training
        monkeypatch.setattr(attacks, "BATCH", 50)
        torch.testing.assert_close(attack(net, images[:150], labels[:150], scale, shift, 0.1, 10), ten[:150])

    def test_training_mode_is_refused(self, digits):
        net = MLP(1, 10, 28)
        with pytest.raises(ValueError, match="the network is in training mode, expected evaluation mode"):
            attack(net, torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1).long(), [1.0], [0.0], 0.1)
        assert net.training

    def test_networks_that_are_too_certain_are_attacked_too(self, digits):
        data, net = digits
        images, labels = data.part("test")
        scale, shift = scale_and_shift(data.normalize, images.shape[1:])

        def accuracy(factor):
            certain = torch.nn.Sequential(net, torch.nn.LeakyReLU(1.0), Times(factor)).eval()
            attacked = attack(certain, images, labels, scale, shift, 0.1)
            return (logits_of(net, attacked, scale, shift).argmax(1) == labels).double().mean().item()

        assert accuracy(100.0) < accuracy(1.0) + 0.01  # in float32, softmax and loss leave no gradient


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_detection_is_that_of_torchmetrics_and_counts_by_hand():
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(300, generator=generator).sqrt().mul(50).round().double() / 50  # many ties
    others = torch.rand(200, generator=generator).mul(50).round().double() / 50
    found, both = detect(known, others, 0.8), torch.cat([known, others])
    assert found.auroc == pytest.approx(binary_auroc(both, torch.arange(500) < 300).item(), abs=1e-6)
    least = known.sort(descending=True).values[284]  # 285 of 300 are 95 %
    assert found.fpr95 == (others >= least).double().mean().item()
    false, true, _ = binary_roc(both, (torch.arange(500) < 300).long())
    assert found.fpr95 == pytest.approx(false[true >= 0.95].min().item())
    assert found.answered == (others >= 0.8).double().mean().item()
    perfect = detect(torch.ones(5).double(), torch.zeros(4).double(), 0.5)
    assert (perfect.auroc, perfect.fpr95, perfect.answered) == (1, 0, 0)


def test_relative_error_compares_with_lenet(tmp_path):
    assert {row["corruption"] for row in rows(FILE)} == {*CORRUPTIONS}
    errors = {name: [0.0] * 5 for name in CORRUPTIONS}
    for row in rows(FILE):
        if row["dataset"] == "MNIST":
            errors[row["corruption"]][int(row["strength"]) - 1] = float(row["error"])
    lenet = {name: [1 - error for error in by_strength] for name, by_strength in errors.items()}
    assert relative_error("MNIST", lenet) == pytest.approx(1)
    better = {name: [1 - error / 4 for error in by_strength] for name, by_strength in errors.items()}
    assert relative_error("MNIST", lenet | {"scale": better["scale"]}) == pytest.approx((14 + 0.25) / 15)
    assert relative_error("Digits of mine", lenet) is None

    table, path = tmp_path / "corruptions.csv", tmp_path / "baseline.csv"
    table.write_text(
        "network,corruption,strength,accuracy\na,scale,1,0.9\nb,scale,1,0.8\na,scale,2,0.5\nb,scale,2,0.5\n"
    )
    path.write_text("dataset,corruption,strength,error\nDigits,scale,1,0.3\nMNIST,scale,1,0.7\n")
    baseline.update("MNIST", [table], path)
    assert path.read_text().splitlines()[1:] == [
        "Digits,scale,1,0.3",
        "MNIST,scale,1,0.150000",
        "MNIST,scale,2,0.500000",
    ]


def test_border_is_added_after_the_change(digits, few_corruptions, tiny_root, capsys):
    data, net = digits
    data.root = tiny_root / "empty"
    images, labels = data.part("test")
    tested = []

    def test_on(images, labels):
        tested.append(images)
        return Evaluation(labels, torch.full((len(images), 10), 0.1, dtype=torch.float64), data.class_names)

    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    cli = SimpleNamespace(datamodule=data, trainer=trainer, model=SimpleNamespace(net=net))
    command.measure(cli, test_on, test_on(images, labels))
    plain = Digits()
    plain.setup("test")
    bare = plain.part("test")[0]
    changed = [corrupt(bare, name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    _, *tested, noise = tested
    assert torch.equal(torch.stack(tested), data.padded(torch.stack(changed)))
    assert noise.shape == images.shape
    assert noise[..., 2:-2, 2:-2].float().mean().item() == pytest.approx(127.5, abs=1)
    assert noise[..., :2].max() == 0
    output = capsys.readouterr().out
    assert "FashionMNIST is not used as other images, because it is not on disk" in output
    assert "MNIST is not used" not in output.replace("FashionMNIST", "")  # digits as well


class Noon(datetime):
    """A clock that stands still: a report names the minute of its test."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 30, 12)


@pytest.mark.slow
def test_two_runs_of_the_command_are_equal_and_figures_follow_from_the_files(
    train, few_corruptions, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(report_facts, "datetime", Noon)
    run = train("--data=Digits", "--model.net=MLP")
    checkpoint, reports = str(run / "checkpoints/best.ckpt"), [tmp_path / "a", tmp_path / "b"]
    for report in reports:
        evaluate(["--trainer.accelerator=cpu", checkpoint, "--robust=true", f"--report={report}"])
        output = capsys.readouterr().out
    first, second = ({path.name: path.read_bytes() for path in report.iterdir()} for report in reports)
    assert first == second
    assert {"corruptions.png", "robustness.png", "attack.png"} <= first.keys()
    with Image.open(reports[0] / "corruptions.png") as picture:
        assert picture.width == 704

    assert json.loads(first["figures.json"])["facts"]["tested"] == "2026-11-30 12:00"
    (figures,) = json.loads(first["figures.json"])["robustness"].values()
    table = rows(reports[0] / "corruptions.csv")
    assert [(row["corruption"], row["strength"]) for row in table] == [
        (n, str(s)) for n in CORRUPTIONS for s in STRENGTHS
    ]
    accuracies = [float(row["accuracy"]) for row in table]
    assert figures["mean_accuracy"] == pytest.approx(sum(accuracies) / 25)
    assert figures["worst"]["accuracy"] == min(accuracies)
    assert figures["relative_error"] is None

    table = rows(reports[0] / "detection.csv")
    scores = {}
    for row in table:
        scores.setdefault(row["source"], []).append(float(row["score"]))
    assert {source: len(of) for source, of in scores.items()} == {"Digits": 360, "FashionMNIST": 100, "noise": 360}
    confidences = [float(row["calibrated_confidence"]) for row in rows(reports[0] / "predictions.csv")]
    assert scores["Digits"] == pytest.approx(confidences)
    threshold = load_calibration(run / "checkpoints/best.ckpt").threshold
    for source in ("FashionMNIST", "noise"):
        both = torch.tensor(scores["Digits"] + scores[source], dtype=torch.float64)
        found = figures["detection"][source]
        assert found["auroc"] == pytest.approx(binary_auroc(both, torch.arange(len(both)) < 360).item(), abs=1e-6)
        assert found["answered"] == pytest.approx(
            sum(score >= threshold for score in scores[source]) / len(scores[source])
        )
        assert f"detection   {source}, by the highest calibrated probability: AUROC {found['auroc']:.2%}" in output

    table = rows(reports[0] / "attacks.csv")
    assert [float(row["epsilon"]) for row in table] == [*EPSILONS, *EPSILONS]
    under_attack = [float(row["accuracy"]) for row in table]
    clean = json.loads(first["figures.json"])["checkpoints"]
    assert under_attack[0] == under_attack[7] == next(iter(clean.values()))["accuracy"]
    assert under_attack[13] <= under_attack[6] < under_attack[0]
    page = first["report.html"].decode()
    assert "Beyond the test set" in page
    assert f"{100 * figures['mean_accuracy']:.2f}" in page
    assert f"mean {figures['mean_accuracy']:.2%}, worst" in output
