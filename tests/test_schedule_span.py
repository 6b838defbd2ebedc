"""The learning-rate schedule spans the steps of a run, whatever changes their number."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.conftest import scalars
from tests.faults import Death, DieAt, add_callback, assert_same_result

SETTINGS = ("--model.net=MLP", "--data.batch_size=64", "--data.val_size=40", "--trainer.log_every_n_steps=1")


class Accumulate(Callback):
    """Changes the number of steps without telling Lightning's scheduler."""

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch


@pytest.mark.parametrize("schedule", ["OneCycle", "Cosine"])
def test_gradient_accumulation_scheduler(train, monkeypatch, schedule):
    add_callback(monkeypatch, GradientAccumulationScheduler({1: 4}))
    run = train(*SETTINGS, f"--model.lr_schedule={schedule}", "--trainer.max_epochs=3")
    assert "warning" not in train.errors
    rates = [rate for _, rate in scalars(run)["lr-AdamW"]]
    assert len(rates) == 6 + 6 + 6  # logged before each batch
    assert scalars(run)["val/loss"][-1][0] == 6 + 2 + 2  # steps
    assert rates[-1] < 0.05 * max(rates)


def test_a_callback_of_the_users(train, monkeypatch):
    add_callback(monkeypatch, Accumulate())
    train(*SETTINGS, "--trainer.max_epochs=3")
    (line,) = [line for line in train.errors.splitlines() if line.startswith("warning")]
    assert line.startswith("warning: the learning-rate schedule spans 18 steps, but 12 will be made")


def test_no_warning_without_a_change(train):
    for options in ((), ("--trainer.max_steps=7",), ("--trainer.limit_train_batches=0.5",), ("--trainer.max_epochs=-1",
                     "--trainer.max_steps=9"), ("--trainer.accumulate_grad_batches=4",)):  # fmt: skip
        train(*SETTINGS, "--trainer.max_epochs=2", *options)
        assert "warning" not in train.errors


def test_resumed_within_an_epoch(train, monkeypatch):
    options = (*SETTINGS, "--trainer.max_epochs=3", "--save_every_n_steps=1", "--data=MNIST", "--ckpt_path=last")
    accumulate = GradientAccumulationScheduler({1: 2})
    with monkeypatch.context() as patch:
        add_callback(patch, accumulate)
        whole = train(*options, "--trainer.default_root_dir=whole")
        add_callback(patch, DieAt(8))
        with pytest.raises(Death):
            train(*options)
    add_callback(monkeypatch, accumulate)
    assert_same_result(train(*options), whole)
