"""The two checkpoints of a run."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cnn_lightning.callbacks.hooks import IdleInSteps


class _RunCheckpoint(IdleInSteps, ModelCheckpoint):
    """Keeps one file, ``checkpoints/NAME.ckpt`` in the folder of the run."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(filename=name, enable_version_counter=False, **settings)

    # Lightning asks for the key in every hook of every step, and ModelCheckpoint writes it anew each time.
    state_key = cached_property(ModelCheckpoint.state_key.fget)

    # It saves at the end of an epoch, and need not ask in every step whether to.
    on_train_batch_end = Callback.on_train_batch_end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the file of the run that goes on, wherever its folder is now.

        A run in a new folder has no file yet. Lightning would go by the path that was saved: it would forget the
        best of a run whose folder was moved, and let a worse one take its place.
        """
        path = Path(self.dirpath) / f"{self.filename}.ckpt"
        if path.is_file():
            score = state_dict["best_model_score"]
            scores = {} if score is None else {str(path): score}
            here = {"dirpath": self.dirpath, "best_model_path": str(path), "kth_best_model_path": str(path)}
            super().load_state_dict({**state_dict, **here, "best_k_models": scores})


class BestCheckpoint(_RunCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, of the lowest ``val/loss``, and prints a line whenever it falls."""

    def __init__(self) -> None:
        super().__init__("best", monitor="val/loss", mode="min")

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
    """Keeps ``checkpoints/last.ckpt``, of the last whole epoch, from which an interrupted run goes on.

    ``ModelCheckpoint(save_last=True)`` would keep the last of the epochs that were the best so far.
    """

    def __init__(self) -> None:
        super().__init__("last", save_on_train_epoch_end=True)
