"""Pictures in files become images of one size, in memory."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from cnn_lightning.data.photos import read_photo
from cnn_lightning.errors import UsageError

Square = Literal["crop", "pad", "stretch"]
BLOCK = 256  # pictures that are decoded before the images are stored
LONGEST = 20  # ratio of the sides from which a picture is cropped before it is resized, which would need much memory
BILINEAR = Image.Resampling.BILINEAR  # with antialiasing, as torchvision resizes pictures


@dataclass(frozen=True)
class ToSquare:
    """Brings a picture to a square.

    Args:
        side: Of the square, in pixels.
        grey: Make it grey; in colour otherwise.
        square: "crop" scales the shorter side to ``side`` and cuts the centre out, as torchvision's ``Resize`` and
            ``CenterCrop`` do. "pad" scales the longer side to ``side`` and adds black on both sides. "stretch" changes
            the aspect ratio, as torchvision's ``Resize((side, side))`` does.
    """

    side: int
    grey: bool
    square: Square

    def __call__(self, photo: Image.Image) -> Tensor:
        """Turn a picture of mode "L" or "RGB" into a (C, side, side) uint8 image, C = 1 if ``grey``, else 3."""
        size = (self.side, self.side)
        photo = photo.convert("L" if self.grey else "RGB")
        if self.square == "pad":
            scale = self.side / max(photo.size)
            width, height = (max(1, round(length * scale)) for length in photo.size)
            photo = ImageOps.pad(photo.resize((width, height), BILINEAR), size, BILINEAR)
        elif self.square == "stretch":
            photo = photo.resize(size, BILINEAR)
        elif max(photo.size) > LONGEST * min(photo.size):
            photo = ImageOps.fit(photo, size, BILINEAR)
        else:
            photo = center_crop(resize(photo, self.side), self.side)
        return torch.from_numpy(np.array(photo)).view(self.side, self.side, -1).permute(2, 0, 1)


def decode(
    paths: Sequence[Path], prepare: Callable[[Image.Image], Tensor], shape: Sequence[int], title: str
) -> tuple[Tensor, dict[int, str]]:
    """Read pictures in parallel, with a progress bar on a terminal.

    Args:
        paths: N files.
        prepare: Turns a picture into an image.
        shape: (C, H, W) of an image.
        title: Shown with the bar.

    Returns:
        (M, C, H, W) uint8 images of the M files that can be read, in order; index of a file that cannot -> the reason.
    """
    images, count, damaged = torch.zeros(len(paths), *shape, dtype=torch.uint8), 0, dict[int, str]()

    def read(path: Path) -> Tensor | str:
        try:
            return prepare(read_photo(path))
        except UsageError as error:
            return str(error)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    # Pillow decodes without Python's lock. The filters of warnings, which each thread changes, are restored here.
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(cores) as threads,
        tqdm(desc=title, total=len(paths), unit=" pictures", leave=False, disable=None if is_first else True) as bar,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), BLOCK):
            for index, result in enumerate(threads.map(read, paths[start : start + BLOCK]), start):
                if isinstance(result, Tensor):
                    images[count] = result
                    count += 1
                else:
                    damaged[index] = result
                bar.update()
    return images[:count], damaged


def check_memory(count: int, shape: Sequence[int], copies: int) -> None:
    """Check that images fit into the memory that is free, before they are decoded.

    Args:
        count: Number of images.
        shape: (C, H, W) of an image.
        copies: How often they are in memory at the same time.

    Raises:
        UsageError: They do not.
    """
    needed, free = copies * count * int(np.prod(shape)), free_memory()
    if free is not None and needed > free:
        sizes = " × ".join(map(str, shape))
        message = f"{count:,} images of {sizes} bytes need {_size(needed)} of memory, {_size(free)} are free"
        raise UsageError(f"{message}: expected smaller images, or fewer", "data.image_size")


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes a process may still use, by the system and its control group; None if that is unknown.

    Args:
        root: Folder with ``proc`` and ``sys``.
    """
    limits = []
    with suppress(OSError, ValueError, KeyError):  # another system, or no limit
        lines = (root / "proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = root / "sys/fs/cgroup"
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        limits.append(most - used + int(cache))
    if not limits and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
