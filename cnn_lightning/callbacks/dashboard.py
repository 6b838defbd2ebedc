"""A callback that fills TensorBoard with texts, tables and the graph of the network, without an effect on training."""

import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from cnn_lightning.callbacks.config import SaveConfig
from cnn_lightning.callbacks.progress import Layer, layers_of
from cnn_lightning.checkpointing.main_settings import MAIN, TRAINER, changed_settings, main_settings
from cnn_lightning.checkpointing.settings import flat_settings
from cnn_lightning.facts import name_of

HOW_TO_READ = Path(__file__).with_name("how_to_read.md")
# A chart with two lines of a run tells them apart by markers, in an order that changes. So each has a chart, and the
# third is a line from which a band reaches to the other.
CHARTS = {
    quantity: {
        f"{quantity} in training": ["Multiline", [f"epoch/train_{tag}"]],
        f"{quantity} in validation": ["Multiline", [f"epoch/val_{tag}"]],
        f"{quantity} in validation (line) and in training (end of the band)": [
            "Margin",
            [f"epoch/val_{tag}", f"epoch/val_{tag}", f"epoch/train_{tag}"],
        ],
    }
    for quantity, tag in (("accuracy", "acc"), ("loss", "loss"))
}
# The columns of HPARAMS; TensorBoard first shows five settings and five metrics.
METRICS = ("test/acc", "test/loss", "val/acc", "val/loss", "time/images_per_second")
COMPARED = {f"trainer.{name}" for name in TRAINER}
NOT_COMPARED = ("trainer.", "data.root", "data.download", "dashboard", "save_every_n_steps", "risk")


class Overview(Callback):
    """Writes the graph of the network, the settings, the layers, the table of runs (HPARAMS) and how to read it all.

    The table of layers has the formula of every size, ``O = (I - K + 2P) / S + 1`` (articles 001 and 004).
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Write all of it, once."""
        for writer in writers_of(trainer):
            writer.add_text("how_to_read", HOW_TO_READ.read_text(encoding="utf-8"))
            writer.add_text("layers", _layers_table(pl_module))
            writer.add_custom_scalars(CHARTS)
            _add_graph(writer, pl_module)
            for callback in trainer.callbacks:
                if isinstance(callback, SaveConfig):
                    text = callback.path.read_text()
                    config = yaml.safe_load(text)
                    settings = flat_settings("", config)
                    if trainer.datamodule is not None:
                        settings["data"] = name_of(trainer.datamodule)
                    main, changed = main_settings(settings), changed_settings(config, type(pl_module))
                    writer.add_text(
                        "settings", f"{_settings_table(main | changed)}\n\nAll settings:\n```yaml\n{text}\n```"
                    )
                    _add_hparams(writer, settings, main, changed)


def writers_of(trainer: Any) -> Iterator[Any]:
    """The event files of rank 0; other ranks have none."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _add_graph(writer: Any, pl_module: Any) -> None:
    if pl_module.example_input_array is None:  # Pictures says so, with all else that is left out
        return
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the writer prints errors as well
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)  # the writer calls it
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # a network may branch on shapes
        try:
            # A copy in eval mode, because tracing runs dropout and batch norm.
            writer.add_graph(deepcopy(pl_module.net).eval(), pl_module.example_input_array.to(pl_module.device))
        except (RuntimeError, TypeError, ValueError, torch.jit.TracingCheckError) as error:
            # The network ran for the table of layers, so the error comes from tracing.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(f"warning: no graph in TensorBoard, because the network cannot be traced: {reason}", file=sys.stderr)


def _add_hparams(writer: Any, settings: dict[str, Any], main: dict[str, Any], changed: dict[str, Any]) -> None:
    """Write a row of HPARAMS; custom because add_hparams starts a run of its own, and leaves the columns unsorted."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    # TensorBoard takes the columns of all runs from one of them, and sorts them by "differs" and then by name.
    numbered = {f"{number}_{name}": main[name] for number, name in enumerate(MAIN) if name in main}
    rest = {
        name: value
        for name, value in settings.items()
        if name in MAIN.values() or name in COMPARED or not name.startswith(NOT_COMPARED)
    } | changed
    values = {
        name: value if type(value) in (int, float, str) else str(value)  # it shows booleans as 0.000 and 1.000
        for name, value in (numbered | rest).items()
    }
    summaries = hparams(values, dict.fromkeys(METRICS))  # the metrics are the curves of the run
    plugin = summaries[0].value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    columns = [column for column in content.experiment.hparam_infos if column.name not in MAIN.values()]
    for column in columns:
        column.differs = column.name in numbered or column.name in changed
        column.display_name = column.name[2:] if column.name in numbered else ""
    content.experiment.ClearField("hparam_infos")
    content.experiment.hparam_infos.extend(columns)
    plugin.content = content.SerializeToString()
    for summary in summaries:
        writer.file_writer.add_summary(summary)


def _settings_table(settings: Mapping[str, Any]) -> str:
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in settings.items())]
    )


def _layers_table(pl_module: Any) -> str:
    rows = ["| layer | type | side of the feature maps | output | parameters |", "| --- | --- | --- | --- | ---: |"]
    for layer in layers_of(pl_module):
        kind, formula = type(layer.module).__name__, _size_formula(layer)
        rows.append(f"| {layer.name} | {kind} | {formula} | {layer.output} | {layer.parameters:,} |")
    return "\n".join(rows)


def _size_formula(layer: Layer) -> str:
    """Like "(28 - 5 + 2·2) / 1 + 1 = 28" for a convolution or pooling, "" for other layers."""
    if not isinstance(layer.module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return ""
    sizes: list[Any] = [layer.module.kernel_size, layer.module.padding, layer.module.stride]
    kernel, padding, stride = (size[0] if isinstance(size, tuple) else size for size in sizes)
    if len(layer.in_size) != 4 or len(layer.out_size) != 4:  # it does not run, or the image has no known size
        return ""
    side, out = layer.in_size[2], layer.out_size[2]
    if isinstance(padding, str) or (side - kernel + 2 * padding) // stride + 1 != out:
        return ""
    return f"({side} - {kernel} + 2·{padding}) / {stride} + 1 = {out}"
