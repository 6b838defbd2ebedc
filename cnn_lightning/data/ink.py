"""Ink of a drawing or a photo: what differs from the background, without shadows, printed lines and dirt."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn_lightning.errors import UsageError

SAME = 24.0  # largest distance, of 255, between colours that count as one colour
PHOTO = 112  # longest side in pixels from which a picture with grain is a photo
SMALL = 250  # longest side in pixels at which the paper is looked for
SHADOW = 0.25, 5.0  # what is wider than this share of the picture, and this many strokes, is a shadow
SURE = 0.6  # share of the strongest ink from which pixels are ink for certain
SEED = 0.4  # share of the typical ink that a piece of ink reaches somewhere
FAINT = 0.12, 0.7  # shares of the typical ink between which the level lies where a stroke ends
SPECK = 0.01  # share of the ink of the largest piece below which a piece is dirt
NO_INK = "nothing but background: expected an object that is clearly darker or lighter"

Array = NDArray[np.float32]


def ink_on_background(pixels: Array) -> Array:
    """Distance of (H, W, C) pixels from the background's colour, (H, W), and 0 where that is noise.

    Raises:
        UsageError: There is nothing but background.
    """
    ink = np.sqrt(np.square(pixels - background(pixels)).mean(2))
    noise = noise_of(ink)
    if ink.max() < max(SAME, 2 * noise):
        raise UsageError(NO_INK)
    return np.where(ink > noise, ink, 0)


def is_photo(pixels: Array) -> bool:
    """Whether (H, W, C) pixels have grain and are enough to tell it from ink."""
    height, width, _ = pixels.shape
    return max(height, width) >= PHOTO and noise_of(np.sqrt(np.square(pixels - background(pixels)).mean(2))) > 0


def noise_of(ink: Array) -> float:
    """Grain of the paper and JPEG noise. In a drawn picture the median is 0, and its faintest grey is ink."""
    faint = ink[ink < SAME]
    return 6 * float(np.median(faint)) if faint.size else 0.0


def ink_in_photo(pixels: Array) -> Array:
    """Opacity of the strokes in a photo of (H, W, C) pixels: (H, W) in [0, 1], about 1 whatever the pen.

    Raises:
        UsageError: There is nothing but background.
    """
    from scipy import ndimage  # imported here because only preparing pictures needs SciPy

    ink = smooth_contrast(pixels)
    if not stands_out(ink):
        wide = ink_on_background(pixels)  # an object as wide as a shadow
        if ndimage.uniform_filter(wide, 5).max() < SAME:
            raise UsageError(NO_INK)
        return (wide / wide.max() - SEED).clip(0) / (1 - SEED)
    # What there is far from the strokes, such as squared paper, is no ink near them either.
    step = math.ceil(max(ink.shape) / SMALL)
    sure = ndimage.maximum_filter(ink > SURE * ink.max(), step)[::step, ::step]
    far = ndimage.distance_transform_edt(~sure) > SMALL / 20
    other = np.quantile(ndimage.maximum_filter(ink, step)[::step, ::step][far], 0.98) if far.mean() > 0.1 else 0
    return opacity(ink, float(other))


def smooth_contrast(pixels: Array) -> Array:
    """Contrast of (H, W, C) pixels, (H, W), with less grain."""
    from scipy import ndimage

    return ndimage.gaussian_filter(contrast(pixels), max(pixels.shape) / 1000)


def stands_out(ink: Array) -> bool:
    """Whether there are strokes in (H, W) contrast. Noise has both signs: 6 standard deviations are not reached."""
    return bool(ink.max() >= max(SAME / 2, 6 * 1.5 * np.median(np.abs(ink))))


def opacity(ink: Array, other: float) -> Array:
    """Turn (H, W) contrast into the opacity of strokes in [0, 1]; the paper itself reaches the contrast ``other``."""
    from scipy import ndimage

    typical = float(np.median(ink[ink > SURE * ink.max()]))
    faint = min(max(1.2 * other, FAINT[0] * typical), FAINT[1] * typical)
    pieces, count = ndimage.label(ink > faint, structure=np.ones((3, 3)))
    is_ink = np.zeros(count + 1, bool)
    is_ink[pieces[ink > max(SEED * typical, 1.3 * faint)]] = True
    is_ink[0] = False
    return np.where(is_ink[pieces], (ink / typical).clip(0, 1), 0).astype(np.float32)


def contrast(pixels: Array) -> Array:
    """Difference of (H, W, C) pixels from their paper in the direction of the ink's colour, (H, W), in even light."""
    from scipy import ndimage

    height, width, _ = pixels.shape
    step = math.ceil(max(height, width) / SMALL)
    rows, columns = -(-height // step), -(-width // step)
    whole = np.pad(pixels, ((0, rows * step - height), (0, columns * step - width), (0, 0)), "edge")
    small = whole.reshape(rows, step, columns, step, -1).mean((1, 3))
    grey = small.mean(2)
    # A stroke is a thin minimum or maximum; the edge of a shadow is neither.
    dark = ((grey - ndimage.gaussian_filter(grey, SMALL / 20)) ** 3).mean() < 0
    wide = SHADOW[0] * max(rows, columns)
    for _ in range(2):
        paper = closed(small, wide, dark)
        # Light multiplies: in a shadow, ink on paper has less contrast.
        light = paper.mean() / np.maximum(paper.mean(2, keepdims=True), 1) if dark else np.ones_like(paper[..., :1])
        even = (small - paper) * light
        amount = np.square(even).mean(2)
        sure = amount >= SURE**2 * amount.max()
        wide = min(wide, SHADOW[1] * max(1.0, stroke_width(sure)))
    colour = even[sure].mean(0)
    colour = colour / max(np.sqrt(colour @ colour * len(colour)), 1e-6)
    paper, light = (enlarged(part, step)[:height, :width] for part in (paper @ colour, light[..., 0]))
    return (pixels @ colour - paper) * light


def closed(picture: Array, wide: float, dark: bool) -> Array:
    """Remove from a (H, W, C) picture what is dark, or what is bright, and narrower than a number of pixels."""
    from scipy import ndimage

    half = math.ceil(wide / 2)
    close = ndimage.grey_closing if dark else ndimage.grey_opening
    smooth = ndimage.gaussian_filter(picture, (0.7, 0.7, 0))
    padded = np.pad(smooth, ((2 * half, 2 * half), (2 * half, 2 * half), (0, 0)), "edge")
    return close(padded, (2 * half + 1, 2 * half + 1, 1))[2 * half : -2 * half, 2 * half : -2 * half]


def enlarged(picture: Array, factor: int) -> Array:
    """Enlarge a (H, W) picture."""
    size = factor * picture.shape[1], factor * picture.shape[0]
    return np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


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


def stroke_width(mask: NDArray[np.bool_]) -> float:
    """Mean width in pixels of the strokes in a (H, W) mask."""
    from scipy import ndimage

    # In a stripe of width w, the distances to its edges are on average w / 4 + 1 / 2.
    return 4 * float(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask].mean()) - 2


def widened(ink: Array, by: float) -> Array:
    """Widen the strokes of (H, W) ink, at most 1, by a number of pixels in all."""
    from scipy import ndimage

    return np.maximum(ink, (by / 2 + 1 - ndimage.distance_transform_edt(ink <= 0.5)).clip(0, 1)).astype(np.float32)


def without_specks(ink: Array, gap: float = 0) -> Array:
    """Remove the pieces of (H, W) ink that are tiny compared with the largest; gaps in pixels count as connections."""
    from scipy import ndimage

    near = ndimage.distance_transform_edt(ink <= 0) <= gap / 2 if gap else ink > 0
    pieces, count = ndimage.label(near, structure=np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, pieces, np.arange(count + 1))
    return np.where((amounts >= SPECK * amounts.max())[pieces], ink, 0)


def outline(ink: Array, level: float) -> tuple[int, int, int, int]:
    """Bounding box of all ink above a level: top, left, bottom, right, the last two exclusive."""
    rows, columns = (np.flatnonzero((ink > level).any(axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
