"""Calls from Python and notebooks: the commands as functions, and what Lightning offers with our classes."""

import asyncio
import csv
import logging
import os
import re
import shlex
import signal
import statistics
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner

from cnn_lightning import MLP, Digits, ImageClassifier, LeNetCNN
from cnn_lightning.cli.compare import compare
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.from_python import CommandError, to_words
from cnn_lightning.cli.predict import predict
from cnn_lightning.cli.terminal import command_words
from cnn_lightning.errors import UsageError
from tests.conftest import REPOSITORY, scalars
from tests.faults import assert_same_checkpoints, assert_same_result

QUIET = {"trainer.accelerator": "cpu", "trainer.max_epochs": 1, "dashboard": False}


@pytest.fixture
def settings(tiny_root):
    return {**QUIET, "model.net": "LeNetCNN", "data": "MNIST", "data.root": tiny_root}


def words_of(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, **quiet | settings)


class TestArguments:
    def test_a_list(self, settings):
        run = fit(words_of(settings))
        assert run.folder == Path("logs/LeNetCNN-MNIST/version_0").absolute()
        assert run.checkpoint == run.folder / "checkpoints/best.ckpt"

    def test_a_dictionary_flat_or_nested_is_the_same(self, settings, tiny_root):
        nested = {
            "model": {"net": {"class_path": "LeNetCNN"}},
            "data": {"class_path": "MNIST", "init_args": {"root": tiny_root}},
            "trainer": {"accelerator": "cpu", "max_epochs": 1},
            "dashboard": False,
        }
        runs = [fit(settings), fit(nested), fit(words_of(settings))]
        configs = [yaml.safe_load((run.folder / "config.yaml").read_text()) for run in runs]
        assert configs[0] == configs[1] == configs[2]
        for run in runs[1:]:
            assert_same_result(run.folder, runs[0].folder)

    def test_values_of_every_kind(self):
        given = {
            "model.net": MLP,
            "trainer": {"max_epochs": 3, "logger": None, "callbacks": [{"class_path": Callback}]},
            "data.mean": [0.5, 1],
            "--data.root": Path("a b"),
            "data.flip": True,
            "data.val_size": torch.tensor(7).numpy()[()],
        }
        assert to_words(given) == [
            "--model.net=cnn_lightning.nets.mlp.MLP",
            "--trainer.max_epochs=3",
            "--trainer.logger=null",
            '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.callback.Callback"}]',
            "--data.mean=[0.5, 1]",
            "--data.root=a b",
            "--data.flip=true",
            "--data.val_size=7",
        ]
        assert to_words(["--trainer.max_epochs", 3, Path("x")]) == ["--trainer.max_epochs", "3", "x"]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("--model.net MLP", "the arguments are '--model.net MLP', expected a list of words or a dictionary"),
            ({"model.net": MLP()}, "model.net is an object of the class MLP, expected a plain value or a class"),
            ({"trainer": {"callbacks": [Callback()]}}, "trainer.callbacks is an object of the class Callback"),
            (["--model.net", torch.zeros(1)], "an argument is an object of the class Tensor"),
        ],
    )
    def test_what_no_command_line_can_hold(self, args, message):
        with pytest.raises(UsageError) as error:
            fit(args)
        assert message in str(error.value)


class TestResult:
    def test_of_fit(self, settings):
        run = fit(settings)
        tested = scalars(run.folder)
        assert run.metrics["test/acc"] == pytest.approx(tested["test/acc"][-1][1])
        assert run.metrics["test/loss"] == pytest.approx(tested["test/loss"][-1][1])
        saved = torch.load(run.checkpoint, weights_only=True)["state_dict"]
        assert all(torch.equal(saved[name], weight) for name, weight in run.model.state_dict().items())
        assert (run.datamodule.name, run.trainer.current_epoch) == ("MNIST", 1)
        assert len(repr(run)) < 500

    def test_where_nothing_is_saved_or_tested(self, settings):
        run = fit({**settings, "trainer": {"limit_test_batches": 0, "enable_checkpointing": False, "logger": False}})
        assert (run.checkpoint, run.metrics) == (None, {})
        assert fit({**settings, "trainer": {"fast_dev_run": True}}).folder is None


