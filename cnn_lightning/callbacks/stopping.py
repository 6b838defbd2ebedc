"""StopWithinEpoch: a run that stops within an epoch can be resumed there, whatever stops it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from cnn_lightning.callbacks.position import made_step, validation_due, within_epoch
from cnn_lightning.lightning_fixes import callbacks_of, count_epoch_as_begun


class StopWithinEpoch(Callback):
    """Lets ``max_time``, ``max_steps`` or a callback that sets ``trainer.should_stop`` stop a run within an epoch.

    The checkpoint that is saved then says so; Lightning would count the epoch as completed, and a resumed run would
    skip the rest. The run stops after an optimizer step, because accumulated gradients are not saved. It is not
    validated there unless it would be anyway, because the validation could change the best checkpoint.
    """

    def __init__(self) -> None:
        self._postponed = False
        self._limit_val_batches: int | float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Postpone a stop until the optimizer has made its step, and switch validation off."""
        if self._postponed:
            trainer.should_stop = True
        if not trainer.should_stop or not trainer.fit_loop.epoch_loop.done:
            return
        self._postponed = not made_step(trainer, batch_idx)
        if self._postponed:
            trainer.should_stop = False
        elif not validation_due(trainer, batch_idx):
            self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep callbacks from taking the validation before for a new one."""
        if within_epoch(trainer):
            for callback in _monitors(trainer):
                vars(callback)["on_train_epoch_end"] = _nothing

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the epoch as begun."""
        if within_epoch(trainer):
            validated = validation_due(trainer, trainer.fit_loop.batch_idx)
            count_epoch_as_begun(checkpoint["loops"]["fit_loop"], validated)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Postpone a stop that a validation within the accumulation of gradients has asked for."""
        stops = trainer.should_stop and not trainer.sanity_checking
        if stops and not made_step(trainer, trainer.fit_loop.batch_idx):
            trainer.should_stop, self._postponed = False, True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch validation on again, because ``min_epochs`` keeps the run from stopping."""
        self._switch_validation_on(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Switch everything on again."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch everything on again."""
        for callback in _monitors(trainer):
            vars(callback).pop("on_train_epoch_end", None)
        self._postponed = False
        self._switch_validation_on(trainer)

    def _switch_validation_on(self, trainer: Trainer) -> None:
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None


def _monitors(trainer: Trainer) -> list[Callback]:
    """The callbacks that Lightning calls after an epoch to read a metric."""
    callbacks = callbacks_of(trainer)
    return [each for each in callbacks if isinstance(each, EarlyStopping | ModelCheckpoint) and each.monitor]


def _nothing(*_: Any) -> None:
    pass
