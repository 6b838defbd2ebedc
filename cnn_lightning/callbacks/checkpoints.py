"""The two checkpoints of a run."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from cnn_lightning.callbacks.hooks import IdleInSteps
from cnn_lightning.callbacks.signals import Signals
from cnn_lightning.checkpointing.checkpoint_io import DamagedError, read_checkpoint
from cnn_lightning.errors import UsageError


class _RunCheckpoint(IdleInSteps, ModelCheckpoint):
    """Keeps one file, ``checkpoints/NAME.ckpt`` in the folder of the run."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(filename=name, enable_version_counter=False, **settings)

    # Lightning asks for the key in every hook of every step, and ModelCheckpoint writes it anew each time.
    state_key = cached_property(ModelCheckpoint.state_key.fget)

    # It need not ask in every step whether to save.
    on_train_batch_end = Callback.on_train_batch_end

    @property
    def path(self) -> Path:
        """The file, which may not be there yet."""
        return Path(self.dirpath) / f"{self.filename}.ckpt"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to take the place of another run, as with a logger whose folder is always the same.

        Raises:
            UsageError: The folder has a checkpoint already.
        """
        if trainer.ckpt_path is None and trainer.is_global_zero and self.path.exists():
            raise UsageError(f"{self.path} is of another run: give --trainer.logger another folder, name or version")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the file of the run that goes on, wherever its folder is now.

        Lightning would go by the path that was saved.
        """
        if self.path.is_file():
            self.best_model_path = str(self.path)


class BestCheckpoint(_RunCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, of the lowest ``val/loss``, and prints a line whenever it falls."""

    def __init__(self) -> None:
        super().__init__("best", monitor="val/loss", mode="min")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best file of the run, and with what that says of itself; a run in a new folder has none.

        Lightning would forget the best of a run whose folder was moved, and let a worse one take its place. Nor need
        the score in another file be that of this one: the process may have been killed between the two.

        Raises:
            UsageError: The file is damaged.
        """
        super().load_state_dict(state_dict)
        if not self.best_model_path:
            return
        try:
            score = read_checkpoint(self.path)["callbacks"][self.state_key]["best_model_score"]
        except (DamagedError, KeyError) as error:
            raise UsageError(f"{self.path} is damaged: move it away to go on without it") from error
        if score is not None:
            self.best_model_score = self.kth_value = score
            self.kth_best_model_path = self.best_model_path
            self.best_k_models = {self.best_model_path: score}

    # Lightning saves in one hook or the other, depending on how often it validates.
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this epoch is the best so far."""
        before = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        self._report(trainer, before)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation is the best so far."""
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        self._report(trainer, before)

    def _report(self, trainer: Trainer, before: float | None) -> None:
        if self.best_model_score is before:
            return
        score = trainer.callback_metrics["val/loss"]  # not best_model_score, which is infinite where this is NaN
        fall = f"{score:.4f}" if before is None else f"{before:.4f} -> {score:.4f}"
        line = (
            f"epoch {trainer.current_epoch + 1}: val/loss {fall}, val/acc {trainer.callback_metrics['val/acc']:.2%}, "
            f"saved as {Path(self.best_model_path).name}"
        )
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(line)
        elif trainer.is_global_zero:
            print(line)


class LastCheckpoint(_RunCheckpoint):
    """Keeps ``checkpoints/last.ckpt``, from which an interrupted run goes on exactly as if it had not been.

    It is saved at the end of every epoch, every ``every_n_steps`` optimizer steps, and when training is asked to stop.
    ``ModelCheckpoint(save_last=True)`` would keep the last of the epochs that were the best so far.

    Args:
        every_n_steps: Optimizer steps; None for the end of epochs only.

    Raises:
        Stopped: By the hooks, after Ctrl-C and the like.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__("last", save_on_train_epoch_end=True)
        self.every_n_steps = every_n_steps
        self.signals = Signals()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        super().on_train_start(trainer, pl_module)
        self.signals.listen()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save after a step, if it is time to."""
        due = self._is_due(trainer)
        if not due and not self.signals.may_ask(trainer):
            return
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        # Gradients that add up are not saved. And Lightning, when a run goes on from here, leaves out a validation that
        # follows, and the end of the epoch.
        if not (epoch._should_accumulate() or trainer.is_last_batch or epoch._should_check_val_fx(fit._data_fetcher)):
            self._save_if(due, trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch, if it is time to."""
        accumulating = trainer.fit_loop.epoch_loop._should_accumulate()
        if not trainer.sanity_checking and not trainer.is_last_batch and not accumulating:
            self._save_if(self._is_due(trainer), trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_if(False, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obey a signal that came after the last epoch."""
        self._save_if(False, trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the curves to the disk first: they go on where the checkpoint does."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
                for path in Path(logger.log_dir).glob("events.*"):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def _save_if(self, due: bool, trainer: Trainer) -> None:
        asked = self.signals.asked(trainer)
        if (due or asked) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if asked:
            self.signals.obey(asked)