class TestErrors:
    def test_it_is_a_value_error_and_an_exit(self, settings, capsys):
        results = []
        for size in (0, 100):  # a sweep that goes on
            try:
                results.append(fit({**settings, "data.batch_size": size}).metrics["test/acc"])
            except ValueError as error:
                results.append(f"{type(error).__name__}: {error}")
        assert results[0] == "CommandError: batch_size is 0, expected at least 1: change --data.batch_size"
        assert 0 < results[1] <= 1
        assert capsys.readouterr().err.splitlines()[0] == results[0].replace("CommandError", "error")
        with pytest.raises(SystemExit) as stopped:
            fit(["--model.nett", "MLP"])
        assert stopped.value.code == 2
        assert str(stopped.value).startswith("there is no option --model.nett")

    def test_uncaught_it_ends_a_program_in_one_line(self, in_new_process):
        code = "from cnn_lightning.cli.fit import fit\nfit({'trainer.max_epoch': 3})\nprint('not reached')"
        ended, printed, errors = in_new_process(code)
        assert (ended, printed) == (2, "")
        assert errors == "error: there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?\n"

    def test_an_error_of_own_code_is_raised(self, settings, monkeypatch):
        monkeypatch.setattr(LeNetCNN, "forward", lambda self, images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(settings)


def state_of_process():
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals() - {32, 33}},
        "filters": list(warnings.filters),
        "hook": threading.excepthook,
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "grad": torch.is_grad_enabled(),
        "running": {thread.name for thread in threading.enumerate() if not thread.daemon},
    }


DISTURBING = {
    "trainer": {"deterministic": True, "precision": "64-true", "max_epochs": 1},
    "seed_everything": 7,
    "model.net": "MLP",
}


class TestSeveralCalls:
    def test_nothing_is_left_behind(self, settings):
        handlers = {
            name: [len(handler.filters) for handler in logging.getLogger(name).handlers]
            for name in ("lightning.pytorch", "lightning.fabric")
        }
        signal.signal(signal.SIGTERM, handler := lambda *_: None)
        try:
            before = state_of_process()
            fit({**settings, **DISTURBING})
            assert state_of_process() == before
            assert signal.getsignal(signal.SIGTERM) is handler
            for mistake in ({"data.batch_size": 0}, {"model.optimizer.lr": 1e30}, {"model.nett": 1}):
                with pytest.raises(CommandError):
                    fit({**settings, **DISTURBING, **mistake})
                assert state_of_process() == before, mistake
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for name, counts in handlers.items():
            assert [len(handler.filters) for handler in logging.getLogger(name).handlers] == counts

    @pytest.mark.slow
    def test_are_as_processes_of_their_own_to_the_bit(self, in_new_process, tmp_path):
        settings = {**QUIET, "model.net": "LeNetCNN", "data": "Digits"}
        first = fit(settings)
        fit({**settings, **DISTURBING})
        torch.manual_seed(99)
        second = fit(settings)
        assert_same_result(second.folder, first.folder)
        code = f"from cnn_lightning.cli.fit import fit\nfit({settings | {'trainer.default_root_dir': 'alone'}!r})"
        ended, _, errors = in_new_process(code)
        assert ended == 0, errors
        assert_same_result(second.folder, tmp_path / "alone/LeNetCNN-Digits/version_0")

    def test_each_continues_the_run_before(self, settings):
        constant = {**settings, "model.lr_schedule": None}
        whole = fit({**constant, "trainer.max_epochs": 2, "trainer.default_root_dir": "whole"})
        first = fit(constant)
        second = fit({**constant, "ckpt_path": "last", "trainer.max_epochs": 2})
        assert second.folder == first.folder
        assert_same_checkpoints(second.folder, whole.folder)

    def test_evaluate_and_predict(self, settings, capsys):
        from PIL import Image

        run = fit(settings)
        Image.fromarray(run.datamodule.read(train=False)[0][0, 0].numpy()).save("digit.png")
        capsys.readouterr()
        evaluate([run.checkpoint, "--report", "false"])
        assert f"accuracy    {run.metrics['test/acc']:.2%}" in capsys.readouterr().out
        predict(["digit.png", "--ckpt_path", run.checkpoint])
        assert "digit.png" in capsys.readouterr().out


