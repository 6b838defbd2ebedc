"""The two checkpoints of a run: best.ckpt and last.ckpt."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from cnn_lightning.callbacks.position import made_step, validation_due
from cnn_lightning.callbacks.progress import EpochLines
from cnn_lightning.callbacks.signals import Signals
from cnn_lightning.checkpointing.safe_loading import DamagedError, read_checkpoint
from cnn_lightning.errors import UsageError


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, of the lowest ``val/loss``, and prints a line whenever it falls.

    Args:
        folder: Where it is kept. Defaults to ``checkpoints`` in the folder of the logger.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder, "best", monitor="val/loss", mode="min", enable_version_counter=False)

    @property
    def path(self) -> Path:
        """The file, which need not exist yet."""
        return Path(str(self.dirpath)) / "best.ckpt"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to overwrite the checkpoints of another run, as with a logger whose folder is always the same.

        Raises:
            UsageError: The folder has checkpoints already.
        """
        for path in (self.path, self.path.with_name("last.ckpt")):
            if trainer.ckpt_path is None and trainer.is_global_zero and path.exists():
                raise UsageError(f"{path} is of another run: give --trainer.logger another folder, name or version")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score from best.ckpt itself; a run in a new folder has none.

        Lightning would restore path and score of the resumed checkpoint: it forgets the best of a run whose folder was
        moved, and the score of best.ckpt is newer where the process was killed between the two files.

        Raises:
            UsageError: best.ckpt is damaged.
        """
        if not self.path.is_file():
            return
        self.best_model_path = str(self.path)
        try:
            score = read_checkpoint(self.path)["callbacks"][self.state_key]["best_model_score"]
        except (DamagedError, KeyError) as error:
            raise UsageError(f"{self.path} is damaged: move it away to resume without it") from error
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

    def _report(self, trainer: Trainer, before: Any) -> None:
        if self.best_model_score is before:
            return
        score = trainer.callback_metrics["val/loss"]  # not best_model_score, which is infinite where this is NaN
        bar = trainer.progress_bar_callback
        if isinstance(bar, EpochLines):
            bar.saved = score.item()  # its line says so
            return
        fall = f"{score:.4f}" if before is None else f"{before:.4f} -> {score:.4f}"
        accuracy = trainer.callback_metrics["val/acc"]
        line = f"epoch {trainer.current_epoch + 1}: val/loss {fall}, val/acc {accuracy:.2%}, saved as best.ckpt"
        if bar is not None:
            bar.print(line)
        elif trainer.is_global_zero:
            print(line)


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, from which an interrupted run resumes as if nothing had happened.

    It is saved at the end of every epoch, every ``every_n_steps`` optimizer steps, and when a signal asks to stop.
    ``ModelCheckpoint(save_last=True)`` would keep the last of the best epochs.

    Args:
        best: Its folder is the folder of the file.
        every_n_steps: Optimizer steps between two saves; None for the end of epochs only.

    Raises:
        Stopped: By the hooks, after Ctrl-C and similar signals.
    """

    def __init__(self, best: BestCheckpoint, every_n_steps: int | None = None) -> None:
        self.best = best
        self.every_n_steps = every_n_steps
        self.signals = Signals()

    @property
    def path(self) -> Path:
        """The file, which need not exist yet."""
        return self.best.path.with_name("last.ckpt")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        self.signals.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step if one is due or a signal asks; not where a resumed run would miss something.

        Accumulated gradients are not saved. From a checkpoint before a validation or before the end of an epoch,
        Lightning resumes after it.
        """
        due = self._is_due(trainer)
        if not due and not self.signals.may_ask(trainer):
            return
        if made_step(trainer, batch_idx) and not trainer.is_last_batch and not validation_due(trainer, batch_idx):
            self._save_if(due, trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch."""
        if not trainer.sanity_checking and not trainer.is_last_batch and made_step(trainer, trainer.fit_loop.batch_idx):
            self._save_if(self._is_due(trainer), trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch, or where it is cut short."""
        self._save_if(True, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obey a signal that arrived after the last save."""
        self._obey(self.signals.asked(trainer))

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def _save_if(self, due: bool, trainer: Trainer) -> None:
        asked = self.signals.asked(trainer)
        if due or asked:
            trainer.save_checkpoint(self.path, weights_only=False)
        self._obey(asked)

    def _obey(self, number: int) -> None:
        if number:
            self.signals.obey(number)
