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
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from cnn_lightning.data.picture_formats import FORMATS, format_not_read
from cnn_lightning.errors import UsageError

SIZE = 28  # side of a prepared picture
LARGEST = 1000  # side to which a photo is reduced when it is read, which saves time and memory
SAME = 24.0  # largest distance, of 255, between colours that count as one colour
FAINT = 0.4  # share of the strongest ink up to which ink in a photo is a shadow or squared paper
RIM = 0.15  # share of the strongest ink at which the blurred edge of an enlarged stroke becomes stroke
SPECK = 0.01  # share of the ink of the largest piece below which a piece is dirt
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

    def __call__(self, photo: Image.Image) -> Tensor:
        """Prepare one picture.

        Args:
            photo: Mode "L" or "RGB": an object on a background that is darker or lighter.

        Returns:
            (1, 28, 28) uint8, a bright object on black.

        Raises:
            UsageError: There is no object.
        """
        ink = without_specks(ink_on_background(np.asarray(photo, np.float32), self.strokes))
        top, left, bottom, right = outline(ink, 0)
        # An image of the dataset's own size is not scaled, which would blur it, and its faint edges count too.
        scale = 1.0
        if abs(max(bottom - top, right - left) - self.box) > 1:
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


def ink_on_background(pixels: Array, strokes: bool) -> Array:
    """Return the distance of (H, W) or (H, W, 3) pixels from the background's colour, (H, W); 0 for background."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    ink = np.sqrt(np.square(pixels - background(pixels)).mean(2))
    # Grain of the paper and JPEG noise. In a drawn picture the median is 0, and its faintest grey is ink.
    faint = ink[ink < SAME]
    noise = 6 * np.median(faint) if faint.size else 0
    if ink.max() < max(SAME, 2 * noise):
        raise UsageError("nothing but background: expected an object that is clearly darker or lighter")
    # In a photo of strokes, faint ink is background too; in smaller pictures the edges of strokes are as faint.
    if strokes and noise and max(ink.shape) >= 4 * SIZE:
        return (ink - max(noise, FAINT * ink.max())).clip(0)
    return np.where(ink > noise, ink, 0)


def background(pixels: Array) -> Array:
    """Background colour of (H, W, C) pixels: (C,) for a drawn picture, (H, W, C) for a photo with uneven light."""
    height, width, _ = pixels.shape
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = commonest(frame)
    if (frame == colour).all(1).mean() >= 0.5:
        return colour
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2).astype(np.float32)
    step = math.ceil(max(height, width) / 100)
    some, some_terms = (array[::step, ::step].reshape(-1, array.shape[2]) for array in (pixels, terms))
    # Fit a plane, then a curved surface, each to the pixels near the previous fit, starting at the common colour.
    surface = np.broadcast_to(colour, some.shape)
    for size in (3,) * 8 + (6,) * 8:
        near = np.abs(some - surface).max(1) < SAME
        if near.sum() < 2 * size:  # in a picture of few pixels
            return colour
        weights = np.linalg.lstsq(some_terms[near, :size], some[near], rcond=None)[0]
        surface = some_terms[:, :size] @ weights
    return terms @ weights


def commonest(colours: Array) -> Array:
    """(C,) colour with the most similar ones in (N, C). The mean would mix the object's colour in."""
    some = colours[:: math.ceil(len(colours) / 400)]
    near = np.abs(some[:, None] - some).max(2) < SAME
    return np.median(some[near[near.sum(1).argmax()]], axis=0)


def without_specks(ink: Array) -> Array:
    """Remove the pieces of (H, W) ink that are tiny compared with the largest."""
    from scipy import ndimage  # imported here because only preparing pictures needs SciPy

    pieces, count = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, pieces, np.arange(count + 1))
    return np.where((amounts >= SPECK * amounts.max())[pieces], ink, 0)


def outline(ink: Array, level: float) -> tuple[int, int, int, int]:
    """Bounding box of all ink above a level: top, left, bottom, right, the last two exclusive."""
    rows, columns = (np.flatnonzero((ink > level).any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


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
        path: A PNG, JPEG, BMP, GIF, WebP or TIFF file. If it holds several pictures, the first is used.

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
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as photo:
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
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as photo:
            return getattr(photo, "n_frames", 1) if photo.format in ("GIF", "TIFF", "WEBP", "PNG") else 1


def _check_format(path: Path) -> None:
    if other := format_not_read(path):
        raise UsageError(f"has the format {other}, which is not read: save it as PNG or JPEG")


def _decode(photo: Image.Image) -> Image.Image:
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
