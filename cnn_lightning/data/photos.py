"""Users' own pictures, prepared as the images of a dataset were.

A network knows only what it was shown: an MNIST digit is white on black, 20 pixels in its longest side, its centre of
mass in the middle. A photo that is merely squeezed to 28×28 is none of this, and is classified at random.
"""

import math
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from cnn_lightning.errors import UsageError

SIZE = 28  # side of a prepared picture
LARGEST = 1000  # side of a photo as it is read; more would only take time and memory
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")  # not all that Pillow knows: EPS would start a program
SAME = 24.0  # greatest distance, of 255, between colours that may be one colour
FAINT = 0.4  # share of the greatest ink up to which what a photo shows is a shadow, or the squares of the paper
RIM = 0.15  # share of the greatest ink at which the smeared rim of an enlarged stroke becomes stroke
SPECK = 0.01  # share of the ink of the largest piece below which a piece is dirt

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Preparation:
    """How the pictures of a dataset were made, so that others can be made like them.

    Sources: for MNIST, "size normalized to fit in a 20x20 pixel box while preserving their aspect ratio", then moved
    so that the centre of mass is in the middle of 28×28 (LeCun et al. 1998); for Fashion-MNIST, trimmed, the longest
    edge resized to 28, the shortest extended to 28, negated (Xiao et al. 2017, arXiv 1708.07747, section 2).

    Args:
        box: Side of the box in pixels into which the object is scaled.
        centre_by_mass: Move the object's centre of mass to the middle, instead of the middle of its outline.
        strokes: The object is drawn with a pen, all of it about as dark.
        cells: Count the ink in so many by so many cells, and enlarge these to 28×28. Default: no cells.
    """

    box: int
    centre_by_mass: bool
    strokes: bool
    cells: int | None = None

    def __call__(self, photo: Image.Image) -> Tensor:
        """Prepare one picture.

        Args:
            photo: Mode "L" or "RGB", an object before a background, either of them the darker.

        Returns:
            (1, 28, 28) uint8, a bright object on black.

        Raises:
            UsageError: There is no object.
        """
        ink = without_specks(ink_on_background(np.asarray(photo, np.float32), self.strokes))
        top, left, bottom, right = outline(ink, 0)
        # In an image of the dataset's own size faint rims count too; nor is it scaled, which would blur it.
        scale = 1.0
        if abs(max(bottom - top, right - left) - self.box) > 1:
            top, left, bottom, right = outline(ink, RIM * ink.max())
            scale = self.box / max(bottom - top, right - left)
        if self.centre_by_mass:
            # MNIST counts in whole pixels: its centres of mass are on average half a pixel below and right of 14.
            row, column = (point - 0.5 / scale for point in centre_of_mass(ink))
        elif scale == 1 and ink.shape == (SIZE, SIZE):
            row, column = SIZE / 2, SIZE / 2  # the dataset's own are not all centred to the pixel: they stay
        else:
            row, column = (top + bottom) / 2, (left + right) / 2
        image = window(ink, row, column, scale)
        if self.cells and scale != 1:
            image = in_cells(image, self.cells)
        image *= 255 / image.max()  # the brightest ink is white, as in all three datasets
        return torch.from_numpy(image.clip(0, 255).round().astype(np.uint8))[None]


def ink_on_background(pixels: Array, strokes: bool) -> Array:
    """Tell the object from the background: 0 for background, else how far the colour is from it, up to 255.

    Args:
        pixels: (H, W) or (H, W, 3) in [0, 255].
        strokes: In a photo, count as background what is much fainter than the rest.

    Returns:
        (H, W) float32.

    Raises:
        UsageError: There is nothing but background.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    ink = np.sqrt(np.square(pixels - background(pixels)).mean(2))
    # Grain of the paper, and what JPEG adds. The median is 0 in a drawn picture: its faintest grey is ink.
    faint = ink[ink < SAME]
    noise = 6 * np.median(faint) if faint.size else 0
    if ink.max() < max(SAME, 2 * noise):
        raise UsageError("nothing but background: expected an object that is clearly darker or lighter")
    if strokes and noise and max(ink.shape) >= 4 * SIZE:  # in smaller pictures the rims of strokes are as faint
        return (ink - max(noise, FAINT * ink.max())).clip(0)
    return np.where(ink > noise, ink, 0)


def background(pixels: Array) -> Array:
    """Colour of the background: one for a drawn picture, for a photo one for each pixel, since light falls unevenly.

    Args:
        pixels: (H, W, C).

    Returns:
        Of a shape that broadcasts against ``pixels``.
    """
    height, width, _ = pixels.shape
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = commonest(frame)
    if (frame == colour).all(1).mean() >= 0.5:
        return colour
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2).astype(np.float32)
    step = math.ceil(max(height, width) / 100)
    some, some_terms = (array[::step, ::step].reshape(-1, array.shape[2]) for array in (pixels, terms))
    # From the common colour outwards: a plane first, then a curved surface, each through what lies near the last.
    surface = np.broadcast_to(colour, some.shape)
    for size in (3,) * 8 + (6,) * 8:
        near = np.abs(some - surface).max(1) < SAME
        if near.sum() < 2 * size:  # in a picture of few pixels
            return colour
        weights = np.linalg.lstsq(some_terms[near, :size], some[near], rcond=None)[0]
        surface = some_terms[:, :size] @ weights
    return terms @ weights


def commonest(colours: Array) -> Array:
    """The colour with the most others near it: (N, C) to (C,). The mean of the border would mix in the object's."""
    some = colours[:: math.ceil(len(colours) / 400)]
    near = np.abs(some[:, None] - some).max(2) < SAME
    return np.median(some[near[near.sum(1).argmax()]], axis=0)


