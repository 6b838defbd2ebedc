"""What fills TensorBoard beside the curves, and changes nothing in what is trained.

The callbacks are for an ImageClassifier that is trained on an ImageDataModule.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnn_lightning.callbacks.config import SaveConfig, flat_settings
from cnn_lightning.callbacks.hooks import IdleInEpochs
from cnn_lightning.callbacks.progress import Layer, layers_of
from cnn_lightning.reporting import images as pictures

if TYPE_CHECKING:  # it takes half a second, which --help can do without
    from torch.utils.tensorboard import SummaryWriter

HOW_TO_READ = """
| tag | what it is | horizontal axis |
| --- | --- | --- |
| `train/loss`, `train/acc` | means over the training images since the point before, dropout and augmentation on | optimizer steps made |
| `train/images_per_second` | speed of training since the point before, without validation | optimizer steps made |
| `val/loss`, `val/acc` | means over all validation images | optimizer steps made |
| `test/loss`, `test/acc` | means over all test images by the best checkpoint, drawn where training ended | optimizer steps made |
| `lr-*` | learning rate of the next step | optimizer steps made |
| `epoch/*` | the same for an epoch, the first of which is 1, and its seconds of training; validation is the last in it; CUSTOM SCALARS has training and validation in one chart | epochs |
| `images/augmentation` | training images, and beside each what `--data.shift`, `--data.rotate` and so on may make of it | - |
| `images/training_images` | the first training images of an epoch as the network sees them, augmented | epochs, by the slider |
| `images/*`, `pr_curve/*` | the network after the last validation of an epoch, and what it makes of the validation images | epochs, by the slider |

