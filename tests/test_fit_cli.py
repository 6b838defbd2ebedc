"""What only FitCLI can check, because it knows run, Trainer and callbacks."""

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.checkpointing.settings import epoch_of
from cnn_lightning.cli import hardware
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.run_folders import newest_tested
from tests.faults import assert_same_checkpoints

SETTINGS = ("--data=MNIST", "--trainer.max_epochs=1", "--dashboard=false", "--trainer.enable_progress_bar=false")


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint"])
@pytest.mark.parametrize(("monitor", "wrong", "right"), [("val/acc", "min", "max"), ("train/loss", "max", "min")])
def test_the_worst_is_not_taken_for_the_best(error_of, train, tiny_root, callback, monitor, wrong, right):
    options = (f"--trainer.callbacks+={callback}", f"--trainer.callbacks.monitor={monitor}")
    refused = error_of(fit, *SETTINGS, f"--data.root={tiny_root}", *options, f"--trainer.callbacks.mode={wrong}")
    assert refused.endswith(
        f"{callback}: mode is {wrong}, expected {right} for {monitor}: change --trainer.callbacks.mode"
    )
    train(*options, f"--trainer.callbacks.mode={right}")


class Watcher(Callback):
    """A callback of the user's, whose attributes mean something else."""

    def __init__(self, monitor: str = "val/loss", mode: str = "verbose"):
        self.monitor, self.mode = [monitor], mode


def test_a_monitor_of_the_users_own(train):
    train("--trainer.callbacks+=tests.test_fit_cli.Watcher", "--trainer.callbacks.mode=verbose")


def test_precision_auto_is_kept_by_a_resumed_run(train, monkeypatch):
    settings = ("--data=MNIST", "--trainer.precision=auto", "--trainer.max_epochs=2", "--model.lr_schedule=null")
    whole = train(*settings, "--trainer.precision=32-true", "--trainer.default_root_dir=whole")
    monkeypatch.setattr(hardware, "choose_precision", lambda accelerator: ("32-true", "of this machine"))
    train(*settings, "--trainer.max_epochs=1")
    monkeypatch.setattr(hardware, "choose_precision", lambda accelerator: ("bf16-mixed", "of another machine"))
    assert_same_checkpoints(train(*settings, "--ckpt_path=last"), whole)


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK"])
def test_a_rank_without_other_processes(in_new_process, tiny_root, variable):
    """rank_zero_only would print and save nothing, and the exit code would be 0."""
    code = f"import os; os.environ[{variable!r}] = '1'\n"
    code += "from lightning.pytorch.utilities.rank_zero import rank_zero_only\nrank_zero_only.rank = 1\n"
    code += "from cnn_lightning.cli.fit import fit\nfit()"
    ended, _, errors = in_new_process(code, "fit.py", *SETTINGS, f"--data.root={tiny_root}")
    assert ended == 2
    assert errors.splitlines()[-1].startswith("error: this process is not the first by LOCAL_RANK, RANK or SLURM_")


@pytest.mark.parametrize(("limit", "steps"), [("1", 1), ("1.0", 6), ("2", 2), ("0.5", 3)])
def test_limits_count_batches_or_are_a_share(train, limit, steps):
    run = train("--data=MNIST", "--data.val_size=40", f"--trainer.limit_train_batches={limit}")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == steps
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["limit_train_batches"] == float(limit)


def test_a_key_that_is_given_twice(error_of, tmp_path):
    (tmp_path / "twice.yaml").write_text("model:\n  net: LeNetCNN\ntrainer: {}\nmodel:\n  optimizer: SGD\n")
    assert error_of(fit, "--config=twice.yaml") == "error: --config twice.yaml: model is given twice, in line 4 again"


def test_epochs_that_are_not_validated(train):
    train("--data=MNIST", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2")
    assert "The last 1 of 3 epochs will not be validated" in train.output
    train("--data=MNIST", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2")
    assert "not be validated" not in train.output


@pytest.mark.parametrize("test", ["best", "last"])
def test_epoch_that_is_tested_is_said_before(test, capsys):
    """The learning rate is so high that the last epoch is not the best."""
    options = ("--data=Digits", "--model.net=MLP", "--model.optimizer.lr=0.05", "--model.lr_schedule=null")
    run = fit([*options, "--trainer.max_epochs=8", "--trainer.accelerator=cpu", f"--test={test}"])
    folder = run.checkpoint.parent
    epochs = {name: epoch_of(read_checkpoint(folder / f"{name}.ckpt")) for name in ("best", "last")}
    assert epochs["best"] < epochs["last"] == 8
    assert run.checkpoint == folder / f"{test}.ckpt"
    assert f"checkpoint  logs/MLP-Digits/version_0/checkpoints/{test}.ckpt\n" in capsys.readouterr().out
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["test"] == test
    assert newest_tested([run.folder.parent]).absolute() == run.checkpoint
    weights, expected = run.model.state_dict(), read_checkpoint(run.checkpoint)["state_dict"]
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
