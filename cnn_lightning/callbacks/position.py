"""Where in an epoch a Trainer is: after an optimizer step, before a validation, or stopped within the epoch."""

from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


def made_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer made a step after this training batch, instead of accumulating its gradients."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def validation_due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch, also if nothing asks the run to stop."""
    every = trainer.check_val_every_n_epoch  # None: val_check_interval counts batches across epochs
    if not trainer.enable_validation or (every and (trainer.current_epoch + 1) % every):
        return False
    batches = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    interval = trainer.val_check_batch
    if interval is None:  # validation by time
        return False
    return trainer.is_last_batch if interval == float("inf") else (batches + 1) % interval == 0


def within_epoch(trainer: Trainer) -> bool:
    """Whether some batches of the current epoch are trained, and some are not."""
    return trainer.fit_loop.batch_idx >= 0 and not trainer.is_last_batch


def stopped_early(callbacks: Iterable[Callback]) -> bool:
    """Whether EarlyStopping has asked the run to stop, in this process or before it was resumed."""
    reasons = (callback.stopping_reason for callback in callbacks if isinstance(callback, EarlyStopping))
    return any(reason != EarlyStoppingReason.NOT_STOPPED for reason in reasons)
