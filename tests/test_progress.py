"""The progress bar, and the lines that take its place where there is no terminal."""

import os
import re
import signal
import sys
import time
from argparse import Namespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback, TQDMProgressBar

from cnn_lightning import MNIST, ImageClassifier, LeNetCNN
from cnn_lightning.callbacks import EpochLines, ProgressBar
from cnn_lightning.cli.classifier_cli import progress_bar
from tests.conftest import scalars
from tests.faults import add_callback


def draw(tiny_root, capsys, pause, monkeypatch):
    """Train for 36 steps that take ``pause`` seconds by the clock; return what the bar drew of them."""
    clock = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * pause)
    run = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[ProgressBar()],
                  enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1)  # fmt: skip
    run.fit(ImageClassifier(LeNetCNN()), MNIST(tiny_root, batch_size=10))
    return [line for line in capsys.readouterr().out.split("\r") if line.startswith("Epoch 1/1")]


def test_bar_is_drawn_by_time(tiny_root, capsys, monkeypatch):
    slow = draw(tiny_root, capsys, 0.25, monkeypatch)
    fast = draw(tiny_root, capsys, 0.01, monkeypatch)
    assert all(any(f" {step}/36" in line for line in slow) for step in range(1, 37))
    drawn = {step for step in range(1, 37) if any(f" {step}/36" in line for line in fast)}
    assert drawn == {1, 21, 36}  # the first, one 0.2 s later, and the last


def test_bar_shows_the_point_of_the_training_curve(tiny_root, capsys, monkeypatch):
    last = draw(tiny_root, capsys, 0.25, monkeypatch)[-1]
    assert "train/loss=" in last
    assert "train/acc=" in last
    assert "v_num" not in last


class Spoil(Callback):
    """Puts noise into the weights before the last batch of an epoch, so that an earlier validation stays the best."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx + 1 == trainer.num_training_batches:
            with torch.no_grad():
                for weight in pl_module.net.parameters():
                    weight.add_(torch.randn_like(weight))


class StopAfter(Callback):
    """Asks to stop at the end of the first epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def lines_of(output):
    return [line for line in output.splitlines() if line.startswith("epoch ")]


LINES = "--trainer.enable_progress_bar=null"


class TestLines:
    def test_a_line_has_the_points_of_its_epoch(self, train):
        run = train(LINES, "--trainer.max_epochs=3", "--data.val_size=40")
        curves = {tag: [value for _, value in points] for tag, points in scalars(run).items()}
        tags = ("epoch/train_loss", "epoch/train_acc", "epoch/val_loss", "epoch/val_acc", "time/seconds")
        lowest, expected = float("inf"), []
        for number, (loss, acc, val_loss, val_acc, seconds) in enumerate(zip(*map(curves.get, tags), strict=True)):
            line = f"epoch {number + 1}/3: train/loss {loss:.4f}, train/acc {acc:.2%}, val/loss {val_loss:.4f}, "
            line += f"val/acc {val_acc:.2%}, {seconds:.1f} s"
            expected.append(line + ", saved as best.ckpt" * (val_loss < lowest))
            lowest = min(lowest, val_loss)
        assert lines_of(train.output) == expected
        assert "\r" not in train.output
        assert not train.errors

    def test_without_checkpoints(self, train):
        train(LINES, "--trainer.enable_checkpointing=false")
        (line,) = lines_of(train.output)
        assert re.fullmatch(
            r"epoch 1/1: train/loss [\d.]+, train/acc [\d.]+%, val/loss [\d.]+, val/acc [\d.]+%, [\d.]+ s", line
        )

    def test_of_an_epoch_without_validation(self, train):
        train(LINES, "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2")
        first, second = lines_of(train.output)
        assert re.fullmatch(r"epoch 1/2: train/loss [\d.]+, train/acc [\d.]+%, [\d.]+ s", first)
        assert "val/loss" in second
        assert second.endswith("saved as best.ckpt")

    def test_the_best_of_several_validations_was_not_the_last(self, train, monkeypatch):
        add_callback(monkeypatch, Spoil())
        run = train(LINES, "--trainer.val_check_interval=0.5")
        (line,) = lines_of(train.output)
        (_, best), (_, last) = scalars(run)["val/loss"]
        assert best < last
        assert f"val/loss {last:.4f}" in line
        assert line.endswith(f" s, val/loss {best:.4f} saved as best.ckpt")

    def test_only_whole_epochs_have_one(self, train):
        train(LINES, "--trainer.max_epochs=-1", "--trainer.max_steps=25", "--data.batch_size=20")  # 18 an epoch
        (line,) = lines_of(train.output)
        assert line.startswith("epoch 1: ")

    def test_of_a_run_that_is_stopped_and_resumed(self, train, monkeypatch, capsys):
        settings = (LINES, "--trainer.max_epochs=3")
        with monkeypatch.context() as patch:
            add_callback(patch, StopAfter())
            with pytest.raises(SystemExit):
                train(*settings)
        (line,) = lines_of(capsys.readouterr().out)
        assert line.startswith("epoch 1/3: ")
        train(*settings, "--data=MNIST", "--ckpt_path=last")
        assert [line[:9] for line in lines_of(train.output)] == ["epoch 2/3", "epoch 3/3"]

    def test_an_error_of_a_callback_remains_what_it_is(self, train, monkeypatch, capsys):
        def fail(*args):
            raise RuntimeError("their own")

        add_callback(monkeypatch, LambdaCallback(on_train_epoch_end=fail))
        with pytest.raises(RuntimeError, match="their own"):
            train(LINES, "--trainer.log_every_n_steps=1000")
        assert lines_of(capsys.readouterr().out) == []

    def test_the_user_can_switch_them_off(self, train):
        train("--trainer.enable_progress_bar=false")
        (line,) = lines_of(train.output)
        assert re.fullmatch(r"epoch 1: val/loss [\d.]+, val/acc [\d.]+%, saved as best.ckpt", line)


class TestWhereABarIsDrawn:
    def settings(self, enable_progress_bar=None, callbacks=None):
        return Namespace(enable_progress_bar=enable_progress_bar, callbacks=callbacks)

    def test_in_a_notebook(self, monkeypatch, capsys):
        assert [type(bar) for bar in progress_bar(self.settings())] == [EpochLines]
        monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
        assert [type(bar) for bar in progress_bar(self.settings())] == [ProgressBar]

    def test_where_the_user_says_so(self):
        assert [type(bar) for bar in progress_bar(self.settings(True))] == [ProgressBar]
        assert progress_bar(self.settings(False)) == []
        assert progress_bar(self.settings(None, [TQDMProgressBar()])) == []

    def test_without_stdout(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        assert [type(bar) for bar in progress_bar(self.settings())] == [EpochLines]
