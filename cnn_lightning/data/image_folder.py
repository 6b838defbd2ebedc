"""ImageFolder: pictures in folders, one for each class."""

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.class_folders import LAYOUT, ClassFolders, Pictures, listed
from cnn_lightning.data.decoding import Square, ToSquare, check_memory, decode
from cnn_lightning.data.image_cache import cached
from cnn_lightning.data.photos import LARGEST
from cnn_lightning.data.splits import split_off
from cnn_lightning.errors import UsageError

TEST_SEED = 0  # the test set must not depend on the seed of the validation split


class ImageFolder(ImageDataModule):
    """Pictures in folders, one for each class, as torchvision's ``ImageFolder`` reads them.

    ``ROOT/train/CLASS/FILE``, with ``ROOT/val`` and ``ROOT/test`` next to ``train``; what is missing of both is split
    off. Or ``ROOT/CLASS/FILE``: a test set and a validation split are split off. Both splits are stratified;
    the test set is always the same, whatever ``split_seed`` is, as long as the files have the same names.

    Pictures are in a format that ``read_photo`` reads, also in subfolders of a class. They are decoded once and held
    in memory as uint8: 3,000 pictures of 64×64 in colour take 37 MB.

    Args:
        root: The folder.
        image_size: Side in pixels that all pictures are brought to; ``pad`` is added to it.
        grey: Read the pictures in grey, with one channel; in colour otherwise, with three.
        square: How a picture becomes a square: "crop" scales its shorter side to ``image_size`` and cuts the centre
            out, "pad" scales its longer side and adds black, "stretch" changes its aspect ratio.
        test_size: Test images, as a count or as a fraction of all, where there is no folder ``test``.
        class_names: The classes, by label. Defaults to the names of the folders, sorted.
        skip_damaged: Leave out pictures that cannot be read, with a warning that lists them; an error otherwise.
        cache: Folder in which decoded images are kept, so that they are read faster the next time. Defaults to none.
        kwargs: Arguments of ImageDataModule.

    Attributes:
        files: Part -> its files, in the order of its images, after ``setup``.

    Raises:
        UsageError: An argument is out of its range, or the folder holds no classes.
    """

    can_flip = True

    def __init__(
        self,
        root: str | Path | None = None,
        image_size: int = 64,
        grey: bool = False,
        square: Square = "crop",
        test_size: int | float = 0.1,
        class_names: list[str] | None = None,
        skip_damaged: bool = False,
        cache: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        root, cache = root and str(root), cache and str(cache)  # safe loading of checkpoints refuses a Path
        if not root:
            raise UsageError(f"ImageFolder has no root, expected a folder of pictures: {LAYOUT}", "root")
        if not 1 <= image_size <= LARGEST:
            raise UsageError(f"image_size is {image_size}, expected 1 to {LARGEST}", "data.image_size")
        if square not in ("crop", "pad", "stretch"):
            raise UsageError(f"square is {square}, expected crop, pad or stretch", "square")
        # The folder need not exist where a checkpoint names the classes, as for predict.py.
        self.class_names = class_names or ClassFolders(_path(root)).class_names()
        if len(set(self.class_names)) != max(2, len(self.class_names)):
            message = f"class_names is {class_names}, expected at least two names, all different"
            raise UsageError(message, "class_names")
        self.in_channels, self.SIDE = 1 if grey else 3, image_size
        super().__init__(root, download=False, **kwargs)
        self.hparams.pop("download", None)  # it is no argument of this class
        self.preparation = self._to_square = ToSquare(image_size, grey, square)
        self.test_size = test_size
        self.skip_damaged = skip_damaged
        self.cache = _path(cache) if cache else None
        self.files: dict[str, list[Path]] = {}
        self._found: dict[str, Pictures] = {}

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning has an attribute
        """Name of the folder, with "_" for characters that do not belong into the name of a run."""
        name = Path(os.path.abspath(self.root)).name  # noqa: PTH100  # resolve would follow a link
        return re.sub(r"[^\w.-]", "_", name) or type(self).__name__

    def prepare_data(self) -> None:
        """Find the pictures, without reading them.

        Raises:
            UsageError: There are none, too few, or of other classes.
        """
        self._find()

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training images, followed by the validation images, or read the test images.

        Raises:
            UsageError: Pictures cannot be read, or the images do not fit into memory.
        """
        found, parts = self._find(), ("train", "val") if train else ("test",)
        pictures = [picture for part in parts for picture in found[part]]
        images, damaged = self._decode([path for path, _ in pictures], parts[0])
        self._report(damaged, pictures)
        labels, start = list[int](), 0
        for part in parts:
            indices = range(start, start + len(found[part]))
            readable = [pictures[index] for index in indices if index not in damaged]
            if lost := {label for _, label in found[part]} - {label for _, label in readable}:
                raise UsageError(f"class {self.class_names[min(lost)]} has no {part} picture that can be read", "root")
            self.files[part] = [path for path, _ in readable]
            labels += [label for _, label in readable]
            start = indices.stop
        return images, torch.tensor(labels)

    def split_training(self, labels: Tensor) -> tuple[slice, slice]:
        """Return the places of the training and of the validation images, without copying them."""
        count = len(self.files["train"])
        return slice(count), slice(count, None)

    def _find(self) -> dict[str, Pictures]:
        """Find the pictures of each part, once; in an order that mixes the classes, and is always the same."""
        if self._found:
            return self._found
        folders = ClassFolders(self.root)
        if set(names := folders.class_names()) != set(self.class_names):
            message = f"{folders.parts['train']} holds the classes {listed(names)}, expected {listed(self.class_names)}"
            raise UsageError(message, "root")
        label_of = {name: label for label, name in enumerate(self.class_names)}
        found, others = dict[str, Pictures](), list[Path]()
        for part in folders.parts:
            found[part], more = folders.pictures(part, label_of)
            others += more
        for part, size, seed in (("test", self.test_size, TEST_SEED), ("val", self.val_size, self.split_seed)):
            if part not in found:
                labels = torch.tensor([label for _, label in found["train"]])
                split = split_off(labels, size, seed, f"{part}_size", self.class_names)
                found["train"], found[part] = ([found["train"][index] for index in ids.tolist()] for ids in split)
        if others:
            _print(f"warning: no pictures of a class, left out: {listed(_short(others, self.root))}")
        for part, pictures in found.items():
            order = np.random.default_rng(0).permutation(len(pictures))
            self._found[part] = [pictures[index] for index in order]
        return self._found

    def _decode(self, files: Sequence[Path], part: str) -> tuple[Tensor, dict[int, str]]:
        """Read pictures, or the cache of them; return images, and index of a file that cannot be read -> why."""
        shape = (self.in_channels, self.SIDE, self.SIDE)

        def read() -> tuple[Tensor, dict[int, str]]:
            copies = 1 + bool(self.pad) + 2 * bool(self.cache)  # the cache is written, and read back to check it
            check_memory(len(files), shape, copies)
            return decode(files, self._to_square, shape, f"Reading {self.name}")

        if self.cache is None:
            return read()
        # A file for each folder, way to prepare and split: none makes that of another one out of date.
        kind = f"{self._to_square} {self.val_size} {self.test_size} {self.split_seed}"
        which = hashlib.sha256(f"{self.root.absolute()} {kind}".encode(errors="replace")).hexdigest()[:12]
        return cached(self.cache / f"{self.name}-{part}-{which}.images", self.root, files, kind, shape, read)

    def _report(self, damaged: Mapping[int, str], pictures: Pictures) -> None:
        """List the pictures that cannot be read, as a warning or as an error."""
        if not damaged:
            return
        paths = _short([pictures[index][0] for index in damaged], self.root)
        reasons = sorted(f"{path} {reason}" for path, reason in zip(paths, damaged.values(), strict=True))
        message = f"{len(damaged):,} of {len(pictures):,} pictures in {self.root} cannot be read"
        if not self.skip_damaged:
            advice = "repair or remove them, or have them left out"
            raise UsageError(f"{message}: {listed(reasons, '; ')}; {advice}", "skip_damaged")
        _print(f"warning: {message} and are left out: {listed(reasons, '; ')}")


def _path(text: str | Path) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111  # Path.expanduser raises where there is no such user


def _short(paths: Sequence[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


@rank_zero_only
def _print(line: str) -> None:
    print(line, file=sys.stderr)
