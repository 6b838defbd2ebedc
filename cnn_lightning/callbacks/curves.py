"""Curves of loss, accuracy, speed and time, and the check that they are finite."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks.position import made_step, within_epoch
from cnn_lightning.errors import DivergedError
from cnn_lightning.metrics import metrics_of

SUMS = ("images", "seconds", "loss", "acc")


class Curves(Callback):
    """Logs loss, accuracy and speed, and stops a run whose loss or weights are not finite.

    ``train/loss`` and ``train/acc`` are means over the images since the point before, one point every
    ``log_every_n_steps`` optimizer steps and one at the end of an epoch; ``val`` is a mean over all validation
    images, as is ``test``, which the model logs. Accuracy is in [0, 1]. Their horizontal axis is the number of
    optimizer steps made. ``epoch/train_loss``, ``epoch/val_acc``, ``time/seconds`` and so on have the epoch, counted
    from 1. Speed and seconds count the time of training, without validation.

    The points go to the loggers directly: ``self.log`` in each step takes as long as a step of a small network, and
    Lightning logs a step only after its checkpoint is saved, so that a resumed run would lose the point.

    Attributes:
        sums: Totals of this epoch with the keys SUMS; loss and acc are multiplied by images.
        val: Results of the last validation of the epoch.
        since: Start of the current interval (``time.perf_counter``), moved forward by the time of validations.
    """

    def __init__(self) -> None:
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.val: dict[str, float] = {}
        self.since = 0.0
        self._paused = 0.0
        self._resumed = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that the run is resumed, and may have been tested before."""
        self._resumed |= trainer.state.fn == TrainerFn.FITTING

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums."""
        self.sums, self.val = dict.fromkeys(SUMS, 0.0), {}
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a training point where one is due; a step takes several batches where gradients accumulate."""
        interval = getattr(trainer, "log_every_n_steps", 0)  # 0: only at the end of an epoch
        if interval and trainer.global_step % interval == 0 and made_step(trainer, batch_idx):
            self._log_training(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a training point for the last steps, and a point for the epoch, unless it is cut short."""
        if within_epoch(trainer):
            return  # a resumed run trains the rest of it
        if metrics_of(pl_module, "train").update_called:
            self._log_training(trainer, pl_module)
        sums = self.sums
        point = {f"epoch/train_{name}": sums[name] / sums["images"] for name in ("loss", "acc")}
        point |= {f"epoch/{name.replace('/', '_')}": float(value) for name, value in self.val.items()}
        point |= {"time/images_per_second": sums["images"] / sums["seconds"], "time/seconds": sums["seconds"]}
        for logger in trainer.loggers:
            # Only TensorBoard has a horizontal axis for each curve.
            by_epoch = isinstance(logger, TensorBoardLogger)
            logger.log_metrics(point, step=trainer.current_epoch + 1 if by_epoch else trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # queued steps belong to training
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation results, and start the clock again."""
        results = {name: trainer.callback_metrics[name].item() for name in ("val/loss", "val/acc")}
        if trainer.state.fn == TrainerFn.FITTING:
            self._check_finite(trainer, results["val/loss"], "val/loss")
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.val = results
            _log(trainer, results)
        self.since += time.perf_counter() - self._paused

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let TensorBoard draw the test results as a line from step 0 to the end, where Lightning logs them.

        Its charts leave out what is below the 5th or above the 95th percentile: of single points, the lowest and the
        highest run. In a resumed run that was tested before, the line continues; a second one would run back to step 0.
        """
        results = metrics_of(pl_module, "test").compute()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.global_step and not self._was_tested(logger):
                logger.log_metrics({f"test/{name}": results[name].item() for name in ("loss", "acc")}, step=0)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise rather than overwrite a checkpoint with weights that are not finite.

        Raises:
            DivergedError: A weight is not finite.
        """
        weights = checkpoint["state_dict"].values()
        if trainer.state.fn == TrainerFn.FITTING and not all(weight.isfinite().all() for weight in weights):
            _stop(trainer, "a weight is not a finite number")

    def _was_tested(self, logger: TensorBoardLogger) -> bool:
        if not self._resumed:
            return False
        from cnn_lightning.reporting.plots import read_scalars  # imports Matplotlib

        return "test/loss" in read_scalars(Path(logger.log_dir))

    def _log_training(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = metrics_of(pl_module, "train")
        values = metrics.compute()
        metrics.reset()
        # One transfer, which waits for the device, so that its time is counted.
        numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        self._check_finite(trainer, numbers["loss"], "train/loss")
        images, seconds = numbers["images"], time.perf_counter() - self.since
        self.since += seconds
        point = {"train/loss": numbers["loss"], "train/acc": numbers["acc"]}
        _log(trainer, point | {"train/images_per_second": images / seconds})
        trainer.progress_bar_metrics.update(point)
        trainer.callback_metrics.update({f"train/{name}": values[name] for name in ("loss", "acc")})
        terms = {"images": images, "seconds": seconds}
        terms |= {name: numbers[name] * images for name in ("loss", "acc")}
        self.sums = {name: self.sums[name] + term for name, term in terms.items()}

    @staticmethod
    def _check_finite(trainer: Trainer, value: float, name: str) -> None:
        if not math.isfinite(value):
            _stop(trainer, f"{name} is {value}")


class RateMonitor(LearningRateMonitor):
    """Logs the learning rate of a step where a point is due; Lightning also does where the run is asked to stop."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log a point every ``log_every_n_steps`` steps."""
        interval = getattr(trainer, "log_every_n_steps", 0)
        if interval and (trainer.global_step + 1) % interval == 0:
            super().on_train_batch_start(trainer, *args, **kwargs)


class CurvesLogger(TensorBoardLogger):
    """Drops the scalar "epoch", counted from 0, that Lightning adds to whatever it logs itself."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log all metrics except "epoch"."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def _log(trainer: Trainer, point: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(point, step=trainer.global_step)


def _stop(trainer: Trainer, what: str) -> NoReturn:
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    raise DivergedError(
        f"training has diverged: {what} at step {trainer.global_step:,}, where the learning rate is {lr:.3g}: try a "
        "tenth of --model.optimizer.lr, or --trainer.gradient_clip_val 1"
    )
