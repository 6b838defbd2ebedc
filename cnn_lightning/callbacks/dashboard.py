"""Callbacks that fill TensorBoard with pictures and tables, without an effect on training.

They expect an ImageClassifier that is trained on an ImageDataModule.
"""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnn_lightning.callbacks.config import SaveConfig
from cnn_lightning.callbacks.progress import Layer, layers_of
from cnn_lightning.checkpointing.settings import flat_settings
from cnn_lightning.reporting import images

HOW_TO_READ = Path(__file__).with_name("how_to_read.md")
CHARTS = {
    "loss": {"loss": ["Multiline", ["epoch/train_loss", "epoch/val_loss"]]},
    "accuracy": {"accuracy": ["Multiline", ["epoch/train_acc", "epoch/val_acc"]]},
}
# The columns of HPARAMS.
METRICS = ("test/acc", "test/loss", "val/acc", "val/loss", "epoch/images_per_second")
NOT_COMPARED = ("trainer.", "data.root", "data.download", "dashboard")
COMPARED = ("trainer.max_epochs", "trainer.precision", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches")


class Overview(Callback):
    """Writes the graph of the network, the settings, the layers, the table of runs (HPARAMS) and how to read it all.

    The table of layers has the formula of every size, ``O = (I - K + 2P) / S + 1`` (articles 001 and 004).
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Write all of it, once."""
        for writer in _writers(trainer):
            writer.add_text("how_to_read", HOW_TO_READ.read_text(encoding="utf-8"))
            writer.add_text("layers", _layers_table(pl_module))
            writer.add_custom_scalars(CHARTS)
            _add_graph(writer, pl_module)
            for callback in trainer.callbacks:
                if isinstance(callback, SaveConfig):
                    config = callback.path.read_text()
                    writer.add_text("config", f"```yaml\n{config}\n```")
                    _add_hparams(writer, config)


class Pictures(Callback):
    """Draws pictures and a precision-recall curve of every class after every epoch.

    They show augmentation, the first training images of an epoch, the filters of the first layer, the feature maps of a
    validation image, the confusion matrix, and rank 0's misclassified validation images with the highest confidence.
    """

    IMAGES = 32
    VERSIONS = 7

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw images as they are, and next to each what augmentation may turn it into."""
        loader = trainer.train_dataloader
        if not loader.augment or trainer.global_step:  # a resumed run has drawn it
            return
        for writer in _writers(trainer):
            originals = loader.images[: self.IMAGES // (1 + self.VERSIONS)]
            changed, rng = originals.repeat_interleave(self.VERSIONS, dim=0), np.random.default_rng(0)
            for change in loader.augment:
                changed = change(changed, change.draw(len(changed), rng).to(changed.device))
            changed = changed.to(torch.uint8).unflatten(0, (len(originals), -1))
            rows = torch.cat([originals[:, None], changed], dim=1)
            captions = ["as it is", *[""] * self.VERSIONS] * len(originals)
            grid = images.grid(images.pixels(rows.flatten(0, 1)), captions, columns=1 + self.VERSIONS)
            _add_image(writer, "augmentation", grid, 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw the first training batch of the epoch."""
        if batch_idx:
            return
        for writer in _writers(trainer):
            shown, labels = (part[: self.IMAGES] for part in batch)
            grid = images.grid(images.pixels(shown), [trainer.datamodule.class_names[label] for label in labels])
            _add_image(writer, "training_images", grid, trainer.current_epoch + 1)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the network and its predictions for the validation images."""
        if trainer.sanity_checking:
            return
        own = pl_module.val_metrics.images
        _, logits, labels = pl_module.val_metrics.gathered()  # on all ranks, because it synchronises them
        for writer in _writers(trainer):
            epoch, data, net = trainer.current_epoch + 1, trainer.datamodule, pl_module.net
            counts = multiclass_confusion_matrix(logits, labels, data.num_classes).cpu().numpy()
            probabilities, labels = logits.float().softmax(dim=1).nan_to_num().cpu(), labels.cpu()  # may have diverged
            for index, name in enumerate(data.class_names):
                writer.add_pr_curve(f"pr_curve/{name}", labels == index, probabilities[:, index], epoch)
            shown = data.part("val")[0][:: trainer.world_size][:own]
            example = data.normalize(shown[:1])[0].to(pl_module.device)
            wrong = images.misclassified(shown, labels[:own], probabilities[:own], data.class_names, self.IMAGES)
            _add_image(writer, "confusion_matrix", images.confusion_matrix(counts, data.class_names), epoch)
            _add_image(writer, "mistakes", wrong, epoch)
            _add_image(writer, "filters", images.filters(net), epoch)
            _add_image(writer, "feature_maps", images.feature_maps(net, example), epoch)


def _writers(trainer: Any) -> Iterator[Any]:
    """The event files of rank 0; other ranks have none."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _add_image(writer: Any, name: str, image: Image.Image | None, epoch: int) -> None:
    if image is not None:
        writer.add_image(f"images/{name}", np.asarray(image), epoch, dataformats="HWC")


def _add_graph(writer: Any, pl_module: Any) -> None:
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


def _add_hparams(writer: Any, config: str) -> None:
    from torch.utils.tensorboard.summary import hparams

    settings = {
        name: value if type(value) in (int, float, str) else str(value)  # TensorBoard shows booleans as 0.000 and 1.000
        for name, value in flat_settings("", yaml.safe_load(config)).items()
        if name in COMPARED or not name.startswith(NOT_COMPARED)
    }
    # Custom because add_hparams starts a run of its own; here the metrics are the curves of this run.
    for summary in hparams(settings, dict.fromkeys(METRICS)):
        writer.file_writer.add_summary(summary)


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
    side, out = layer.in_size[2], layer.out_size[2]
    if isinstance(padding, str) or (side - kernel + 2 * padding) // stride + 1 != out:
        return ""
    return f"({side} - {kernel} + 2·{padding}) / {stride} + 1 = {out}"
