"""ScheduleSpan: the learning-rate schedule spans the steps that are made, or a warning says that it does not."""

import sys

from lightning.pytorch import Callback, LightningModule, Trainer

from cnn_lightning.lightning_fixes import steps_of_run


class ScheduleSpan(Callback):
    """Warns once where the number of steps changes after the schedule was built.

    A callback may change ``trainer.accumulate_grad_batches``, a data module the length of its loader, a hook may skip
    the rest of an epoch. The rate would then end in the middle of the schedule.
    """

    def __init__(self) -> None:
        self._warned = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps made and left with those of the schedule."""
        spans = [getattr(config.scheduler, "total_steps", 0) for config in trainer.lr_scheduler_configs]
        if self._warned or not any(spans):
            return
        steps = steps_of_run(trainer, trainer.current_epoch, trainer.global_step)
        if steps != spans[0] and trainer.is_global_zero:
            self._warned = True
            print(
                f"warning: the learning-rate schedule spans {spans[0]:,} steps, but {steps:,} will be made, because "
                "something changed their number after training began: use --model.lr_schedule null",
                file=sys.stderr,
            )
