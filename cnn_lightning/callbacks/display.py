"""What is seen in the terminal while a network trains."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.utilities.model_summary import summarize

from cnn_lightning.callbacks.hooks import IdleInSteps


class ProgressBar(IdleInSteps, TQDMProgressBar):
    """Lightning's bar, drawn five times a second, with epochs counted from 1, and four digits of each metric."""

    SECONDS = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def _should_update(self, current: int, total: int) -> bool:
        # Lightning counts steps, but those of one network take a hundred times as long as those of another. Drawing
        # takes about as long as a step of a small one, and makes a GPU wait for the metrics.
        now = time.monotonic()
        if not self.is_enabled or (now - self._last < self.SECONDS and current != total):
            return False
        self._last = now
        return True

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin the bar of an epoch."""
        super().on_train_epoch_start(trainer, *args)
        of_all = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}{of_all}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """Format loss and accuracy."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name: f"{value:.4f}" for name, value in metrics.items()}


class LayerTable(IdleInSteps, ModelSummary):
    """Prints the network layer by layer, with the size of every output and the number of weights.

    Lightning's own table counts in thousands and has rows for the metrics.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        summary = summarize(pl_module, max_depth=-1)
        rows = zip(summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums, strict=True)
        print(f"\n{'layer':<16}{'type':<18}{'output':<16}{'weights':>12}")
        for name, kind, output, weights in rows:
            is_container = any(other.startswith(f"{name}.") for other in summary.layer_names)
            if name.startswith("net.") and not is_container:
                size = " × ".join(map(str, output[1:]))  # without the batch
                print(f"{name.removeprefix('net.'):<16}{kind:<18}{size:<16}{weights:>12,}")
        print(f"{'total':<50}{summary.trainable_parameters:>12,}\n")
