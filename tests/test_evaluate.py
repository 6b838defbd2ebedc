import csv
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support
from torch.nn.functional import pad

from cnn_lightning import MLP, MNIST, FashionMNIST, ImageClassifier
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from tests.conftest import scalars

FILES = {
    "report.html", "figures.json", "predictions.csv", "confusion_matrix.png", "reliability.png", "risk_coverage.png",
    "mistakes.png", "curves.png", "filters.png", "feature_maps.png",
}  # fmt: skip
CPU = "--trainer.accelerator=cpu"


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(report, name):
    checkpoints = json.loads((report / "figures.json").read_text(encoding="utf-8"))["checkpoints"]
    return next(figures for path, figures in checkpoints.items() if name in path)


class TestReport:
    def test_every_figure_follows_from_the_csv(self, train, capsys):
        run = train("--data.val_size=200", "--trainer.limit_train_batches=2")  # it shall make mistakes
        evaluate([CPU])
        output = capsys.readouterr().out
        report = run / "report_0"
        assert {path.name for path in report.iterdir()} == FILES
        table = rows(report / "predictions.csv")
        names = [str(digit) for digit in range(10)]
        true, predicted = ([row[column] for row in table] for column in ("true", "predicted"))
        probabilities = np.array([[float(row[name]) for name in names] for row in table])
        shown = figures(report, "best.ckpt")
        assert 0.1 < shown["accuracy"] < 1
        assert shown["accuracy"] == accuracy_score(true, predicted)
        assert shown["loss"] == pytest.approx(log_loss(true, probabilities, labels=names), rel=1e-9)
        assert shown["confusion_matrix"] == confusion_matrix(true, predicted, labels=names).tolist()
        expected = precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
        for column, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
            assert [row[column] for row in shown["classes"]] == pytest.approx(values, abs=1e-12), column
        assert f"({shown['correct']}/{shown['total']})" in output
        assert f"loss        {shown['loss']:.4f}" in output
        assert f"report      {report}/report.html" in output

    def test_a_file_of_print_config_names_no_checkpoint(self, train, tiny_root, capsys):
        """It has ckpt_path: null, which is that of fit."""
        run = train()
        with pytest.raises(SystemExit):
            fit([CPU, "--data=MNIST", f"--data.root={tiny_root}", "--print_config"])
        Path("my.yaml").write_text(capsys.readouterr().out)
        assert "\nckpt_path: null\n" in Path("my.yaml").read_text()
        evaluate([CPU, "--config=my.yaml"])
        assert f"Test of {run}/checkpoints/best.ckpt" in capsys.readouterr().out

    def test_probabilities_are_those_of_the_network(self, train, tiny_root):
        run = train()
        evaluate([CPU])
        model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
        data = MNIST(tiny_root)
        data.setup("test")
        images, labels = data.part("test")
        with torch.no_grad():
            probabilities = model.predict_step(data.normalize(images))
        table = rows(run / "report_0/predictions.csv")
        assert [int(row["true"]) for row in table] == labels.tolist()
        assert [float(row["3"]) for row in table] == pytest.approx(probabilities[:, 3].tolist(), abs=1e-6)

    def test_an_earlier_report_stays(self, train):
        run = train()
        evaluate([CPU])
        before = (run / "report_0/report.html").stat().st_mtime_ns
        evaluate([CPU, str(run / "checkpoints/last.ckpt")])
        assert (run / "report_0/report.html").stat().st_mtime_ns == before
        assert (run / "report_1/report.html").is_file()

    def test_settings_seed_and_dates(self, train):
        options = ["--seed_everything=3", "--data=MNIST", "--data.shift=2", "--data.batch_size=25"]
        run = train(*options, "--trainer.max_epochs=2", "--model.optimizer.lr=0.002")
        evaluate([CPU])
        facts = json.loads((run / "report_0/figures.json").read_text(encoding="utf-8"))["facts"]
        best = run / "checkpoints/best.ckpt"
        saved = datetime.fromtimestamp(best.stat().st_mtime)
        assert facts["network"] == "TwoLayerCNN, 28,938 parameters"
        assert facts["optimizer"] == "AdamW, learning rate 0.002"
        assert facts["batch size"] == "25"
        assert facts["seed"] == "3"
        assert facts["other settings"] == "data.shift 2"
        assert re.fullmatch(rf"{saved:%Y-%m-%d %H:%M}, in epoch [12] of 2, after \d+ optimizer steps", facts["saved"])
        tested = datetime.strptime(facts["tested"], "%Y-%m-%d %H:%M")
        assert abs(datetime.now() - tested) < timedelta(minutes=10)
        # Without the folder of the run, the checkpoint knows all but the epochs.
        best.rename("alone.ckpt")
        evaluate([CPU, "alone.ckpt", "--report=alone"])
        alone = json.loads(Path("alone/figures.json").read_text(encoding="utf-8"))["facts"]
        assert {name: alone[name] for name in ("optimizer", "batch size", "seed", "other settings")} == {
            name: facts[name] for name in ("optimizer", "batch size", "seed", "other settings")
        }
        assert re.search(r", in epoch [12], after", alone["saved"])

    def test_folder_of_choice_or_none(self, train):
        run = train()
        evaluate([CPU, "--report=some/where"])
        assert Path("some/where/report.html").is_file()
        evaluate([CPU, "--report=false"])
        assert not list(run.glob("report*"))

    def test_a_checkpoint_without_a_run(self, train, tiny_root):
        run = train()
        (run / "checkpoints/best.ckpt").rename("alone.ckpt")
        evaluate([CPU, "alone.ckpt"])
        assert {path.name for path in Path("report_0").iterdir()} == FILES - {"curves.png"}

    def test_only_some_images(self, train):
        run = train("--data.batch_size=10")
        evaluate([CPU, "--trainer.limit_test_batches=3"])
        assert len(rows(run / "report_0/predictions.csv")) == 30

    def test_folder_that_is_there(self, train, error_of):
        train()
        Path("mine").mkdir()
        Path("mine/notes.txt").touch()
        assert "--report mine exists" in error_of(evaluate, CPU, "--report=mine")
        Path("file").touch()
        assert "--report" in error_of(evaluate, CPU, "--report=file/report")

    def test_nothing_to_report_leaves_no_folder(self, train, error_of):
        checkpoint = torch.load(train() / "checkpoints/last.ckpt", weights_only=True)
        next(iter(checkpoint["state_dict"].values()))[:] = torch.nan
        torch.save(checkpoint, "nan.ckpt")
        assert "the network gives NaN" in error_of(evaluate, CPU, "--report=mine", "nan.ckpt")
        evaluate([CPU, "--report=mine", "--trainer.limit_test_batches=0"])
        assert not Path("mine").exists()

    def test_a_checkpoint_saved_in_python(self, tiny_root, error_of):
        model, data = ImageClassifier(MLP()), MNIST(tiny_root)
        trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.fit(model, data)
        trainer.save_checkpoint("mine.ckpt")
        evaluate([CPU, "mine.ckpt"])
        assert "in epoch 2, after" in Path("report_0/report.html").read_text(encoding="utf-8")
        checkpoint = torch.load("mine.ckpt", weights_only=True)
        torch.save({key: checkpoint[key] for key in ("state_dict", "hyper_parameters")}, "small.ckpt")
        assert "small.ckpt is not a checkpoint of a run" in error_of(evaluate, CPU, "small.ckpt")