`pr_curve/CLASS`: of the images called CLASS, how many are (precision), and how many of its images are found (recall),
for every threshold of its probability.
"""  # noqa: E501
TOGETHER = {
    "loss": {"loss": ["Multiline", ["epoch/train_loss", "epoch/val_loss"]]},
    "accuracy": {"accuracy": ["Multiline", ["epoch/train_acc", "epoch/val_acc"]]},
}
# What runs are compared and sorted by.
METRICS = ("test/acc", "test/loss", "val/acc", "val/loss", "epoch/images_per_second")
NOT_COMPARED = ("trainer.", "data.root", "data.download", "dashboard")
COMPARED = ("trainer.max_epochs", "trainer.precision", "trainer.gradient_clip_val", "trainer.accumulate_grad_batches")


class Overview(IdleInEpochs, Callback):
    """Draws the network as a graph, and writes the settings, the layers, the table of runs (HPARAMS) and how to read.

    The table of layers has the formula of every size, ``O = (I - K + 2P) / S + 1`` (articles 001 and 004).
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all of it, once."""
        for writer in _writers(trainer):
            writer.add_text("how_to_read", HOW_TO_READ)
            writer.add_text("layers", _layers_table(pl_module))
            writer.add_custom_scalars(TOGETHER)
            _add_graph(writer, pl_module)
            for callback in trainer.callbacks:
                if isinstance(callback, SaveConfig):
                    config = callback.path.read_text()
                    writer.add_text("config", f"```yaml\n{config}\n```")
                    _add_hparams(writer, config)


class Pictures(IdleInEpochs, Callback):
    """Draws pictures after every epoch, and precision-recall curves of every class.

    What augmentation may make of some training images, the first training images of an epoch as the network sees them,
    the filters of the first layer, the feature maps of one validation image, the confusion matrix of all validation
    images, and the mistakes the network is surest of; with several processes, those among the images of the first.
    """

    IMAGES = 32
    VERSIONS = 7

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw images as they are, and beside each what augmentation may make of it."""
        loader = trainer.train_dataloader
        if loader.augment is None or trainer.global_step:  # a run that goes on has drawn it
            return
        for writer in _writers(trainer):
            images = loader.images[: self.IMAGES // (1 + self.VERSIONS)]
            draws = loader.augment.draw(len(images) * self.VERSIONS, np.random.default_rng(0))
            changed = loader.augment(
                images.repeat_interleave(self.VERSIONS, dim=0), [drawn.to(images.device) for drawn in draws]
            )
            rows = torch.cat([images[:, None], changed.to(torch.uint8).unflatten(0, (len(images), -1))], dim=1)
            captions = ["as it is", *[""] * self.VERSIONS] * len(images)
            picture = pictures.grid(pictures.pixels(rows.flatten(0, 1)), captions, columns=1 + self.VERSIONS)
            _add_picture(writer, "augmentation", picture, 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the first training images of the epoch."""
        for writer in _writers(trainer):
            # Drawn from the seed and the epoch, so that to look at them changes nothing.
            images, labels = next(iter(trainer.train_dataloader))
            names = [trainer.datamodule.class_names[label] for label in labels[: self.IMAGES]]
            picture = pictures.grid(pictures.pixels(images[: self.IMAGES]), names)
            _add_picture(writer, "training_images", picture, trainer.current_epoch + 1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the validation images show."""
        if trainer.sanity_checking:
            return
        own = pl_module.val_metrics.images
        _, scores, labels = pl_module.val_metrics.noted()  # of all processes, so all take part
        for writer in _writers(trainer):
            epoch, data = trainer.current_epoch + 1, trainer.datamodule
            counts = multiclass_confusion_matrix(scores, labels, data.num_classes).cpu().numpy()
            # Without the NaN of a run that has diverged.
            probabilities, labels = scores.float().softmax(dim=1).nan_to_num().cpu(), labels.cpu()
            _add_picture(writer, "confusion_matrix", pictures.confusion_matrix(counts, data.class_names), epoch)
            for index, name in enumerate(data.class_names):
                writer.add_pr_curve(f"pr_curve/{name}", labels == index, probabilities[:, index], epoch)
            images = data.part("val")[0][:: trainer.world_size][:own]
            mistakes = pictures.mistakes(images, labels[:own], probabilities[:own], data.class_names, self.IMAGES)
            _add_picture(writer, "mistakes", mistakes, epoch)
            if filters := pictures.filters(pl_module.net):
                _add_picture(writer, "filters", filters, epoch)
            image = data.normalize(images[:1])[0].to(pl_module.device)
            _add_picture(writer, "feature_maps", pictures.feature_maps(pl_module.net, image), epoch)


def _writers(trainer: Trainer) -> Iterator[SummaryWriter]:
    """The event files of the first process; there are none in the others."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _add_picture(writer: SummaryWriter, name: str, picture: Image.Image, epoch: int) -> None:
    writer.add_image(f"images/{name}", np.asarray(picture), epoch, dataformats="HWC")


def _add_graph(writer: SummaryWriter, pl_module: LightningModule) -> None:
    # In evaluation mode, for to trace is to run: it would draw random numbers for dropout, and move batch statistics.
    # What goes wrong is said here, in one line, and not by the writer.
    with _evaluating(pl_module.net) as net, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)  # writer calls it
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # a network may look at shapes
        try:
            writer.add_graph(net, pl_module.example_input_array.to(pl_module.device))
        except Exception as error:  # tracing can fail in many ways, and a picture is no reason not to train
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            print(f"warning: no graph in TensorBoard, because the network cannot be traced: {reason}", file=sys.stderr)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[nn.Module]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield net
    finally:
        for module, mode in modes.items():
            module.training = mode


def _add_hparams(writer: SummaryWriter, config: str) -> None:
    from torch.utils.tensorboard.summary import hparams

    settings = {
        name: value if type(value) in (int, float, str) else str(value)  # booleans would be shown as 0.000 and 1.000
        for name, value in flat_settings("", yaml.safe_load(config)).items()
        if name in COMPARED or not name.startswith(NOT_COMPARED)
    }
    # SummaryWriter.add_hparams makes a run of its own for them, and TensorBoardLogger draws a point for each metric;
    # here the metrics are the curves of the run.
    for summary in hparams(settings, dict.fromkeys(METRICS)):
        writer._get_file_writer().add_summary(summary)


def _layers_table(pl_module: LightningModule) -> str:
    rows = ["| layer | type | side of the feature maps | output | weights |", "| --- | --- | --- | --- | ---: |"]
    for layer in layers_of(pl_module):
        kind, formula = type(layer.module).__name__, _size_formula(layer)
        rows.append(f"| {layer.name} | {kind} | {formula} | {layer.output} | {layer.weights:,} |")
    return "\n".join(rows)


def _size_formula(layer: Layer) -> str:
    """Like "(28 - 5 + 2·2) / 1 + 1 = 28" for a convolution or pooling, "" where another formula holds."""
    if not isinstance(layer.module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return ""
    sizes = (layer.module.kernel_size, layer.module.padding, layer.module.stride)
    kernel, padding, stride = (size[0] if isinstance(size, tuple) else size for size in sizes)
    side, after = layer.before[2], layer.after[2]
    if padding in ("same", "valid") or (side - kernel + 2 * padding) // stride + 1 != after:
        return ""
    return f"({side} - {kernel} + 2·{padding}) / {stride} + 1 = {after}"