def without_specks(ink: Array) -> Array:
    """Remove from (H, W) ink the pieces that are tiny next to the largest."""
    from scipy import ndimage  # here, not above, so that only who prepares pictures waits for SciPy

    pieces, count = ndimage.label(ink > 0, structure=np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, pieces, np.arange(count + 1))
    return np.where((amounts >= SPECK * amounts.max())[pieces], ink, 0)


def outline(ink: Array, level: float) -> tuple[int, int, int, int]:
    """The smallest box around all ink above a level: top, left, bottom, right, the last two exclusive."""
    rows, columns = (np.flatnonzero((ink > level).any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def centre_of_mass(ink: Array) -> tuple[float, float]:
    """Row and column of the centre of mass; the middle of the first pixel is at 0.5."""
    return tuple((ink.sum(1 - axis) @ np.arange(0.5, ink.shape[axis])) / ink.sum() for axis in (0, 1))


def window(ink: Array, row: float, column: float, scale: float) -> Array:
    """Cut out what becomes 28×28 when scaled, around a point, and scale it with antialiasing."""
    side = SIZE / scale
    top, left = row - side / 2, column - side / 2
    if scale == 1:  # by whole pixels, for the same reason; a half goes down and right, as in Fashion-MNIST
        top, left = math.ceil(top - 0.5), math.ceil(left - 0.5)
    pad = math.ceil(side / 2 + 1 / scale) + 1  # as far as the window may reach beyond the picture
    box = (left + pad, top + pad, left + pad + side, top + pad + side)
    padded = Image.fromarray(np.pad(ink, pad))
    return np.array(padded.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)).clip(0)


def in_cells(image: Array, cells: int) -> Array:
    """Average (28, 28) in cells, then enlarge these as ``Digits`` does."""
    small = Image.fromarray(image).resize((cells, cells), Image.Resampling.BICUBIC)
    return interpolate(torch.from_numpy(np.array(small))[None, None], size=SIZE, mode="bilinear")[0, 0].numpy()


def read_photo(path: Path) -> Image.Image:
    """Read a picture from a file.

    Args:
        path: A PNG, JPEG, BMP, GIF, WebP or TIFF file. Of several pictures in it the first is taken.

    Returns:
        Mode "L" or "RGB", upright, its sides at most 1,000 pixels, what is transparent filled in.

    Raises:
        UsageError: The file cannot be read, or holds no picture. The message does not name it.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            raise UsageError("holds no picture that can be read" if path.is_dir() else "is not a file")
        if not status.st_size:
            raise UsageError("is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that Pillow can deal with, and of pictures it calls large
            # Given a name, Pillow maps a TIFF into memory, and cuts one that is turned into rows of the wrong length.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as photo:
                return _read(photo)
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError("is a broken link" if path.is_symlink() else "does not exist") from error
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise UsageError(f"is too large, expected at most {most:,} million pixels: make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise UsageError(f"is no picture, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    except Exception as error:  # Pillow checks little: a damaged file fails wherever it is noticed first
        reason = getattr(error, "strerror", None)  # such as "Permission denied"
        raise UsageError(f"cannot be read: {reason}" if reason else "is damaged") from error


def _read(photo: Image.Image) -> Image.Image:
    deep = photo.mode == "F" or photo.mode.startswith("I")
    if photo.mode == "P":
        photo.thumbnail((4 * LARGEST, 4 * LARGEST))  # drops pixels, for a palette has no colours in between
    if photo.has_transparency_data and not deep:
        photo = photo.convert("RGBA")
    elif photo.mode in ("1", "P"):
        photo = photo.convert("RGB" if photo.mode == "P" else "L")
    # A JPEG is decoded at a fraction of its size then. Bicubic would overshoot the white of deep pixels.
    # Nor can Pillow halve these, which else is its first step.
    photo.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR, reducing_gap=None if deep else 2.0)
    photo = ImageOps.exif_transpose(photo)
    if deep:
        return Image.fromarray(eight_bits(np.asarray(photo, np.float64)))
    if photo.mode == "RGBA":
        return flattened(photo)
    return photo if photo.mode == "L" else photo.convert("RGB")


def eight_bits(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Bring pixels of more than 8 bits to 0 ... 255. White is not always in the file: it is guessed from the largest.

    Raises:
        UsageError: Some are no numbers.
    """
    if not np.isfinite(pixels).all():
        raise UsageError("holds pixels that are no numbers")
    pixels = pixels - min(0, pixels.min())
    largest = pixels.max()
    white = next((white for white in (1, 255, 65535) if largest <= white), largest)
    return (pixels * (255 / white)).round().astype(np.uint8)


def flattened(photo: Image.Image) -> Image.Image:
    """Put an RGBA picture on black or on white, whichever it stands out from more."""
    on = [Image.alpha_composite(Image.new("RGBA", photo.size, colour), photo) for colour in ("black", "white")]
    return max((image.convert("RGB") for image in on), key=lambda image: np.asarray(image).std())
