"""Preparation of users' own pictures, so that they look like the images of a dataset.

A network expects what it was trained on: an MNIST digit is white on black, its longest side 20 pixels, its centre of
mass in the centre. A photo that is only resized to 28×28 is unlike that, and is classified at random.
"""

import math
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from cnn_lightning.data.ink import (
    ink_in_photo,
    ink_on_background,
    is_photo,
    outline,
    stroke_width,
    widened,
    without_specks,
)
from cnn_lightning.data.picture_formats import FORMATS, format_not_read, formats_for
from cnn_lightning.errors import UsageError

SIZE = 28  # side of a prepared picture
LARGEST = 1000  # side to which a photo is reduced when it is read, which saves time and memory
RIM = 0.15  # share of the strongest ink at which the blurred edge of an enlarged stroke becomes stroke
# What Pillow raises for a damaged file, depending on where it notices the damage.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Preparation:
    """How the images of a dataset were made, applied to other pictures.

    Source: for MNIST, "size normalized to fit in a 20x20 pixel box while preserving their aspect ratio", then shifted
    so that the centre of mass is in the centre of 28×28 (LeCun et al. 1998); for Fashion-MNIST, trimmed, longest edge
    resized to 28, shortest edge extended to 28, negated (Xiao et al. 2017, arXiv 1708.07747, section 2).
    """

    box: int  # side in pixels of the box that the object is scaled to fit
    centre_by_mass: bool  # centre the object's centre of mass instead of its bounding box
    strokes: bool  # the object is drawn with a pen, so that all of it is about equally dark
    cells: int | None = None  # average the ink in cells × cells, then enlarge them to 28×28
    stroke_width: float | None = None  # mean of the dataset in pixels; thinner strokes are widened to it
    one_piece: bool = True  # large pieces of ink that do not touch are different objects

    def __call__(self, photo: Image.Image) -> Tensor:
        """Prepare one picture.

        Args:
            photo: Mode "L" or "RGB": an object on a background that is darker or lighter.

        Returns:
            (1, 28, 28) uint8, a bright object on black.

        Raises:
            UsageError: There is no object.
        """
        pixels = np.asarray(photo, np.float32).reshape(photo.height, photo.width, -1)
        return self.from_ink(ink_in_photo(pixels) if self.strokes and is_photo(pixels) else ink_on_background(pixels))

    def from_ink(self, raw: Array) -> Tensor:
        """Prepare an object from its ink: (H, W), 0 for paper, to (1, 28, 28) uint8."""
        ink = without_specks(raw)
        top, left, bottom, right = outline(ink, 0)
        # An image of the dataset's own size is not scaled, which would blur it, and its faint edges count too.
        scale = 1.0
        if abs(max(bottom - top, right - left) - self.box) > 1:
            if self.stroke_width:
                ink = self._widened((raw / ink.max()).clip(max=1), self.stroke_width)  # specks may be the strongest
            top, left, bottom, right = outline(ink, RIM * ink.max())
            scale = self.box / max(bottom - top, right - left)
        if self.centre_by_mass:
            # MNIST rounds to whole pixels: its centres of mass are on average half a pixel below and right of 14.
            sums = ink.sum(1), ink.sum(0)
            row, column = (side @ np.arange(0.5, len(side)) / ink.sum() - 0.5 / scale for side in sums)
        elif scale == 1 and ink.shape == (SIZE, SIZE):
            row, column = SIZE / 2, SIZE / 2  # the dataset's own images, not all exactly centred, stay as they are
        else:
            row, column = (top + bottom) / 2, (left + right) / 2
        image = window(ink, row, column, scale)
        if self.cells and scale != 1:
            small = Image.fromarray(image).resize((self.cells, self.cells), Image.Resampling.BICUBIC)
            image = interpolate(torch.from_numpy(np.array(small))[None, None], SIZE, mode="bilinear")[0, 0].numpy()
        image *= 255 / image.max()  # the brightest ink is white, as in all three datasets
        return torch.from_numpy(image.clip(0, 255).round().astype(np.uint8))[None]

    def _widened(self, ink: Array, goal: float) -> Array:
        """Widen strokes that are thinner than a goal after scaling, in (H, W) ink of at most 1."""
        top, left, bottom, right = outline(ink, 0.5)
        # Strokes that a pen broke are one piece if they will touch.
        margin = math.ceil(goal / (self.box - goal) * max(bottom - top, right - left)) + 1
        ink = without_specks(np.pad(ink[top:bottom, left:right], margin), gap=margin)
        top, left, bottom, right = outline(ink, 0.5)
        width = stroke_width(ink > 0.5)
        # The box grows with the strokes, but not the distance of their middle lines, which is scaled to box - goal.
        wanted = goal * max(max(bottom - top, right - left) - width, 1) / (self.box - goal)
        return widened(ink, wanted - width) if wanted > width else ink