class TestNotebook:
    def test_in_a_thread_and_within_an_event_loop(self, settings):
        async def cell():
            return fit(settings)

        runs = [fit(settings), asyncio.run(cell())]
        thread = threading.Thread(target=lambda: runs.append(fit(settings)))
        thread.start()
        thread.join()
        for run in runs[1:]:
            assert_same_result(run.folder, runs[0].folder)

    def test_a_class_of_a_cell(self, in_new_process):
        """IPython runs cells in the module __main__."""
        code = (
            "from torch import nn\nfrom cnn_lightning.cli.fit import fit\nimport __main__\n"
            "class Mine(nn.Sequential):\n"
            "    def __init__(self, width: int = 8):\n"
            "        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))\n"
            "__main__.Mine = Mine\n"
            f"run = fit({QUIET!r} | {{'data': 'Digits', 'model.net': Mine, 'model.net.width': 5}})\n"
            "print(run.model.net[1].out_features)"
        )
        ended, printed, errors = in_new_process(code)
        assert ended == 0, errors
        assert printed.splitlines()[-1] == "5"

    def test_compare_within_an_event_loop(self):
        async def cell():
            options = "--trainer.accelerator cpu --trainer.max_epochs 1"
            compare(["mine", "--nets", "MLP", "--data", "Digits", "--seeds", "4", "--options", options])

        asyncio.run(cell())
        (row,) = Path("mine/runs.csv").read_text().splitlines()[1:]
        assert row.startswith("MLP,Digits,4,")

    def test_how_to_resume_names_a_command_that_exists(self, monkeypatch):
        for called in ("/usr/lib/ipykernel_launcher.py", "/home/me/sweep.py"):
            monkeypatch.setattr(sys, "argv", [called, "-f", "kernel.json"])
            assert command_words("fit")[1:] == ["-m", "cnn_lightning", "fit"]


class TestTuner:
    @pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
    def test_learning_rate_is_set_used_and_resumed(self):
        torch.manual_seed(0)
        model, data = ImageClassifier(LeNetCNN()), Digits()
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        every = ModelCheckpoint("every", filename="{epoch}", save_top_k=-1)
        tuned = trainer(max_epochs=2, callbacks=[every], default_root_dir="logs")
        finder = Tuner(tuned).lr_find(model, datamodule=data, num_training=40)
        assert finder.suggestion() == model.lr
        assert 1e-8 < model.lr < 1
        assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
        tuned.fit(model, data)
        assert tuned.global_step == 42
        assert tuned.optimizers[0].param_groups[0]["max_lr"] == model.lr
        saved = torch.load("every/epoch=0.ckpt", weights_only=True)
        assert saved["optimizer_states"][0]["param_groups"][0]["max_lr"] == model.lr
        assert ImageClassifier.load_from_checkpoint("every/epoch=0.ckpt").lr is None
        # The optimizer's state has the learning rate: a run is resumed without it.
        again = ImageClassifier(LeNetCNN())
        resumed = trainer(
            max_epochs=2, callbacks=[ModelCheckpoint("every", filename="again-{epoch}")], default_root_dir="logs"
        )
        resumed.fit(again, Digits(), ckpt_path="every/epoch=0.ckpt", weights_only=True)
        assert resumed.global_step == 42
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
        assert not list(Path("logs").glob(".lr_find*"))

    def test_batch_size(self):
        model, data = ImageClassifier(LeNetCNN()), Digits(batch_size=8)
        tuned = trainer(max_epochs=1, enable_checkpointing=False, default_root_dir="logs")
        size = Tuner(tuned).scale_batch_size(model, datamodule=data, init_val=16, max_trials=3)
        assert size == data.batch_size == 64
        tuned.fit(model, data)
        assert tuned.num_training_batches == 21
        assert data.hparams["batch_size"] == 64


