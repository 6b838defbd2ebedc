"""Progress bar, lines of epochs, and layer table: what a training run shows."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.utilities.model_summary import summarize
from torch import nn

from cnn_lightning.callbacks.curves import Curves
from cnn_lightning.callbacks.position import within_epoch
from cnn_lightning.callbacks.signals import Stopped
from cnn_lightning.lightning_fixes import callbacks_of

SECONDS = 0.2  # between two drawings of the bar


def _if_due(hook: Callable[..., None], bar: str) -> Callable[..., None]:
    """Call a hook after the last batch and otherwise once in ``SECONDS``.

    Custom because Lightning counts steps, whose time differs by a factor of 100 between networks. Drawing takes as long
    as a step of a small network, and makes a GPU wait for the metrics.
    """

    def draw(self: "ProgressBar", *args: Any) -> None:
        now, batch_idx = time.monotonic(), args[4]  # after trainer, module, outputs and batch
        if self.is_enabled and (now - self.last_drawn >= SECONDS or batch_idx + 1 == getattr(self, bar).total):
            self.last_drawn = now
            hook(self, *args)

    return draw


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn five times a second, with epochs counted from 1 and metrics with four digits."""

    last_drawn = -math.inf
    on_train_batch_end = _if_due(TQDMProgressBar.on_train_batch_end, "train_progress_bar")
    on_validation_batch_end = _if_due(TQDMProgressBar.on_validation_batch_end, "val_progress_bar")
    on_test_batch_end = _if_due(TQDMProgressBar.on_test_batch_end, "test_progress_bar")
    on_predict_batch_end = _if_due(TQDMProgressBar.on_predict_batch_end, "predict_progress_bar")

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin the bar of an epoch that is resumed in the middle."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin the bar of an epoch."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"Epoch {_number(trainer)}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Format loss and accuracy."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: f"{value:.4f}" for name, value in metrics.items() if name != "v_num"}


class EpochLines(AnyProgressBar):
    """Prints a line for every epoch, where there is no terminal to draw a bar in.

    Attributes:
        saved: ``val/loss`` of the checkpoint that was saved as the best in this epoch; None if none was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saved: float | None = None
        self._enabled = True
        self._ended = ""  # the number of an epoch whose line is still to be printed

    def enable(self) -> None:
        """Print lines."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing, as on other ranks than 0."""
        self._enabled = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch has ended: curves are computed, and checkpoints saved, after this."""
        self._ended = "" if within_epoch(trainer) else _number(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch before."""
        self._print_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch."""
        self._print_line(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the line of an epoch after which training was stopped; other errors may come before its curves."""
        if isinstance(exception, Stopped):
            self._print_line(trainer)

    def _print_line(self, trainer: Trainer) -> None:
        if self._ended and self._enabled:
            curves = next(callback for callback in callbacks_of(trainer) if isinstance(callback, Curves))
            point = {f"train/{name}": curves.sums[name] / curves.sums["images"] for name in ("loss", "acc")}
            point |= curves.val
            parts = [f"{name} {value:{'.2%' if name.endswith('acc') else '.4f'}}" for name, value in point.items()]
            parts.append(f"{curves.sums['seconds']:.1f} s")
            if self.saved is not None:  # with several validations an epoch, the best is not always the last
                best = "" if self.saved == point["val/loss"] else f"val/loss {self.saved:.4f} "
                parts.append(f"{best}saved as best.ckpt")
            print(f"epoch {self._ended}: {', '.join(parts)}", flush=True)
        self._ended, self.saved = "", None


def _number(trainer: Trainer) -> str:
    """Number of the current epoch, counted from 1, like "2/5"."""
    total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"{trainer.current_epoch + 1}{total}"


class LayerTable(ModelSummary):
    """Prints the network layer by layer, with the size of every output and the number of parameters.

    Custom because Lightning's table counts in thousands and has rows for the metrics.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        layers = list(layers_of(pl_module)) if trainer.is_global_zero else []
        if layers:
            rows = [("layer", "type", "output", "parameters")]
            rows += [
                (layer.name, type(layer.module).__name__, layer.output, f"{layer.parameters:,}") for layer in layers
            ]
            total = sum(weight.numel() for name, weight in pl_module.named_parameters() if name.startswith("net."))
            widths = [max(least, *(len(row[i]) + 2 for row in rows)) for i, least in enumerate((16, 18, 16))]
            lines = [
                [*map(str.ljust, row, widths), f"{row[3]:>12}"] for row in [*rows, ("total", "", "", f"{total:,}")]
            ]
            print("", *("".join(line) for line in lines), "", sep="\n")


def can_draw() -> bool:
    """Whether stdout shows a progress bar: it is a terminal, or this is a notebook or another interactive session."""
    return hasattr(sys, "ps1") or (sys.stdout is not None and sys.stdout.isatty())


class Layer(NamedTuple):
    """A layer of the network, the sizes of its input and output for one image ("?" if unknown), and its parameters."""

    name: str
    module: nn.Module
    in_size: Sequence[int]
    out_size: Sequence[int]
    parameters: int

    @property
    def output(self) -> str:
        """Size of its output, like "16 × 28 × 28", of the first of several; "" where it is not known."""
        size = self.out_size[0] if self.out_size and isinstance(self.out_size[0], list) else self.out_size
        return " × ".join(map(str, size[1:]))


def layers_of(pl_module: Any) -> Iterator[Layer]:
    """The layers of the network, in the order of its constructor."""
    example = pl_module.example_input_array
    if example is not None:
        # Lightning moves the example to the network's device, but does not convert it to its precision (bf16-true).
        pl_module.example_input_array = example.to(next(pl_module.net.parameters(), example).dtype)
    summary = summarize(pl_module, max_depth=-1)
    columns = (summary.layer_names, summary.in_sizes, summary.out_sizes, summary.param_nums)
    for name, *numbers in zip(*columns, strict=True):
        module = pl_module.get_submodule(name)
        if (name == "net" or name.startswith("net.")) and not list(module.children()):
            yield Layer(name.removeprefix("net."), module, *numbers)
