"""The calibration of best.ckpt, from the validation that made it the best."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from cnn_lightning.callbacks.checkpoints import BestCheckpoint
from cnn_lightning.callbacks.logits import KeepLogits
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.calibration import calibrate, calibration_file, save_calibration


class SaveCalibration(Checkpoint):  # Lightning calls checkpoint callbacks last, in their order: this one after best
    """Saves ``best.calibration.json`` whenever best.ckpt is saved, without a validation of its own.

    Args:
        best: Keeps the checkpoint.
        kept: Keeps the logits of the validation images.
        risk: Share of wrong answers among those given, in [0, 1].

    Raises:
        UsageError: By the hooks, if the file cannot be written.
    """

    def __init__(self, best: BestCheckpoint, kept: KeepLogits, risk: float) -> None:
        self.best, self.kept, self.risk = best, kept, risk
        self._score: Tensor | None = None  # of the checkpoint that was calibrated last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the best.ckpt of a resumed run alone: it was calibrated when it was saved."""
        self._score = self.best.best_model_score

    # Like BestCheckpoint, which saves in one hook or the other.
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if best.ckpt was saved."""
        self._save_if_new(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if best.ckpt was saved."""
        self._save_if_new(trainer)

    def _save_if_new(self, trainer: Trainer) -> None:
        if self.best.best_model_score is self._score:
            return
        self._score = self.best.best_model_score
        if not trainer.is_global_zero:
            return
        path = self.best.path
        try:
            save_calibration(calibrate(self.kept.logits, self.kept.labels, self.risk), path)
        except OSError as error:
            raise UsageError(
                f"cannot save {calibration_file(path)} ({error.strerror}): make room, or change "
                "--trainer.default_root_dir"
            ) from error