def test_validate_test_and_predict():
    model, data = ImageClassifier(LeNetCNN()), Digits()
    fitted = trainer(max_epochs=2, default_root_dir="logs", enable_checkpointing=True)
    fitted.fit(model, data)
    best = torch.load(fitted.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    data.setup("test")
    for part, results in (
        ("val", fitted.validate(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)),
        ("test", fitted.test(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)),
    ):
        model.load_state_dict(best)
        images, labels = data.part(part)
        with torch.no_grad():
            logits = model.eval()(data.normalize(images))
        (measured,) = results
        assert measured[f"{part}/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        assert measured[f"{part}/loss"] == pytest.approx(
            torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4
        )
    probabilities = torch.cat(fitted.predict(model, data.test_dataloader()))
    torch.testing.assert_close(probabilities, logits.softmax(1))


@pytest.mark.campaign
def test_seeds_of_the_split(capsys):
    """The comparison of docs/usage.md, with two seeds."""
    page = (REPOSITORY / "docs/usage.md").read_text()
    (line,) = re.findall(r"compare\.py (logs/splits .*\{seed\}.*)", page)
    words = ["0 1" if word == "0 1 2 3 4" else word for word in shlex.split(line.replace("0 1 2 3 4", "0 1"))]
    words[-1] += " --trainer.max_epochs 1 --trainer.accelerator cpu"
    compare(words)
    configs = [yaml.safe_load(path.read_text()) for path in sorted(Path("logs/compare").glob("*/*/*/config.yaml"))]
    seeds = [(config["seed_everything"], config["data"]["init_args"]["split_seed"]) for config in configs]
    assert sorted(seeds) == [(0, 0), (1, 1)]
    assert all(config["data"]["init_args"]["val_size"] == 0.2 for config in configs)
    table = Path("logs/splits/table.md").read_text()
    with Path("logs/splits/runs.csv").open() as file:
        values = [100 * float(row["test_acc"]) for row in csv.DictReader(file)]
    assert len(values) == 2
    assert f"{statistics.mean(values):.2f}" in table


def test_two_loggers_from_python():
    loggers = [TensorBoardLogger("curves"), CSVLogger("curves", name="csv")]
    trainer(max_epochs=2, logger=loggers, enable_checkpointing=False, log_every_n_steps=10).fit(
        ImageClassifier(LeNetCNN()), Digits()
    )
    curves = scalars(Path("curves/lightning_logs/version_0"))
    rows = Path("curves/csv/version_0/metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    written = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    for tag in ("train/loss", "val/loss", "val/acc"):
        points = [(int(row["step"]), float(row[tag])) for row in written if row[tag]]
        assert points == [(step, pytest.approx(value)) for step, value in curves[tag]]
        assert len(points) >= 2


def test_two_loggers_from_the_command_line(settings):
    fit([
        *words_of(settings),
        *("--trainer.logger+=TensorBoardLogger", "--trainer.logger.save_dir=curves"),
        *("--trainer.logger+=CSVLogger", "--trainer.logger.save_dir=curves", "--trainer.logger.name=csv"),
    ])  # fmt: skip
    curves = scalars(Path("curves/lightning_logs/version_0"))
    assert len(curves["val/loss"]) == 1
    assert "val/loss" in Path("curves/csv/version_0/metrics.csv").read_text()
