"""Workarounds of Lightning 2.6.6, one function or class each; a test of each fails once it is not needed."""

import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from torch.nn.parallel import DistributedDataParallel


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the list of callbacks, an attribute that Lightning sets outside of the class and so hides from mypy."""
    return trainer.callbacks  # type: ignore[attr-defined]


def keep_integers_integers() -> None:
    """Let ``limit_train_batches: 1`` be one batch, and 1.0 all of them.

    jsonargparse tries the types of a union in their order. Another annotation in Lightning lists float first, and the
    cache of ``typing`` gives that order to all. No upstream issue was found (seen in 2.6.6, jsonargparse 4.53).
    """
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    for name, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[name] = int | float | None


def begin_next_epoch_with_max_steps(trainer: Trainer) -> None:
    """Let a run with ``max_steps`` that was saved at the end of an epoch begin the next one when it is resumed.

    Without this, Lightning believes that it stopped in the middle of the epoch, and skips the next one.
    https://github.com/Lightning-AI/pytorch-lightning/issues/19617 (open, seen in 2.2 to 2.6.6)
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def count_epoch_as_begun(fit_loop: dict[str, Any], validated: bool) -> None:
    """Correct the saved counters of an epoch that was cut short, by ``should_stop`` or ``max_steps``.

    Lightning counts it as completed, so that a resumed run skips the rest. Where the last thing was a validation, it
    also counts the batch before once more. No upstream issue was found (seen in 2.6.6); of the same kind, and open:
    https://github.com/Lightning-AI/pytorch-lightning/issues/19617

    Args:
        fit_loop: Counters of the loop, as they are in a checkpoint; changed in place.
        validated: Whether a validation followed the last batch.
    """
    epochs = fit_loop["epoch_progress"]
    if epochs["current"]["processed"] == epochs["current"]["started"] and validated:
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["started"] - 1


def steps_of_run(trainer: Trainer, epoch: int = 0, made: int = 0) -> float:
    """Count the optimizer steps of a run from an epoch on, plus those that are made.

    ``estimated_stepping_batches`` multiplies the first epoch, also where GradientAccumulationScheduler changes the
    steps of an epoch; it is documented to raise there. No upstream issue was found (seen in 2.6.6).
    """
    steps = trainer.estimated_stepping_batches  # prepares the loader, too
    if trainer.max_epochs is None or trainer.max_epochs < 0 or steps == float("inf"):
        return steps
    scheduler = next((c for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)), None)
    for number in range(epoch, max(trainer.max_epochs, 1)):
        batches = scheduler.get_accumulate_grad_batches(number) if scheduler else trainer.accumulate_grad_batches
        made += math.ceil(trainer.num_training_batches / batches)
    return made if trainer.max_steps < 0 else min(made, trainer.max_steps)


def resume_accumulation(trainer: Trainer, model: LightningModule) -> None:
    """Accumulate the batches of an epoch that is resumed as GradientAccumulationScheduler says.

    It is called at the start of an epoch only. No upstream issue was found (seen in 2.6.6).
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            callback.on_train_epoch_start(trainer, model)


def restore_loader_position(trainer: Trainer, position: dict[str, Any]) -> None:
    """Give the training loader its state back.

    Lightning forgets it where ``configure_optimizers`` asks for ``trainer.estimated_stepping_batches``.
    https://github.com/Lightning-AI/pytorch-lightning/issues/20550 (open, seen in 2.5 to 2.6.6)
    """
    if trainer.train_dataloader is not None:
        trainer.train_dataloader.load_state_dict(position)


def skip_trained_batches(trainer: Trainer) -> None:
    """Skip the batches of an epoch that were trained before it was interrupted.

    Lightning restarts a loader that has no state, so that some images are trained twice, and others not.
    https://github.com/Lightning-AI/pytorch-lightning/issues/18060 (seen in 2.6.6)
    """
    progress, fetcher = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop._data_fetcher
    if fetcher is not None and trainer.fit_loop.restarted_mid_epoch:
        restart_loader(trainer)
        for _ in range(progress.current.ready):
            next(fetcher.iterator)  # type: ignore[arg-type]  # it exists once training starts


def restart_loader(trainer: Trainer) -> None:
    """Restart the training loader of a resumed run after the random state is restored.

    Lightning starts it before that; in the first epoch it does so in every run.
    """
    if trainer.current_epoch and trainer.fit_loop._data_fetcher is not None:
        iter(trainer.fit_loop._data_fetcher)


def sync_buffers_in_training_only(trainer: Trainer) -> None:
    """Stop DistributedDataParallel from sharing buffers in each forward pass of validation.

    Lightning validates through the wrapper; ranks with different numbers of validation batches then wait for ever.
    https://github.com/pytorch/pytorch/issues/54059 (closed with this workaround, seen in torch 2.10 to 2.15)
    """
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        trainer.strategy.model.broadcast_buffers = False


def remove_weight_averaging(trainer: Trainer) -> None:
    """Let a test after training use the weights of the checkpoint.

    In a test, WeightAveraging swaps in its own copy, which holds the weights that were not averaged once the checkpoint
    is loaded. No upstream issue was found (seen in 2.6.6); of the same kind, and open:
    https://github.com/Lightning-AI/pytorch-lightning/issues/21724
    """
    callbacks = callbacks_of(trainer)
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]


@contextmanager
def keyboard_interrupt(trainer: Trainer) -> Iterator[None]:
    """Convert Lightning's SystemExit(1) back to KeyboardInterrupt.

    https://github.com/Lightning-AI/pytorch-lightning/pull/19976 (by design, since 2.4)
    """
    try:
        yield
    except SystemExit as stop:
        if stop.code == 1 and trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise


class QuickHookNames(LightningModule):
    """Sets the name of the current hook past the checks of ``nn.Module``, as Lightning does about 46 times a step.

    Without it, training loses 0.04 of the speed of a plain loop (batches of 20, docs/speed.md). No upstream issue
    was found (seen in 2.6.6).
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class NoProfiler(PassThroughProfiler):
    """Returns one context for all actions; Lightning's own makes a generator for each, about 70 times a step.

    Without it, training loses 0.01 of the speed of a plain loop (batches of 20, docs/speed.md). No upstream issue was
    found (seen in 2.6.6).
    """

    nothing: AbstractContextManager = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        """Measure nothing."""
        return self.nothing
