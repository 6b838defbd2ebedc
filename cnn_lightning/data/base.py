"""What all datasets share: options, the split, the loaders."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cnn_lightning.data.augment import Change, Erase, FlipAndShift, Warp
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.data.pixels import Figure, checked_figure, checked_images, mean_and_std, normalized
from cnn_lightning.data.splits import split_off
from cnn_lightning.errors import UsageError


class ImageDataModule(LightningDataModule, ABC):
    """A dataset of square images, split into training, validation and test images.

    A subclass defines ``read``, and sets ``class_names``, ``in_channels`` and ``SIDE`` as attributes of the class or
    before it calls ``super().__init__``. The last two need not be set for grey images of 28×28.

    The test images are the dataset's official test set; only the test stage reads them. The validation images are a
    stratified part of the training images, chosen by a seed of their own: they are the same in every stage, process
    and run with that seed. The training images are shuffled every epoch in an order that depends on PyTorch's seed.

    Args:
        root: Folder of the datasets. Defaults to the variable CNN_LIGHTNING_DATA, else ``data``.
        batch_size: Images in a batch; with several processes, in the batch of each.
        val_size: Validation images, as a count (6000) or as a fraction of the training images (0.1).
        split_seed: Seed that chooses the validation images.
        mean: Subtracted from the pixels, which are in [0, 1]: one number, or one for each channel. Defaults to the mean
            of the training images.
        std: Divides the pixels after that. Defaults to that of the training images. Mean 0 and std 1 keep [0, 1].
        drop_last: Skip the last training batch of an epoch if it is not full.
        flip: Randomly flip half of the training images left to right. Not for digits.
        shift: Randomly shift training images by up to this many pixels in each direction, filling with black.
        rotate: Randomly rotate training images by up to this many degrees in each direction.
        scale: Randomly scale training images by up to this share of their size.
        shear: Randomly shear training images by up to this many degrees in each direction.
        elastic: Randomly distort training images: the standard deviation, in pixels, by which a 4×4 grid is displaced.
        erase: Share of the training images in which a random rectangle is covered with grey, in [0, 1].
        erase_area: Largest share of the image that such a rectangle covers, 0.02 to 1.
        pad: Black pixels added on every side of all images. ``image_size`` is then larger by 2 * pad.
        download: Download the dataset if it is not on disk.

    Raises:
        UsageError: An argument is out of its range.
    """

    class_names: Sequence[str]  # by label
    in_channels: int = 1
    SIDE: int = 28  # of an image as it is read, in pixels; image_size includes ``pad``
    can_flip: ClassVar[bool] = False  # whether a flipped image keeps its class
    # Of the pixels of the training images, in [0, 1]; None: ``setup`` measures them, without the validation images.
    MEAN: ClassVar[Figure | None] = None
    STD: ClassVar[Figure | None] = None
    # Turns a user's own picture, mode "L" or "RGB", into a (C, SIDE, SIDE) uint8 image; None if that is unknown.
    preparation: Callable[[Image.Image], Tensor] | None = None

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 64,
        val_size: int | float = 0.1,
        split_seed: int = 0,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        drop_last: bool = False,
        flip: bool = False,
        shift: int = 0,
        rotate: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        elastic: float = 0.0,
        erase: float = 0.0,
        erase_area: float = 0.4,
        pad: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__()
        self.image_size = self.SIDE + 2 * (pad or 0)  # jsonargparse lets null pass
        # Not types such as PositiveInt: their values cannot be loaded with weights_only or written to YAML.
        for name, value, least, most in (
            ("batch_size", batch_size, 1, math.inf),
            ("split_seed", split_seed, 0, 2**32 - 1),
            ("pad", pad, 0, 1000),
            ("shift", shift, 0, self.image_size - 1),
            ("rotate", rotate, 0, 180),
            ("scale", scale, 0, 0.9),
            ("shear", shear, 0, 60),
            ("elastic", elastic, 0, self.image_size),
            ("erase", erase, 0, 1),
            ("erase_area", erase_area, Erase.LEAST, 1),
        ):
            if value is None or not least <= value <= most:
                bounds = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise UsageError(f"{name} is {value}, expected {bounds}", name)
        root = root and str(root)  # safe loading of checkpoints refuses a Path
        self.save_hyperparameters()
        # The command line saves this with the options; a module built in Python must name its dataset too.
        self.hparams.setdefault("_class_path", f"{type(self).__module__}.{type(self).__qualname__}")
        self._has_root = bool(root)
        # Path.expanduser raises where there is no such user.
        self.root = Path(os.path.expanduser(root or os.environ.get("CNN_LIGHTNING_DATA") or "data"))  # noqa: PTH111
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.mean = checked_figure(self.MEAN if mean is None else mean, "mean", self.in_channels)
        self.std = checked_figure(self.STD if std is None else std, "std", self.in_channels)
        self.drop_last = drop_last
        self.flip = flip
        self.pad = pad
        self.download = download
        self.augment: list[Change] = []
        if flip or shift:
            self.augment.append(FlipAndShift(flip, shift))
        if rotate or scale or shear or elastic:
            self.augment.append(Warp(rotate, scale, shear, elastic))
        if erase:
            self.augment.append(Erase(erase, erase_area))
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test images: (N, in_channels, SIDE, SIDE) uint8 images and (N,) int64 labels."""

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning has an attribute
        """Name of the dataset, which is also part of the name of a run's folder."""
        return type(self).__name__

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def prepare_data(self) -> None:
        """Check that there is a folder ``root``, if one was given. Datasets that are downloaded do so here.

        Raises:
            UsageError: There is no such folder.
        """
        if self._has_root and not self.root.is_dir():
            message = f"there is no folder {self.root.absolute()}, expected the folder that {self.name} is read from"
            raise UsageError(message, "root")

    def setup(self, stage: str) -> None:
        """Read the images of a stage, once: the test images for "test", the training images for all others.

        Mean and standard deviation, where they are neither known nor given, are those of the training images.

        Raises:
            UsageError: ``val_size`` or ``flip`` does not fit the dataset, a file is missing or damaged, or ``read``
                returned something else.
        """
        is_measured = self.mean is not None and self.std is not None
        if "train" not in self._parts and (stage != "test" or not is_measured):
            if self.flip and not self.can_flip:
                message = f"flip is true, expected false: flipped images of {type(self).__name__} change their class"
                raise UsageError(message, "flip")
            images, labels = self._checked_read(train=True)
            parts = {
                part: (images[ids], labels[ids])
                for part, ids in zip(("train", "val"), self.split_training(labels), strict=True)
            }
            if not is_measured:
                mean, std = mean_and_std(parts["train"][0])
                self.mean, self.std = mean if self.mean is None else self.mean, std if self.std is None else self.std
            self._parts |= {part: (self.padded(images), labels) for part, (images, labels) in parts.items()}
        if stage == "test" and "test" not in self._parts:
            images, labels = self._checked_read(train=False)
            self._parts["test"] = self.padded(images), labels

    def split_training(self, labels: Tensor) -> tuple[Tensor | slice, Tensor | slice]:
        """Return the indices of the training images and of the validation images among those that ``read`` returned."""
        return split_off(labels, self.val_size, self.split_seed, "val_size", self.class_names)

    def train_dataloader(self) -> TensorLoader:
        """Return batches of normalised training images, shuffled and augmented unless Lightning overfits batches.

        Raises:
            UsageError: ``drop_last`` leaves no batch.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0)
        random = {} if overfit else {"shuffle_seed": torch.initial_seed(), "augment": self.augment}
        loader = self._loader("train", **random, drop_last=self.drop_last, even=True)
        if not len(loader):
            size = f"the {self.size('train'):,} training images"
            raise UsageError(f"drop_last is true, and {size} do not fill a batch of {self.batch_size:,}", "batch_size")
        return loader

    def val_dataloader(self) -> TensorLoader:
        """Return batches of normalised validation images."""
        return self._loader("val")

    def test_dataloader(self) -> TensorLoader:
        """Return batches of normalised test images."""
        return self._loader("test")

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """Return the (N, C, H, W) uint8 images and (N,) labels of "train", "val" or "test", after ``setup``."""
        return self._parts[part]

    def size(self, part: str) -> int:
        """Return the number of images in "train", "val" or "test", after ``setup``."""
        return len(self._parts[part][1])

    def padded(self, images: Tensor) -> Tensor:
        """Add the black border of ``pad``: (B, C, SIDE, SIDE) -> (B, C, image_size, image_size). Keeps the dtype."""
        return functional.pad(images, [self.pad] * 4) if self.pad else images

    def normalize(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) uint8 pixels into float32 pixels ``(pixel / 255 - mean) / std``.

        Raises:
            UsageError: ``mean`` or ``std`` is not known yet.
        """
        if self.mean is None or self.std is None:
            raise UsageError(f"mean and std of {self.name} are not known, expected both, or a call of setup", "mean")
        return normalized(images, self.mean, self.std)

    def _loader(self, part: str, **settings: Any) -> TensorLoader:
        images, labels = self._parts[part]
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            images, labels = images.to(device), labels.to(device)
            settings |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return TensorLoader(images, labels, self.batch_size, self.normalize, **settings)

    def _checked_read(self, train: bool) -> tuple[Tensor, Tensor]:
        shape, source = (self.in_channels, self.SIDE, self.SIDE), f"{type(self).__name__}.read(train={train})"
        return checked_images(self.read(train), source, shape, self.num_classes)
