"""The two checkpoints of a run."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, of the lowest ``val/loss``, and prints a line whenever it falls."""

    def __init__(self) -> None:
        super().__init__(filename="best", monitor="val/loss", mode="min", enable_version_counter=False)

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best of the run, also where its folder was moved; a new folder starts without one."""
        best = Path(self.dirpath) / "best.ckpt"
        if best.is_file():
            score = state_dict["best_model_score"]
            here = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
            super().load_state_dict({**state_dict, **here, "best_k_models": {str(best): score}})

    def _report(self, trainer: Trainer, before: float | None) -> None:
        if self.best_model_score is before:
            return
        fall = f"{self.best_model_score:.4f}" if before is None else f"{before:.4f} -> {self.best_model_score:.4f}"
        line = (
            f"epoch {trainer.current_epoch + 1}: val/loss {fall}, val/acc {trainer.callback_metrics['val/acc']:.2%}, "
            f"saved as {Path(self.best_model_path).name}"
        )
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(line)
        elif trainer.is_global_zero:
            print(line)


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt``, of the last whole epoch, from which an interrupted run goes on.

    ``ModelCheckpoint(save_last=True)`` would keep the last of the epochs that were the best so far.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
