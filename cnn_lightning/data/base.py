"""What all datasets share: settings, the split, the loaders."""

import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional

from cnn_lightning.data.augment import Augment, Erase, FlipAndShift, Warp
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.data.photos import Preparation
from cnn_lightning.errors import UsageError


class ImageDataModule(LightningDataModule, ABC):
    """A dataset of grey images, split into training, validation and test images.

    The test images are the dataset's official test set, and only the test stage reads them. The validation images
    are taken from the training images, the same share of every class, by a seed of their own: every stage, process
    and run with that seed has the same ones. The training images are shuffled anew every epoch, in an order that
    follows from PyTorch's seed (``--seed_everything``).

    Args:
        root: Folder of the datasets. Default: the variable CNN_LIGHTNING_DATA, else ``data``.
        batch_size: Images in a batch; with several processes, in the batch of each.
        val_size: Validation images, as a count (6000) or as a fraction of the training images (0.1).
        split_seed: Seed that chooses the validation images.
        mean: Subtracted from the pixels, which lie in [0, 1]. Default: the mean of the dataset's training images.
        std: Divides the pixels then. Default: the standard deviation of the dataset's training images. With mean 0
            and std 1 the pixels stay in [0, 1].
        drop_last: Leave out the last training batch of an epoch if it is not full. Validation and test never do.
        flip: Mirror half of the training images left to right, at random. Not for digits.
        shift: Move every training image at random, by up to so many pixels in every direction. What leaves the image
            is cut off.
        rotate: Turn every training image at random, by up to so many degrees to either side.
        scale: Make every training image larger or smaller at random, by up to this share of its size.
        shear: Slant every training image at random, by up to so many degrees to either side.
        elastic: Distort every training image at random, as if drawn on rubber: 4×4 points are moved by so many pixels
            (standard deviation), and what lies between moves with them.
        erase: Share of the training images of which a random rectangle is covered with grey, in [0, 1].
        pad: Black pixels added on every side of all images, room for moving them. The network's ``image_size`` is then
            28 + 2 * pad.
        download: Download the dataset if it is not on disk.

    Attributes:
        class_names: The classes, by label.
        can_flip: Whether a mirrored image is of the same class, and so ``flip`` is allowed.
        preparation: Makes of users' own pictures images like those of the dataset; None where nobody knows how.
        in_channels: Channels of an image.
        image_size: Side of an image in pixels, with ``pad``.
        SIDE: Side of an image on disk.
        MEAN: Mean of the pixels of the training images, in [0, 1].
        STD: Standard deviation of the same.

    Raises:
        UsageError: A setting is not possible.
    """

    class_names: ClassVar[tuple[str, ...]]
    can_flip: ClassVar[bool] = False
    preparation: ClassVar[Preparation | None] = None
    in_channels: ClassVar[int] = 1
    SIDE: ClassVar[int] = 28
    MEAN: ClassVar[float]
    STD: ClassVar[float]

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 64,
        val_size: int | float = 0.1,
        split_seed: int = 0,
        mean: float | None = None,
        std: float | None = None,
        drop_last: bool = False,
        flip: bool = False,
        shift: int = 0,
        rotate: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        elastic: float = 0.0,
        erase: float = 0.0,
        pad: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected at least 1: change --data.batch_size")
        if std is not None and not 0 < std < math.inf:
            raise UsageError(f"std is {std}, expected a number above 0: change --data.std")
        if mean is not None and not math.isfinite(mean):
            raise UsageError(f"mean is {mean}, expected a number: change --data.mean")
        if not 0 <= split_seed < 2**32:
            raise UsageError(f"split_seed is {split_seed}, expected 0 to 4294967295: change --data.split_seed")
        if not 0 <= pad <= 1000:
            raise UsageError(f"pad is {pad}, expected 0 to 1000 pixels: change --data.pad")
        self.image_size = self.SIDE + 2 * pad
        if not 0 <= shift < self.image_size:
            raise UsageError(f"shift is {shift}, expected 0 to {self.image_size - 1} pixels: change --data.shift")
        for name, value, most in (
            ("rotate", rotate, 180),
            ("scale", scale, 0.9),
            ("shear", shear, 60),
            ("elastic", elastic, self.image_size),
            ("erase", erase, 1),
        ):
            if not 0 <= value <= most:
                raise UsageError(f"{name} is {value}, expected 0 to {most}: change --data.{name}")
        root = root and str(root)  # checkpoints take no Path
        self.save_hyperparameters()
        # The command line saves this with the settings; built in Python, a checkpoint shall name its dataset too.
        self.hparams.setdefault("_class_path", f"{type(self).__module__}.{type(self).__qualname__}")
        self.root = Path(root or os.environ.get("CNN_LIGHTNING_DATA") or "data")
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.mean = self.MEAN if mean is None else mean
        self.std = self.STD if std is None else std
        self.drop_last = drop_last
        changes = [
            *([FlipAndShift(flip, shift)] if flip or shift else []),
            *([Warp(rotate, scale, shear, elastic)] if rotate or scale or shear or elastic else []),
            *([Erase(erase)] if erase else []),
        ]
        self.augment = Augment(changes) if changes else None
        self.pad = pad
        self.download = download
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training images or the test images.

        Returns:
            (N, 1, 28, 28) uint8 images and (N,) int64 labels.
        """

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        """Read what a stage needs, once: the training images to fit and to validate, the test images to test.

        Raises:
            UsageError: ``val_size`` or ``flip`` does not fit the dataset, or a file is missing or damaged.
        """
        if stage == "test":
            if "test" not in self._parts:
                images, labels = self.read(train=False)
                self._parts["test"] = self.padded(images), labels
        elif "train" not in self._parts:
            if self.hparams["flip"] and not self.can_flip:
                raise UsageError(
                    f"flip is true, expected false for {type(self).__name__}, of which a mirrored image is none: "
                    "change --data.flip"
                )
            images, labels = self.read(train=True)
            images = self.padded(images)
            train, val = stratified_split(labels, self._val_count(len(labels)), self.split_seed)
            self._parts["train"] = images[train], labels[train]
            self._parts["val"] = images[val], labels[val]

    def train_dataloader(self) -> TensorLoader:
        """Batches of normalised training images, shuffled and augmented; neither of it to overfit a few of them.

        Raises:
            UsageError: There is no full batch, and others are left out.
        """
        overfit = self.trainer is not None and self.trainer.overfit_batches
        random = {} if overfit else {"shuffle_seed": torch.initial_seed(), "augment": self.augment}
        loader = self._loader("train", **random, drop_last=self.drop_last, even=True)
        if not len(loader):
            raise UsageError(
                f"the {self.size('train'):,} training images do not fill a batch of {self.batch_size:,}: "
                "change --data.batch_size or --data.drop_last"
            )
        return loader

    def val_dataloader(self) -> TensorLoader:
        """Batches of normalised validation images."""
        return self._loader("val")

    def test_dataloader(self) -> TensorLoader:
        """Batches of normalised test images."""
        return self._loader("test")

    def part(self, part: str) -> tuple[Tensor, Tensor]:
        """All of "train", "val" or "test", after the setup of their stage: (N, C, H, W) uint8 and (N,) int64."""
        return self._parts[part]

    def size(self, part: str) -> int:
        """Number of images in "train", "val" or "test", after the setup of their stage."""
        return len(self._parts[part][1])

    def padded(self, images: Tensor) -> Tensor:
        """Add the black pixels of ``pad``: (B, C, 28, 28) -> (B, C, image_size, image_size), with the same dtype."""
        return functional.pad(images, [self.pad] * 4)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn (B, C, H, W) uint8 pixels into float32 pixels ``(pixel / 255 - mean) / std``."""
        # Half the time of the three steps above, from which it differs in the last bit.
        return images.float().mul_(1 / (255 * self.std)).sub_(self.mean / self.std)

    def _loader(self, part: str, **settings: Any) -> TensorLoader:
        images, labels = self._parts[part]
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            images, labels = images.to(device), labels.to(device)
            settings |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return TensorLoader(images, labels, self.batch_size, self.normalize, **settings)

    def _val_count(self, available: int) -> int:
        size = self.val_size
        count = round(size * available) if isinstance(size, float) and math.isfinite(size) else size
        if not self.num_classes <= count <= available - self.num_classes:
            raise UsageError(
                f"val_size is {size}, expected a count or a fraction that leaves at least {self.num_classes} of the "
                f"{available:,} training images to validation and to training: change --data.val_size"
            )
        return count


def stratified_split(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Take ``count`` images out at random, of every class the same share.

    Args:
        labels: (N,) int64.
        count: How many to take out.
        seed: Seed of the choice.

    Returns:
        (N - count,) and (count,) int64: indices of the images that stay and of those taken out, in random order.
    """
    # Here, not above, so that only who splits waits for scikit-learn.
    from sklearn.model_selection import train_test_split

    split = train_test_split(np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels.numpy())
    stay, taken = (torch.from_numpy(indices) for indices in split)
    return stay, taken
