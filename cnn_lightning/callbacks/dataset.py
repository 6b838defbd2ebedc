"""What a trained network needs to know of its dataset: in every checkpoint, and for the loss."""

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from cnn_lightning.errors import UsageError
from cnn_lightning.facts import facts_of


class DatasetFacts(Callback):
    """Saves ``Facts`` about the dataset in every checkpoint, under the key ``dataset``, and the number of parameters.

    With mean, standard deviation and class names, a program without this package can prepare images for the weights
    and name what they predict. A network that does not state the size of its images gets it from the dataset, for
    the table of layers and the graph.
    """

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Make an example of the network's input, if it has none."""
        if pl_module.example_input_array is None and trainer.datamodule is not None:
            pl_module.example_input_array = example_input(facts_of(trainer.datamodule))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save them; those about the dataset if the Trainer was given a data module."""
        checkpoint["parameters"] = sum(weight.numel() for weight in pl_module.net.parameters())
        if trainer.datamodule is not None:
            checkpoint["dataset"] = asdict(facts_of(trainer.datamodule))


def example_input(sizes: Any) -> Tensor | None:
    """(1, C, H, W) zeros of the size that a network or ``Facts`` states, or None if it states none."""
    channels, side = (getattr(sizes, name, None) for name in ("in_channels", "image_size"))
    return torch.zeros(1, channels, side, side) if channels and side else None


def loss_weight(class_weights: str | list[float] | None, model: Any) -> Tensor | None:
    """Return the (num_classes,) float weights of the classes in the training loss; None for equal weights.

    Args:
        class_weights: The weights, or "balanced" for images / (classes * images of the class), as scikit-learn
            balances them; classes without an image have the weight 0.
        model: The model, when training starts.

    Raises:
        UsageError: The weights are not as many as the classes of the network.
    """
    num_classes = getattr(model.net, "num_classes", None) or _num_classes(model.trainer.datamodule)
    if class_weights == "balanced":
        counts = _labels(model.trainer.train_dataloader).bincount(minlength=num_classes)
        weights = torch.where(counts > 0, counts.sum() / (len(counts) * counts), 0.0)
    elif class_weights is None:
        return None
    else:
        weights = torch.tensor(class_weights)
    if num_classes and len(weights) != num_classes:
        message = f"class_weights has {len(weights)} numbers, expected one for each of {num_classes} classes"
        raise UsageError(message, "class_weights")
    return weights.to(model.device)


def _labels(loader: Any) -> Tensor:
    if isinstance(getattr(loader, "labels", None), Tensor):
        return loader.labels.cpu()  # all of them, in memory
    if isinstance(loader, DataLoader):  # all images, whatever the share of this rank, and not the batches of training
        loader = DataLoader(loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn)
    with isolate_rng():  # the epoch that is read for its labels must not change the order of the images in training
        return torch.cat([torch.as_tensor(labels).cpu() for _, labels in loader])


def _num_classes(data: LightningDataModule | None) -> int:
    return (data is not None and facts_of(data).num_classes) or 0