class TestTestTimeAugmentation:
    @pytest.mark.parametrize(("name", "views"), [("MNIST", 5), ("FashionMNIST", 10)])
    def test_is_the_mean_over_moved_and_flipped_images(self, train, tiny_root, capsys, name, views):
        """Digits are not flipped."""
        run = train(f"--data={name}", "--data.val_size=200", "--trainer.limit_train_batches=2")
        evaluate([CPU, "--tta=true"])
        output = capsys.readouterr().out
        cls = {"MNIST": MNIST, "FashionMNIST": FashionMNIST}[name]
        model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
        data = cls(tiny_root)
        data.setup("test")
        images, labels = data.part("test")
        wide = pad(images, [1] * 4)
        seen = [wide[:, :, y : y + 28, x : x + 28] for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
        seen += [view.flip(3) for view in seen] if name == "FashionMNIST" else []
        assert len(seen) == views
        with torch.no_grad():
            probabilities = torch.stack([model.predict_step(data.normalize(view)) for view in seen]).mean(0)
        table = rows(run / "report_0/predictions.csv")
        assert [float(row[data.class_names[3]]) for row in table] == pytest.approx(
            probabilities[:, 3].tolist(), abs=1e-5
        )
        accuracy = (probabilities.argmax(1) == labels).float().mean().item()
        assert figures(run / "report_0", "best.ckpt")["accuracy"] == pytest.approx(accuracy)
        assert f"the mean of the probabilities of {views} views\naccuracy    {accuracy:.2%}" in output

    def test_does_not_change_what_is_said_of_moved_images(self, train, capsys):
        train("--data.val_size=200", "--trainer.limit_train_batches=2", "--data.pad=1", "--model.net.image_size=30")
        said = []
        for tta in ("false", "true"):
            evaluate([CPU, "--report=false", "--shift=1", f"--tta={tta}"])
            said.append(re.findall(r"^(?:up to|corner) .*", capsys.readouterr().out, re.MULTILINE))
        assert len(said[0]) == 2
        assert said[0] == said[1]


class TestWeightAveraging:
    def test_averaged_weights_are_what_is_tested_and_kept(self, train, tiny_root, capsys):
        averaging = ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9")
        settings = ("--data=MNIST", "--data.val_size=200", "--trainer.max_epochs=2")
        run, plain = train(*settings, *averaging), train(*settings)
        (_, accuracy), *_ = scalars(run)["test/acc"]
        best = run / "checkpoints/best.ckpt"
        evaluate([CPU, str(best)])
        assert f"accuracy    {accuracy:.2%}" in capsys.readouterr().out
        checkpoint = torch.load(best, weights_only=True)
        weights = checkpoint["state_dict"]
        assert not torch.equal(weights["net.head.0.weight"], checkpoint["current_model_state"]["net.head.0.weight"])
        model = ImageClassifier.load_from_checkpoint(best)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        # It averages what is trained, and changes nothing in it.
        trained = torch.load(plain / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["current_model_state"]
        assert all(torch.equal(value, trained[name]) for name, value in last.items())


class TestSeveral:
    def test_ensemble_is_the_mean_of_the_probabilities(self, train, capsys):
        runs = [train("--trainer.limit_train_batches=2", f"--seed_everything={seed}") for seed in (0, 1)]
        evaluate([CPU, *(str(run / "checkpoints/best.ckpt") for run in runs)])
        output = capsys.readouterr().out
        report = runs[0] / "report_0"
        assert {path.name for path in report.iterdir()} == FILES | {"predictions_2.csv", "predictions_ensemble.csv"}
        tables = [rows(report / name) for name in ("predictions.csv", "predictions_2.csv")]
        labels = np.array([int(row["true"]) for row in tables[0]])
        probabilities = np.mean([[[float(row[str(i)]) for i in range(10)] for row in t] for t in tables], axis=0)
        shown = figures(report, "ensemble")
        assert shown["correct"] == (probabilities.argmax(axis=1) == labels).sum()
        assert shown["loss"] == pytest.approx(-np.log(probabilities[range(100), labels]).mean(), rel=1e-9)
        first, second = (100 * figures(report, f"version_{k}")["accuracy"] for k in (0, 1))
        spread = f"{(first + second) / 2:.2f} ± {abs(first - second) / 2**0.5:.2f} %"
        assert f"Mean and standard deviation of these 2\naccuracy    {spread}" in output
        assert f"Ensemble of these 2, the mean of their probabilities\naccuracy    {shown['accuracy']:.2%}" in output
        for run in runs:
            assert f"{run}/checkpoints/best.ckpt" in (report / "report.html").read_text(encoding="utf-8")

    @pytest.mark.slow
    def test_each_has_its_own_settings(self, train):
        """Network, normalisation and padding are those of the checkpoint."""
        runs = [
            train("--data=MNIST", "--data.mean=0", "--data.std=1"),
            train("--model.net=MLP", "--data=MNIST", "--data.pad=3", "--model.net.image_size=34"),
        ]
        paths = [str(run / "checkpoints/best.ckpt") for run in runs]
        evaluate([CPU, *paths])
        for run, path in zip(runs, paths, strict=True):
            evaluate([CPU, path, f"--report={run.parent.name}"])
            alone = figures(Path(run.parent.name), path)
            assert figures(runs[0] / "report_0", path) == alone

    def test_of_different_datasets(self, train, error_of):
        paths = [str(train(f"--data={name}") / "checkpoints/best.ckpt") for name in ("MNIST", "FashionMNIST")]
        message = error_of(evaluate, CPU, *paths)
        assert f"{paths[0]} of MNIST, {paths[1]} of FashionMNIST: expected checkpoints of one dataset" in message

    def test_other_images_for_each(self, train, error_of):
        paths = [str(train("--data.batch_size", size) / "checkpoints/best.ckpt") for size in ("10", "20")]
        limit = "--trainer.limit_test_batches=2"
        assert "give all one --data.batch_size" in error_of(evaluate, CPU, limit, *paths)
        evaluate([CPU, limit, "--data.batch_size=10", *paths])

    def test_one_is_named_twice(self, train, error_of):
        path = str(train() / "checkpoints/best.ckpt")
        assert f"{path} is named twice" in error_of(evaluate, CPU, path, f"./{path}")

    def test_one_is_missing(self, train, error_of):
        path = str(train() / "checkpoints/best.ckpt")
        assert "missing.ckpt" in error_of(evaluate, CPU, path, "missing.ckpt")


class TestShift:
    PADDED = ("--data=MNIST", "--data.pad=2", "--model.net=MLP", "--model.net.image_size=32", "--data.batch_size=50")

    def test_accuracy_of_moved_images(self, train, tiny_root, capsys):
        run = train(*self.PADDED, "--trainer.max_epochs=3")
        evaluate([CPU, "--shift=2"])
        output = capsys.readouterr().out
        table = rows(run / "report_0/shift.csv")
        assert [(row["moved"], row["pixels"]) for row in table] == [
            (kind, str(pixels)) for kind in ("up to", "corner") for pixels in range(3)
        ]
        accuracies = [float(row["accuracy"]) for row in table]
        assert accuracies[0] == accuracies[3] == figures(run / "report_0", "best")["accuracy"]
        # The corners, by hand: from 32×32 with 2 black pixels all around to 28×28 in a corner of 32×32.
        model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
        data = MNIST(tiny_root)
        data.setup("test")
        images, labels = data.part("test")
        corners = [pad(images, sides) for sides in ((4, 0, 4, 0), (4, 0, 0, 4), (0, 4, 4, 0), (0, 4, 0, 4))]
        with torch.no_grad():
            right = [
                (model(data.normalize(corner)).argmax(dim=1) == labels).float().mean().item() for corner in corners
            ]
        assert accuracies[5] == pytest.approx(np.mean(right), abs=1e-6)
        assert accuracies[5] < accuracies[0]
        assert re.search(rf"corner +{accuracies[3]:.2%} +{accuracies[4]:.2%} +{accuracies[5]:.2%}", output)
        assert (run / "report_0/shift.png").is_file()

    def test_two_checkpoints_of_a_run(self, train):
        run = train(*self.PADDED)
        evaluate([CPU, "--shift=1", *(str(run / f"checkpoints/{name}.ckpt") for name in ("best", "last"))])
        names = {row["network"] for row in rows(run / "report_0/shift.csv")}
        assert names == {"MLP-MNIST/version_0", "MLP-MNIST/version_0, last"}

    def test_runs_of_one_name(self, train):
        runs = [train(*self.PADDED, f"--trainer.default_root_dir=seed_{seed}") for seed in (0, 1)]
        paths = [str(run / "checkpoints/best.ckpt") for run in runs]
        evaluate([CPU, "--shift=1", *paths])
        names = {row["network"] for row in rows(runs[0] / "report_0/shift.csv")}
        assert names == {"MLP-MNIST/version_0", paths[1]}

    def test_images_that_would_be_cut(self, train, error_of):
        train(*self.PADDED)
        message = error_of(evaluate, CPU, "--shift=5")
        assert "--shift 5 would cut the test images at the edge, 2 pixels away" in message
        assert message.endswith("--data.pad 5")
        assert "expected at least 1" in error_of(evaluate, CPU, "--shift=0")

    def test_network_of_another_size(self, train, error_of):
        from cnn_lightning.cli.fit import fit

        message = error_of(fit, CPU, "--data=Digits", "--data.pad=2", "--model.net.image_size=28")
        assert "TwoLayerCNN has image_size 28, but Digits has image_size 32" in message
        assert "pad is -1" in error_of(fit, CPU, "--data=Digits", "--data.pad=-1")
