"""sweep.py: searches that are trained here, on Digits."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState

from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.run_folders import newest_best
from cnn_lightning.cli.sweep import CHECKPOINT, sweep
from cnn_lightning.studies.storage import StudySource
from cnn_lightning.studies.trials import KEY, PRUNED
from tests.conftest import REPOSITORY, scalars

OPTIONS = "--options=--data Digits --model.net MLP --trainer.accelerator cpu --trainer.enable_model_summary false"
LR, BATCH = "--search=model.optimizer.lr: log 1e-4 1e-1", "--search=data.batch_size: [64, 256]"

OWN_NETWORKS = """
import os
import signal

import torch
from torch import nn


class Good(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, images):
        if self.training:
            self.fault()
        return self.layers(images)

    def fault(self):
        pass


class Raises(Good):
    def fault(self):
        raise RuntimeError("my own mistake")


class Allocates(Good):
    def fault(self):
        torch.zeros(10**15)


class Killed(Good):
    def fault(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Diverges(Good):
    def forward(self, images):
        return super().forward(images) * float("nan")
"""


def study_of(folder):
    return StudySource(f"{folder}/journal.log", Path(folder).name).open()


def rows(folder):
    with Path(folder, "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(checkpoint):
    return read_checkpoint(Path(checkpoint))["state_dict"]


@pytest.mark.slow
def test_best_trial_is_tested_once_and_its_recipe_trains_it_again(capsys):
    sweep(["mine", f"{OPTIONS} --trainer.max_epochs 5", LR, BATCH, "--trials=6", "--jobs=2"])
    output = capsys.readouterr().out
    study = study_of("mine")
    trials, best = study.get_trials(), study.best_trial
    assert [trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials] == [True] * 6
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert {trial.user_attrs[PRUNED] for trial in pruned} <= {1, 2, 4}
    assert [row["state"] for row in rows("mine")] == [trial.state.name for trial in trials]
    for trial in trials:
        checkpoint = Path(trial.user_attrs[CHECKPOINT])
        curves = scalars(checkpoint.parents[1])
        assert "test/acc" not in curves
        value = dict(curves["val/loss"])[read_checkpoint(checkpoint)["global_step"]]
        assert value == min(loss for _, loss in curves["val/loss"])
        if trial.state == TrialState.COMPLETE:
            assert trial.value == value
    assert best.value == min(trial.value for trial in trials if trial.state == TrialState.COMPLETE)
    name = f"trial {int(best.user_attrs[KEY])}"
    assert f"best        {name} (val/loss {best.value:.4f}: " in output
    assert output.count("accuracy    ") == 1
    for picture in ("history", "importance", "parallel"):
        assert Path(f"mine/{picture}.png").stat().st_size > 1000

    report = Path(f"mine/report_{name.replace(' ', '_')}/report.html")
    before = report.stat().st_mtime_ns
    sweep(["mine"])
    output = capsys.readouterr().out
    assert "6 trials, 6 of them done" in output
    assert f"tested      {report}" in output
    assert report.stat().st_mtime_ns == before

    recipe = yaml.safe_load(Path("mine/best.yaml").read_text())
    assert recipe["model"]["optimizer"]["init_args"]["lr"] == best.params["model.optimizer.lr"]
    run = fit(["--config=mine/best.yaml", "--trainer.default_root_dir=again"])
    assert "test/acc" in run.metrics
    again = weights(newest_best(Path("again").glob("*-*")))
    for layer, weight in weights(best.user_attrs[CHECKPOINT]).items():
        torch.testing.assert_close(again[layer], weight, rtol=0, atol=0)


@pytest.mark.slow
def test_grid_of_classes_with_settings_of_their_own():
    nets = "--search=model.net: {MLP: {}, LeNetCNN: {kernel_size: [3, 5], dropout: [0.1]}}"
    epochs = f"{OPTIONS} --trainer.max_epochs 1"
    sweep(["mine", epochs, nets, "--sampler=grid", "--metric=val/acc", "--pruner=none"])
    configs = [yaml.safe_load(path.read_text()) for path in Path("mine").glob("runs/*/*/*/config.yaml")]
    nets = [config["model"]["net"] for config in configs]
    settings = [
        (net["class_path"].split(".")[-1], net["init_args"].get("kernel_size"), net["init_args"].get("dropout"))
        for net in nets
    ]
    assert sorted(settings, key=str) == [("LeNetCNN", 3, 0.1), ("LeNetCNN", 5, 0.1), ("MLP", None, None)]
    study = StudySource("mine/journal.log", "mine", "maximize").open()
    assert study.best_value == max(float(row["value"]) for row in rows("mine"))


def test_status_trains_nothing(capsys):
    one = ["mine", f"{OPTIONS} --trainer.max_epochs 1", LR, "--trials=1"]
    sweep([*one, "--status"])
    assert capsys.readouterr().out == "mine: 1 runs: 1 waiting\n"
    assert not Path("mine/runs").exists()
    assert not Path("mine/search.yaml").exists()
    sweep(one)
    capsys.readouterr()
    sweep(["mine", "--status"])
    assert capsys.readouterr().out == "mine: 1 runs: 1 complete\n"


@pytest.mark.slow
def test_study_of_another_search_is_left_alone(capsys):
    sweep(["mine", f"{OPTIONS} --trainer.max_epochs 1", LR, "--trials=1"])
    path = Path("mine/search.yaml")
    path.write_text(path.read_text().replace("trials: 1", "trials: 2"))
    sweep(["mine"])  # more trials are the same search
    path.write_text(path.read_text().replace("1e-1", "1e-2"))
    with pytest.raises(SystemExit) as end:
        sweep(["mine"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(" searches other options: name another --study\n")
    assert len(study_of("mine").get_trials()) == 2


@pytest.mark.slow
def test_stopped_search_ends_as_one_that_was_not_stopped():
    options = [f"{OPTIONS} --trainer.max_epochs 8", LR, BATCH, "--trials=4"]
    process = subprocess.Popen([sys.executable, REPOSITORY / "scripts/sweep.py", "mine", *options])
    deadline = time.monotonic() + 120
    while not list(Path("mine/runs/0001").glob("**/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not Path("mine/best.yaml").exists()
    sweep(["mine"])
    sweep(["other", *options])

    def results(folder: str) -> list[tuple[object, ...]]:
        def result(trial: FrozenTrial) -> tuple[object, ...]:
            return trial.user_attrs[KEY], trial.state, trial.value, trial.params, trial.intermediate_values

        return [result(trial) for trial in study_of(folder).get_trials() if trial.state != TrialState.FAIL]

    assert sorted(results("mine"), key=str) == sorted(results("other"), key=str)
    for key in ("0000", "0001", "0002", "0003"):
        ours, theirs = (newest_best(Path(f"{folder}/runs/{key}").glob("*-*")) for folder in ("mine", "other"))
        for layer, weight in weights(theirs).items():
            torch.testing.assert_close(weights(ours)[layer], weight, rtol=0, atol=0)


@pytest.mark.slow
def test_trial_that_fails_fails_alone(capsys):
    Path("faulty.py").write_text(OWN_NETWORKS)
    nets = "--search=model.net: [faulty.Diverges, faulty.Raises, faulty.Killed, faulty.Allocates, faulty.Good]"
    with pytest.raises(SystemExit) as end:
        sweep(["mine", f"{OPTIONS} --trainer.max_epochs 2", nets, "--sampler=grid", "--pruner=none"])
    assert end.value.code == 1
    output, errors = capsys.readouterr()
    assert "4 trials failed:" in errors
    assert "trial 0: error: training has diverged: train/loss is nan" in errors
    assert "trial 1: RuntimeError: my own mistake" in errors
    assert "(full output in mine/runs/0001/output.txt)" in errors
    assert "trial 2: its process was killed 3 times in a row" in errors
    assert "trial 3: error: out of memory" in errors
    assert "best        trial 4" in output
    assert Path("mine/best.yaml").is_file()
    traceback = Path("mine/runs/0001/output.txt").read_text().splitlines()
    last = [line for line in traceback if line.lstrip().startswith("File ")][-1]
    assert "faulty.py" in last


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("model.optimizer.lrr: log 1e-4 1e-1", "model.optimizer.lrr"),
        ("model.optimizer.lr: log 1e-1 1e-4", "model.optimizer.lr: got 'log 1e-1 1e-4', expected two different"),
        ("model.optimizer.lr: log 0 1", "model.optimizer.lr: got 'log 0 1', expected numbers above 0"),
        ("data.batch_size: [64, 0]", "batch_size"),
        ("model.net.dropout: 0 1.5", "dropout"),
        ("model.net.kernel_size: [3, 5]", "kernel_size"),  # an MLP has none
        ("model.net: {MLP: {kernel_size: [3, 5]}, LeNetCNN: {}}", "kernel_size"),
        ("model.net: [MLP, NoNet]", "NoNet"),
        ("data: [Digits, MNIST]", "MNIST"),  # whose files are not here
    ],
)
def test_impossible_search_is_one_line_before_anything_is_trained(search, message, capsys, monkeypatch):
    monkeypatch.delenv("CNN_LIGHTNING_DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        sweep(["mine", OPTIONS, f"--search={search}", "--trials=2"])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert [*Path("mine").iterdir()] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials is 0, expected a number of at least 1"),
        ({"trials": True}, "trials is True"),
        ({"seed": -1}, "seed is -1, expected a number of at least 0"),
        ({"sampler": "bayes"}, "sampler is bayes, expected tpe, random, grid"),
        ({"options": 5}, "options: expected options as text"),
        ({"options": None}, "options: expected options as text"),
        ({"options": "--data 'x"}, "No closing quotation"),
        ({"options": "--trainer.max_epochs 1"}, "expected a dataset for all trials"),
        ({"search": None}, "got None as a search space"),
        ({"epochs": 5}, "expected search, and no keys except"),
    ],
    ids=str,
)
def test_mistake_in_search_yaml_is_one_line(settings, message, capsys):
    Path("mine").mkdir()
    whole = {"options": OPTIONS.removeprefix("--options="), "search": {"model.optimizer.lr": "log 1e-4 1e-1"}}
    Path("mine/search.yaml").write_text(yaml.safe_dump(whole | settings))
    with pytest.raises(SystemExit) as end:
        sweep(["mine"])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not Path("mine/journal.log").exists()


def test_corrected_command_is_not_held_up_by_the_mistyped_one(capsys):
    with pytest.raises(SystemExit):
        sweep(["mine", OPTIONS, "--search=model.optimizer.lrr: log 1e-4 1e-1", "--trials=1"])
    sweep(["mine", f"{OPTIONS} --trainer.max_epochs 1", LR, "--trials=1"])
    assert "1 trials, 0 of them done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgres://me:secret@host/name", "not a URL of a database"),
        ("postgresql://me:secret@host:54x/name", "not a URL of a database"),
        ("postgresql://me:secret@127.0.0.1:9/name", "the database cannot be reached"),
        ("mysql+nodriver://me:secret@host/name", "not a URL of a database"),
        (".", "the journal file cannot be opened"),
    ],
)
def test_wrong_storage_is_one_line_without_the_password(storage, message, capsys):
    with pytest.raises(SystemExit) as end:
        sweep(["mine", f"{OPTIONS} --trainer.max_epochs 1", LR, f"--storage={storage}"])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert "secret" not in errors


@pytest.mark.slow
def test_two_commands_test_the_best_trial_once():
    options = [f"{OPTIONS} --trainer.max_epochs 1", LR, "--trials=4"]
    command = [sys.executable, REPOSITORY / "scripts/sweep.py", "mine", *options]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output.count("accuracy    ") for output in outputs) == [0, 1]
    assert sum(output.count("tested      ") for output in outputs) == 1


@pytest.mark.slow
def test_more_trials_keep_the_report_of_the_earlier_best():
    options = [f"{OPTIONS} --trainer.max_epochs 1", LR, "--sampler=random"]
    sweep(["mine", *options, "--trials=2"])
    path = Path("mine/search.yaml")
    reports = {*Path("mine").glob("report_*/report.html")}
    assert len(reports) == 1
    path.write_text(path.read_text().replace("trials: 2", "trials: 8"))
    sweep(["mine"])
    assert {*Path("mine").glob("report_*/report.html")} > reports  # seed 0: a later one is better
