"""What a data module says of its images; any LightningDataModule may be used, also one that says nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """Facts about the images of a data module, as plain values; None where the module does not tell.

    Args:
        name: Name of the dataset.
        in_channels: Channels of an image.
        num_classes: Number of classes.
        image_size: Side of an image in pixels.
        class_names: The classes, by label.
        mean: Subtracted from the pixels in [0, 1], one number a channel.
        std: Divides the pixels after that, one number a channel.
    """

    name: str
    in_channels: int | None = None
    num_classes: int | None = None
    image_size: int | None = None
    class_names: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@runtime_checkable
class HasParts(Protocol):
    """A data module that hands out its images, for pictures and reports.

    ``part`` returns the validation and test images in the order of their dataloaders.
    """

    class_names: Sequence[str]

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Return the (N, C, H, W) uint8 images and (N,) labels of "train", "val" or "test", after ``setup``."""

    def normalize(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) uint8 pixels into the input of the network."""


def has_parts(data: Any) -> bool:
    """Whether a data module hands out its images and the names of its classes."""
    return isinstance(data, HasParts)


def facts_of(data: LightningDataModule) -> Facts:
    """Collect what a data module tells of its images in attributes with the names of ``Facts``."""
    names = class_names_of(data, 0)
    in_channels, num_classes, image_size = (
        _integer(getattr(data, name, None)) for name in ("in_channels", "num_classes", "image_size")
    )
    return Facts(
        name=name_of(data),
        in_channels=in_channels,
        num_classes=num_classes or len(names) or None,
        image_size=image_size,
        class_names=names or None,
        mean=_by_channel(getattr(data, "mean", None), in_channels),
        std=_by_channel(getattr(data, "std", None), in_channels),
    )


def name_of(data: LightningDataModule) -> str:
    """Name of a dataset: the attribute ``name``, or the class name."""
    return str(getattr(data, "name", None) or type(data).__name__)


def class_names_of(data: Any, num_classes: int) -> list[str]:
    """Names of the classes by label, at least ``num_classes``; their numbers where the data module has none."""
    names = getattr(data, "class_names", None)
    names = [] if names is None else [str(name) for name in names]
    return names + [str(number) for number in range(len(names), num_classes)]


def _by_channel(value: Any, in_channels: int | None) -> list[float] | None:
    """One number a channel, from one for all or a sequence."""
    if value is None:
        return None
    values = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    return values * (in_channels or 1) if len(values) == 1 else values


def _integer(value: Any) -> int | None:
    """A plain number, since one of numpy could not be loaded safely; the side of a square as (side, side)."""
    if isinstance(value, Sequence):
        value = value[0] if len({*value}) == 1 else None
    return int(value) if value else None
