"""What is seen in the terminal while a network trains."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.utilities.model_summary import summarize
from torch import nn

from cnn_lightning.callbacks.hooks import IdleInEpochs, IdleInSteps


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

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin the bar of an epoch that goes on in the middle."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer)

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


class LayerTable(IdleInEpochs, ModelSummary):
    """Prints the network layer by layer, with the size of every output and the number of weights.

    Lightning's own table counts in thousands and has rows for the metrics.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        layers = list(layers_of(pl_module))
        print(f"\n{'layer':<16}{'type':<18}{'output':<16}{'weights':>12}")
        for layer in layers:
            print(f"{layer.name:<16}{type(layer.module).__name__:<18}{layer.output:<16}{layer.weights:>12,}")
        print(f"{'total':<50}{sum(layer.weights for layer in layers):>12,}\n")


class Layer(NamedTuple):
    """A layer of the network, and what it makes of one image.

    Attributes:
        name: Like "features.0".
        module: The layer.
        before: (1, C, H, W) or (1, C): size of its input.
        after: Size of its output, likewise.
        weights: Number of its weights.
    """

    name: str
    module: nn.Module
    before: Sequence[int]
    after: Sequence[int]
    weights: int

    @property
    def output(self) -> str:
        """Size of its output, like "16 × 28 × 28"."""
        return " × ".join(map(str, self.after[1:]))


def layers_of(pl_module: LightningModule) -> Iterator[Layer]:
    """The layers of the network, in the order in which they were made."""
    # Lightning brings the image to the device of the network, but not to its precision (bf16-true).
    pl_module.example_input_array = pl_module.example_input_array.to(next(pl_module.net.parameters()).dtype)
    summary = summarize(pl_module, max_depth=-1)
    for name, *numbers in zip(
        summary.layer_names, summary.in_sizes, summary.out_sizes, summary.param_nums, strict=True
    ):
        module = pl_module.get_submodule(name)
        if name.startswith("net.") and not list(module.children()):
            yield Layer(name.removeprefix("net."), module, *numbers)