def window(ink: Array, row: float, column: float, scale: float) -> Array:
    """Crop around a point what becomes 28×28 when scaled, and scale it with antialiasing."""
    side = SIZE / scale
    top, left = row - side / 2, column - side / 2
    if scale == 1:  # shift by whole pixels, which does not blur; halves go down and right, as in Fashion-MNIST
        top, left = math.ceil(top - 0.5), math.ceil(left - 0.5)
    pad = math.ceil(side / 2 + 1 / scale) + 1  # how far the window may reach beyond the picture
    box = (left + pad, top + pad, left + pad + side, top + pad + side)
    padded = Image.fromarray(np.pad(ink, pad))
    return np.array(padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)).clip(0)


def read_photo(path: Path) -> Image.Image:
    """Read a picture from a file.

    Args:
        path: A PNG, JPEG, BMP, GIF, WebP, TIFF or AVIF file, or HEIC if pillow-heif is installed. If it holds several
            pictures, the first is used.

    Returns:
        Mode "L" or "RGB", upright, at most 1,000 pixels a side, with transparency filled in.

    Raises:
        UsageError: The file cannot be read or is not a picture. The message does not name the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise UsageError("holds no picture that can be read" if path.is_dir() else "is not a file")
        if not status.st_size:
            raise UsageError("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities that Pillow can handle, and pictures it calls large
            # Open by file object: by name, Pillow memory-maps a TIFF and cuts a rotated one into rows of wrong length.
            with path.open("rb") as file, Image.open(file, formats=formats_for(path)) as photo:
                if photo.format == "TIFF":
                    _check_format(path)  # raw data of cameras look like a TIFF of a thumbnail
                return _decode(photo)
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError("is a broken link" if path.is_symlink() else "does not exist") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UsageError(f"is too large, expected at most {most:,} million pixels") from error
    except Image.UnidentifiedImageError as error:
        _check_format(path)
        raise UsageError(f"is not a picture, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except (*DAMAGE, struct.error, zlib.error) as error:
        reason = getattr(error, "strerror", None)  # such as "Permission denied"
        raise UsageError(f"cannot be read: {reason}" if reason else "is damaged") from error


def count_pictures(path: Path) -> int:
    """Return how many pictures a file holds that ``read_photo`` can read; the preview of a JPEG does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with path.open("rb") as file, Image.open(file, formats=formats_for(path)) as photo:
            return 1 if photo.format in ("JPEG", "MPO") else getattr(photo, "n_frames", 1)


def original_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels of the picture that ``read_photo`` reads, upright, before it is reduced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with path.open("rb") as file, Image.open(file, formats=formats_for(path)) as photo:
            if photo.format == "TIFF":
                photo.load()  # which turns it, and some versions of Pillow say so in its size before
            width, height = photo.size
            turned = photo.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _check_format(path: Path) -> None:
    if other := format_not_read(path):
        raise UsageError(f"has the format {other}, which is not read: save it as PNG or JPEG")


def _decode(photo: Image.Image) -> Image.Image:
    if photo.format == "TIFF":
        photo.load()  # turns it: to reduce it first would mix up its sides
    deep = photo.mode == "F" or photo.mode.startswith("I")
    if photo.mode == "P":
        photo.thumbnail((4 * LARGEST, 4 * LARGEST))  # drops pixels, since a palette has no colours in between
    if photo.has_transparency_data and not deep:
        photo = photo.convert("RGBA")
    elif photo.mode in ("1", "P"):
        photo = photo.convert("RGB" if photo.mode == "P" else "L")
    # Lets Pillow decode a JPEG at reduced size. Bicubic would overshoot the white of deep pixels, and Pillow cannot
    # reduce these in two steps.
    photo.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR, reducing_gap=None if deep else 2.0)
    photo = ImageOps.exif_transpose(photo)
    if deep:
        return Image.fromarray(eight_bits(np.asarray(photo, np.float64)))
    if photo.mode == "RGBA":  # on black or white, whichever gives more contrast
        on = [Image.alpha_composite(Image.new("RGBA", photo.size, colour), photo) for colour in ("black", "white")]
        return max((image.convert("RGB") for image in on), key=lambda image: np.asarray(image).std())
    return photo if photo.mode == "L" else photo.convert("RGB")


def eight_bits(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale deep pixels to [0, 255]. Not every file says what white is: it is guessed from the largest value."""
    if not np.isfinite(pixels).all():
        raise UsageError("holds pixels that are not numbers")
    pixels = pixels - min(0, pixels.min())
    largest = pixels.max()
    white = next((white for white in (1, 255, 65535) if largest <= white), largest)
    return (pixels * (255 / white)).round().astype(np.uint8)
