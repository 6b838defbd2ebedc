"""Which pieces of ink belong together, and in which order they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnn_lightning.data.ink import Array

MOST = 400  # pieces that are looked at, the largest ones
TINY = 0.05  # share of the largest piece's size below which a piece is dirt
OBJECT = 0.4, 2.5  # shares of the typical object's size between which the height of an object lies
LEAST = 8  # pixels that an object is high at least
EDGE = 0.6, 0.12  # share of the picture's side from which a piece at its border is no object, if it is this thin
# All gaps and sizes below are shares of the typical object's size, except where stroke widths are named.
DOT = 4.0, 2.5  # in stroke widths: largest size of a dot or dash, and its largest gap to the next one
SMALL_DOT = 0.4  # largest size of a dot, unless most of the ink is dots
SKIP = 1.5, 0.06  # largest gap that a pen leaves in a stroke: in stroke widths, and as a share of the object's size
SAME_HEIGHT = 0.3  # share of the lower one's height from which two pieces are next to each other
FEW = 3  # objects whose size may be that of halves
HALVES = 1.1, 0.08  # largest size that two halves have together, and largest gap
PART = 0.8, 0.35  # largest size of a part; its largest gap if it is tiny
ABOVE = 0.1  # largest gap between parts that lie above each other
FLAT = 0.35, 0.2  # largest height of a horizontal stroke, which is no digit, and its largest gap
GROWTH = 1.25  # largest size that two pieces have together
SAME_ROW = 0.25  # share of the lower one's height at which two objects of a row overlap


@dataclass
class Piece:
    """One piece of ink, or several that belong together."""

    top: int
    left: int
    bottom: int  # exclusive, as is right
    right: int
    amount: float  # of ink
    width: float  # of its strokes, in pixels
    numbers: list[int]  # of the pieces in the labels

    @property
    def size(self) -> int:
        """Longer side of its box."""
        return max(self.height, self.right - self.left)

    @property
    def height(self) -> int:
        """Height of its box."""
        return self.bottom - self.top

    def joined(self, other: "Piece") -> "Piece":
        """Return both as one."""
        amount = self.amount + other.amount
        return Piece(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
            amount,
            (self.amount * self.width + other.amount * other.width) / amount,
            self.numbers + other.numbers,
        )


def pieces_of(ink: Array, level: float) -> tuple[list[Piece], NDArray[np.int32]]:
    """Find the connected pieces of (H, W) ink above a level.

    Returns:
        The largest pieces, without lines across the picture and what lies along its border; (H, W) int labels.
    """
    from scipy import ndimage

    labels, count = ndimage.label(ink > level, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    amounts = ndimage.sum_labels(ink, labels, numbers)
    peaks = ndimage.maximum(ink, labels, numbers) if count else amounts
    # In a stripe of width w, the distances to its edges are on average w / 4 + 1 / 2.
    widths = 4 * ndimage.mean(ndimage.distance_transform_edt(np.pad(labels > 0, 1))[1:-1, 1:-1], labels, numbers) - 2
    boxes = ndimage.find_objects(labels)
    pieces = []
    for index in np.argsort(-amounts, kind="stable")[:MOST]:
        rows, columns = boxes[index]
        width = max(1.0, float(widths[index]))
        piece = Piece(
            rows.start, columns.start, rows.stop, columns.stop, float(amounts[index]), width, [int(index) + 1]
        )
        if peaks[index] > 1.3 * level and not _is_edge(piece, ink.shape):
            pieces.append(piece)
    return pieces, labels


def _is_edge(piece: Piece, shape: tuple[int, ...]) -> bool:
    """Whether a piece is the edge of the sheet, or squares: long, thin, and at the border of the picture."""
    at_border = piece.top == 0 or piece.left == 0 or piece.bottom == shape[0] or piece.right == shape[1]
    return at_border and piece.size > EDGE[0] * max(shape) and piece.width < EDGE[1] * piece.size


def grouped(pieces: list[Piece], labels: NDArray[np.int32]) -> list[Piece]:
    """Join the pieces that belong together, and drop dirt and lines.

    Args:
        pieces: As of ``pieces_of``.
        labels: (H, W) int.
    """
    if not pieces:
        return []
    largest = max(piece.size for piece in pieces)
    pieces = [piece for piece in pieces if piece.size > TINY * largest]
    gaps = _gaps(pieces, labels)
    typical, width = typical_size(pieces), typical_width(pieces)
    most = max(SMALL_DOT * typical, DOT[0] * width if typical <= DOT[0] * width else 0)
    pieces, gaps = _joined(pieces, gaps, lambda one, other, gap: _is_dot(one, other, gap, most))
    typical = typical_size(pieces)
    pieces, gaps = _joined(pieces, gaps, lambda one, other, gap: _is_part(one, other, gap, typical))
    typical = typical_size(pieces)
    if sum(piece.size >= OBJECT[0] * typical for piece in pieces) <= FEW:  # they may be parts of one
        pieces, gaps = _joined(pieces, gaps, lambda one, other, gap: _is_part(one, other, gap, 2 * typical))
        typical = typical_size(pieces)
    least, most = max(OBJECT[0] * typical, LEAST), OBJECT[1] * typical
    return [piece for piece in pieces if least <= piece.height and piece.size <= most]


def typical_size(pieces: list[Piece]) -> float:
    """Return the size that most of the ink has at most; of few pieces, the largest."""
    return _quantile(pieces, [piece.size for piece in pieces], 0.7 if len(pieces) > 3 else 1)


def typical_width(pieces: list[Piece]) -> float:
    """Return the median width of strokes."""
    return _quantile(pieces, [piece.width for piece in pieces], 0.5)


def _quantile(pieces: list[Piece], values: Sequence[float], share: float) -> float:
    """Return the value that is not exceeded by a share of the ink."""
    order = np.argsort(values)
    amounts = np.cumsum([pieces[index].amount for index in order])
    return float(values[order[min(np.searchsorted(amounts, share * amounts[-1]), len(order) - 1)]])


def _gaps(pieces: list[Piece], labels: NDArray[np.int32]) -> Array:
    """Return the (N, N) gaps between pieces in pixels, infinite where they are far from each other."""
    from scipy.spatial import cKDTree

    trees = []
    for piece in pieces:
        part = labels[piece.top : piece.bottom, piece.left : piece.right] == piece.numbers[0]
        inner = np.pad(part, 1)
        inside = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        trees.append(cKDTree(np.argwhere(part & ~inside) + np.array([piece.top, piece.left])))
    gaps = np.full((len(pieces), len(pieces)), np.inf, np.float32)
    for one in range(len(pieces)):
        for other in range(one):
            a, b = pieces[one], pieces[other]
            far = 0.5 * max(a.size, b.size) + DOT[1] * max(a.width, b.width)
            if _between(a.top, a.bottom, b.top, b.bottom) < far and _between(a.left, a.right, b.left, b.right) < far:
                small, large = (one, other) if trees[one].n < trees[other].n else (other, one)
                gaps[one, other] = gaps[other, one] = trees[large].query(trees[small].data)[0].min() - 1
    return gaps


def _between(start: int, stop: int, other_start: int, other_stop: int) -> int:
    """Distance of two intervals, negative where they overlap."""
    return max(start, other_start) - min(stop, other_stop)


def _joined(
    pieces: list[Piece], gaps: Array, belong: Callable[[Piece, Piece, float], bool]
) -> tuple[list[Piece], Array]:
    """Join pieces, nearest first, as long as some belong together."""
    pieces, gaps = list(pieces), gaps.copy()
    untried = gaps.copy()
    while np.isfinite(nearest := untried.min()):
        one, other = sorted(divmod(int(untried.argmin()), len(pieces)))
        if not belong(pieces[one], pieces[other], float(nearest)):
            untried[one, other] = untried[other, one] = np.inf
            continue
        pieces[one] = pieces[one].joined(pieces.pop(other))
        gaps[one] = gaps[:, one] = np.minimum(gaps[one], gaps[other])
        gaps = np.delete(np.delete(gaps, other, 0), other, 1)
        untried = np.delete(np.delete(untried, other, 0), other, 1)
        gaps[one, one] = np.inf
        untried[one] = untried[:, one] = gaps[one]
    return pieces, gaps


def _is_dot(one: Piece, other: Piece, gap: float, most: float) -> bool:
    """Whether one of two pieces is a dot or a dash, of at most a size, of a line that the other continues."""
    dot = min((one, other), key=lambda piece: piece.size)
    return dot.size <= min(most, DOT[0] * dot.width) and gap <= DOT[1] * max(one.width, other.width)


def _is_part(one: Piece, other: Piece, gap: float, typical: float) -> bool:
    """Whether two pieces are parts of one object, given the typical size of an object."""
    small, large = sorted((one, other), key=lambda piece: piece.size)
    both = one.joined(other).size
    size = max(large.size, min(typical, 2 * large.size))
    skipped = gap <= min(SKIP[0] * max(one.width, other.width), SKIP[1] * size)
    if both > GROWTH * max(size, typical):
        return skipped and _overlap(one, other) < SAME_HEIGHT  # rows are never as close, digits of a row may be
    if skipped:
        return True
    if large.size < PART[0] * typical and both <= HALVES[0] * typical and gap <= HALVES[1] * typical:
        return True
    if any(piece.height <= FLAT[0] * size and piece.size > piece.height for piece in (one, other)):
        return gap <= FLAT[1] * size
    overlap = -_between(one.left, one.right, other.left, other.right)
    if overlap > 0.5 * min(one.right - one.left, other.right - other.left) and gap <= ABOVE * size:
        return True
    return gap <= PART[1] * (PART[0] * size - small.size)


def reading_order(pieces: list[Piece]) -> list[Piece]:
    """Sort into rows from the top, each from the left; rows need not be straight."""
    if not pieces:
        return []
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.left + piece.right):
        # It continues the row whose last piece is at its height.
        shares = [_overlap(row[-1], piece) for row in rows]
        if shares and max(shares) > SAME_ROW:
            rows[int(np.argmax(shares))].append(piece)
        else:
            rows.append([piece])
    # All rows are about equally slanted: a short one at the left must not pass those before it.
    middles = [np.array([[p.left + p.right, p.top + p.bottom] for p in row]) / 2 for row in rows]
    off = np.concatenate([points - points.mean(0) for points in middles])
    slope = (off[:, 0] @ off[:, 1]) / max(off[:, 0] @ off[:, 0], 1.0)
    order = np.argsort([(points[:, 1] - slope * points[:, 0]).mean() for points in middles], kind="stable")
    return [piece for index in order for piece in rows[index]]


def _overlap(one: Piece, other: Piece) -> float:
    """Share of the lower piece's height at which both are."""
    return -_between(one.top, one.bottom, other.top, other.bottom) / min(one.height, other.height)
