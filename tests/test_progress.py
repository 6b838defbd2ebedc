"""The progress bar."""

import time

from lightning.pytorch import Trainer

from cnn_lightning import MNIST, ImageClassifier, LeNetCNN
from cnn_lightning.callbacks import ProgressBar


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
