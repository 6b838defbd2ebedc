"""Objects in a picture of several: a page of digits, in reading order.

What belongs together is decided by distance and size: the bar of a 5 is smaller than a digit and near one, and the dots
of a dotted line are about as far from each other as they are wide. Digits that touch stay one object.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from cnn_lightning.data.ink import (
    FAINT,
    SMALL,
    SURE,
    Array,
    ink_on_background,
    is_photo,
    opacity,
    smooth_contrast,
    stands_out,
)
from cnn_lightning.data.pieces import grouped, pieces_of, reading_order

TILES = 10  # of a picture, in each direction, in which the paper is looked at
NEAR = 4  # pixels of the reduced picture around clear strokes that are not looked at
LEVEL = 1.5, 0.5  # ink has this many times the contrast of the paper; most that this may be of the strokes' contrast


class Found(NamedTuple):
    """An object in a picture."""

    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture, the last two exclusive
    ink: Array  # (H, W) in that box and a margin: its ink alone, see ink.py


def find_objects(photo: Image.Image) -> list[Found]:
    """Find the objects in a drawing or in a photo of a sheet.

    Args:
        photo: Mode "L" or "RGB": strokes on a background that is darker or lighter.

    Returns:
        The objects in reading order: rows from the top, each from the left. Empty if none stands out clearly.

    Raises:
        UsageError: There is nothing but background.
    """
    from scipy import ndimage

    pixels = np.asarray(photo, np.float32).reshape(photo.height, photo.width, -1)
    grainy = is_photo(pixels)
    ink = smooth_contrast(pixels) if grainy else ink_on_background(pixels)
    if grainy and not stands_out(ink):
        return []
    other = texture(ink)
    typical = float(np.median(ink[ink > SURE * ink.max()]))
    faint = max(LEVEL[0] * other, FAINT[0] * typical)
    if faint > LEVEL[1] * typical:  # squares as dark as the strokes
        return []
    pieces, labels = pieces_of(ink, faint)
    objects = reading_order(grouped(pieces, labels))
    number_of = np.zeros(labels.max() + 1, np.int32)  # piece -> number of its object
    for number, piece in enumerate(objects, start=1):
        number_of[piece.numbers] = number
    labels = number_of[labels]
    # Soft edges below the threshold belong to the nearest object.
    margin = math.ceil(max(ink.shape) / 300)
    distance, (row, column) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    nearest = np.where(distance <= margin, labels[row, column], 0)
    found = []
    for number, piece in enumerate(objects, start=1):
        left, top, right, bottom = piece.left, piece.top, piece.right, piece.bottom
        part = slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)
        own = np.pad(np.where(nearest[part] == number, ink[part], 0), 1)
        found.append(Found((left, top, right, bottom), opacity(own, other) if grainy else own.astype(np.float32)))
    return found


def texture(ink: Array) -> float:
    """Contrast that the paper itself reaches: squares, lines and grain are everywhere, strokes are not."""
    from scipy import ndimage

    step = math.ceil(max(ink.shape) / SMALL)
    largest = ndimage.maximum_filter(ink, step)[::step, ::step]
    near = ndimage.maximum_filter(largest > SURE * ink.max(), 2 * NEAR + 1)
    paper = np.where(near, np.nan, largest)
    tiles = [part for rows in np.array_split(paper, TILES) for part in np.array_split(rows, TILES, axis=1)]
    reached = [np.nanquantile(tile, 0.98) for tile in tiles if np.isfinite(tile).sum() > 0.3 * tile.size]
    return float(np.median(reached)) if reached else 0.0
