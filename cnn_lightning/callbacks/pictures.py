"""A callback that draws what a run sees into TensorBoard, without an effect on training."""

import sys
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnn_lightning.callbacks.dashboard import writers_of
from cnn_lightning.facts import class_names_of, has_parts, name_of
from cnn_lightning.reporting import images

# What a picture needs; a run says once which it leaves out.
NEEDS = {
    "filters": "the first layer with weights is neither a convolution nor a linear layer on pixels",
    "feature_maps": "no layer has an output of 4 dimensions",
}


class Pictures(Callback):
    """Draws pictures and a precision-recall curve of every class after every epoch.

    They show augmentation, the first training images of an epoch, the filters of the first layer, the feature maps of a
    validation image, the confusion matrix, and rank 0's misclassified validation images with the highest confidence.
    What a network or a data module does not allow is left out.

    Attributes:
        example: (C, H, W): the first validation image, where the data module does not hand out its images.
        wrong: Images, labels and probabilities of the misclassified validation images, likewise.
    """

    IMAGES = 32
    VERSIONS = 7

    def __init__(self) -> None:
        self.example: Tensor | None = None
        self.wrong: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Say what is left out. Draw images as they are, and next to each what augmentation may turn it into."""
        for writer in writers_of(trainer):
            _print_left_out(trainer.datamodule, pl_module)
            loader = trainer.train_dataloader
            if getattr(loader, "augment", None) and not trainer.global_step:  # a resumed run has drawn it
                _add_image(writer, "augmentation", self._augmented(loader), 1)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw the first training batch of the epoch."""
        if batch_idx:
            return
        for writer in writers_of(trainer):
            shown, labels = (part[: self.IMAGES] for part in batch)
            names = class_names_of(trainer.datamodule, int(labels.max()) + 1)
            grid = images.grid(images.pixels(shown), [names[label] for label in labels])
            _add_image(writer, "training_images", grid, trainer.current_epoch + 1)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget the validation before."""
        self.example, self.wrong = None, []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        """Keep the misclassified images with the highest confidence, if the data module will not hand them out."""
        if trainer.sanity_checking or has_parts(trainer.datamodule):
            return
        shown, labels = batch
        self.example = shown[0] if self.example is None else self.example
        probabilities = pl_module.val_metrics.logits[-1].float().softmax(dim=1)
        is_wrong = probabilities.argmax(dim=1) != labels
        batch = [part[is_wrong].cpu() for part in (shown, labels, probabilities)]
        self.wrong = [torch.cat(parts) for parts in zip(self.wrong, batch, strict=True)] if self.wrong else batch
        order = self.wrong[2].amax(dim=1).argsort(descending=True, stable=True)[: self.IMAGES]
        self.wrong = [part[order] for part in self.wrong]

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the network and its predictions for the validation images."""
        if trainer.sanity_checking:
            return
        own = pl_module.val_metrics.images
        _, logits, labels = pl_module.val_metrics.gathered()  # on all ranks, because it synchronises them
        for writer in writers_of(trainer):
            epoch, data, net = trainer.current_epoch + 1, trainer.datamodule, pl_module.net
            names = class_names_of(data, logits.shape[1])
            counts = multiclass_confusion_matrix(logits, labels, len(names)).cpu().numpy()
            probabilities, labels = logits.float().softmax(dim=1).nan_to_num().cpu(), labels.cpu()  # may have diverged
            for index, name in enumerate(names):
                writer.add_pr_curve(f"pr_curve/{name}", labels == index, probabilities[:, index], epoch)
            if has_parts(data):
                shown = data.part("val")[0][:: trainer.world_size][:own]
                example = data.normalize(shown[:1])[0].to(pl_module.device)
                wrong = images.misclassified(shown, labels[:own], probabilities[:own], names, self.IMAGES)
            else:
                example, (shown, labels, probabilities) = self.example, self.wrong
                wrong = images.misclassified(shown, labels, probabilities, names, self.IMAGES, total=own)
            _add_image(writer, "confusion_matrix", images.confusion_matrix(counts, names), epoch)
            _add_image(writer, "mistakes", wrong, epoch)
            _add_image(writer, "filters", images.filters(net, example), epoch)
            _add_image(writer, "feature_maps", images.feature_maps(net, example), epoch)

    def _augmented(self, loader: Any) -> Image.Image:
        originals = loader.images[: self.IMAGES // (1 + self.VERSIONS)]
        changed, rng = originals.repeat_interleave(self.VERSIONS, dim=0), np.random.default_rng(0)
        for change in loader.augment:
            changed = change(changed, change.draw(len(changed), rng).to(changed.device))
        changed = changed.to(torch.uint8).unflatten(0, (len(originals), -1))
        rows = torch.cat([originals[:, None], changed], dim=1)
        captions = ["as it is", *[""] * self.VERSIONS] * len(originals)
        return images.grid(images.pixels(rows.flatten(0, 1)), captions, columns=1 + self.VERSIONS)


def _print_left_out(data: Any, pl_module: Any) -> None:
    reasons = ["no graph and no sizes of layers, because in_channels and image_size are not known"]
    if pl_module.example_input_array is not None:
        net = deepcopy(pl_module.net).eval()  # a copy, because the pictures run it, and training follows
        example = pl_module.example_input_array[0].to(pl_module.device)
        drawn = {"filters": images.filters(net, example), "feature_maps": images.feature_maps(net, example)}
        reasons = [f"no {name}, because {NEEDS[name]}" for name, picture in drawn.items() if picture is None]
    if data is not None and not getattr(data, "class_names", None):
        reasons.append(f"classes by number, because {name_of(data)} has no class_names")
    if reasons:
        print(f"warning: TensorBoard shows {'; '.join(reasons)}", file=sys.stderr)


def _add_image(writer: Any, name: str, image: Image.Image | None, epoch: int) -> None:
    if image is not None:
        writer.add_image(f"images/{name}", np.asarray(image), epoch, dataformats="HWC")
