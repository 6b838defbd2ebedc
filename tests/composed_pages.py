"""Pages of digits, made from MNIST's images: handwritten digits on a sheet, each kind of page with its own trouble.

``compose(kind, number)`` is deterministic. Numbers below 1,000 use test images, the others use training images: what is
tuned on the latter is tested on the former.

    python -m tests.composed_pages FOLDER    # writes all pages, to look at or for scripts/predict.py
"""

import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from tests.composed_photos import light, ruling, thinned

COUNTS = (1, 2, 3, 5, 8, 12, 18, 25, 32, 40)  # digits on a page
TRAINING = 1000  # from this number on, a page is made of training images
KINDS = (
    "drawn",  # MNIST's own strokes, enlarged, black on white in straight rows, without grain: no photo
    "plain",  # a photo of pen on paper; from here on rows are not straight, and digits differ in size
    "pens",  # a pen a page: from ball-pen to marker, from pencil to black
    "mixed",  # a pen a digit: widths, darknesses and colours differ on the page
    "broken",  # a ball-pen that skips, and dotted lines
    "grain",  # rough paper, strong noise, JPEG
    "shadow",
    "squared",
    "lined",
    "specks",  # dirt
    "desk",  # a sheet on a dark desk: two of its edges are seen
)
COLOURS = ((40, 50, 120), (25, 25, 30), (60, 60, 62), (150, 30, 40), (30, 100, 50))


class Digit(NamedTuple):
    """A digit on a page."""

    label: int
    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Pen(NamedTuple):
    """What a digit is written with."""

    width: float  # as a share of the digit's height
    strength: float  # in [0, 1]: opacity of the ink
    colour: tuple[int, int, int]


def compose(kind: str, number: int) -> tuple[Image.Image, list[Digit]]:
    """Return a page, and its digits in reading order."""
    rng = np.random.default_rng((KINDS.index(kind), number))
    images, labels = mnist(number < TRAINING)
    long = int(rng.integers(1500, 2400))
    size = (long, long * 3 // 4)[:: rng.choice([-1, 1])]  # width and height
    page = np.empty((size[1], size[0], 3))
    page[:] = sheet = np.array([238, 234, 226], float) + rng.uniform(-8, 8, 3) if kind != "drawn" else 255.0
    scale = long / 1000  # ruling() is made for pages of about 1,000 pixels
    small = (round(size[0] / scale), round(size[1] / scale))
    page += enlarged(ruling(kind, small, rng), size)[..., None]
    pen, digits = a_pen(kind, rng), []
    for column, row, cell in layout(COUNTS[number % len(COUNTS)], size, kind, rng):
        index = int(rng.integers(len(images)))
        height = cell * (rng.uniform(0.5, 0.75) if kind != "drawn" else 0.65)  # of its longer side
        pen = a_pen(kind, rng) if kind == "mixed" else pen
        alpha = strokes(images[index], height, pen.width, kind, rng)
        alpha = ndimage.rotate(alpha, rng.uniform(-8, 8), order=1) if kind != "drawn" else alpha
        rows, columns = np.flatnonzero(alpha.max(1) > 0.3), np.flatnonzero(alpha.max(0) > 0.3)
        alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top = int(np.clip(row - alpha.shape[0] / 2, 0, size[1] - alpha.shape[0]))
        left = int(np.clip(column - alpha.shape[1] / 2, 0, size[0] - alpha.shape[1]))
        place = page[top : top + alpha.shape[0], left : left + alpha.shape[1]]
        place += pen.strength * alpha[..., None] * (np.array(pen.colour) - sheet)
        digits.append(Digit(int(labels[index]), (left, top, left + alpha.shape[1], top + alpha.shape[0])))
    if kind == "drawn":
        return Image.fromarray(page.clip(0, 255).round().astype(np.uint8)), digits
    if kind == "specks":
        dirt(page, digits, rng)
    if kind == "desk":
        desk(page, rng)
    page *= enlarged(light(kind, small, rng), size)[..., None]
    strong = 3 if kind == "grain" else 1
    page += rng.normal(0, strong * rng.uniform(1.5, 4), (*page.shape[:2], 1))
    page = ndimage.gaussian_filter(page, (*(2 * [scale * rng.uniform(0.5, 1.2)]), 0))
    page += rng.normal(0, strong * rng.uniform(1, 4), page.shape)
    file = BytesIO()
    quality = int(rng.integers(30, 60) if kind == "grain" else rng.integers(50, 91))
    Image.fromarray(page.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB"), digits


@cache
def mnist(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's images and labels."""
    from cnn_lightning.data import MNIST

    images, labels = MNIST(download=False).read(train=not test)
    return images[:, 0].numpy(), labels.numpy()


def a_pen(kind: str, rng: np.random.Generator) -> Pen:
    """Draw a pen that suits a kind of page."""
    if kind == "drawn":
        return Pen(0, 1, (0, 0, 0))
    colour = COLOURS[rng.integers(len(COLOURS))]
    if kind in ("pens", "mixed"):
        return Pen(rng.choice([1 / 40, 1 / 25, 1 / 15, 1 / 9]), rng.choice([0.35, 0.55, 0.8, 1.0]), colour)
    if kind == "broken":
        return Pen(rng.choice([1 / 25, 1 / 18]), 0.9, colour)
    return Pen(rng.choice([1 / 25, 1 / 15, 1 / 10]), rng.choice([0.7, 0.9]), colour)


def layout(count: int, size: tuple[int, int], kind: str, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Choose the centre (x, y) of each digit, and the height of its row, in reading order."""
    width, height = 0.86 * size[0], 0.86 * size[1]
    columns = min(count, max(1, round(np.sqrt(count * width / height / 0.75))))
    rows = -(-count // columns)
    cell = min(height / rows, 1.1 * width / columns, 0.45 * height)
    step = width / columns if columns > 1 else 0
    slope, bend, phase = rng.uniform(-0.25, 0.25), rng.uniform(0, 0.15), rng.uniform(0, 6)
    places = []
    for index in range(count):
        row, column = divmod(index, columns)
        x, y = 0.07 * size[0] + (column + 0.5) * width / columns, 0.07 * size[1] + (row + 0.5) * height / rows
        if kind != "drawn":  # a row is slanted and bent by at most the room that it has, and digits lie apart
            along = (column + 0.5) / columns - 0.5
            y += cell * (slope * along + bend * np.sin(phase + 5 * along) + rng.uniform(-0.06, 0.06))
            x += rng.uniform(-0.08, 0.08) * step
        places.append((x, y, cell))
    return places


def strokes(image: np.ndarray, height: float, width: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a digit of MNIST rewritten with a pen, (H, W) in [0, 1]; of "drawn" pages, its own strokes."""
    rows, columns = np.flatnonzero(image.max(1) > 60), np.flatnonzero(image.max(0) > 60)
    side = max(28, round(28 * height / max(len(rows), len(columns))))
    large = Image.fromarray(image)
    if kind == "drawn":
        return np.asarray(large.resize((side, side), Image.Resampling.BICUBIC), float) / 255
    soft = np.asarray(large.resize((224, 224), Image.Resampling.BICUBIC))
    middle = thinned(soft > 100)
    if kind == "broken":
        middle = interrupted(middle, rng)
    distance = ndimage.distance_transform_edt(~middle).astype(np.float32)
    distance = ndimage.gaussian_filter(distance, 1.0) - 0.8  # a skeleton has steps
    distance = np.asarray(Image.fromarray(distance).resize((side, side), Image.Resampling.BILINEAR)) * side / 224
    return (max(2.0, width * height) / 2 + 0.5 - distance).clip(0, 1)


def interrupted(middle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Interrupt a line, (224, 224) bool: a few gaps of up to a sixteenth of a digit's height, or dots."""
    points = np.argwhere(middle)
    kept = middle.copy()
    if rng.random() < 0.3:  # dots
        angle = np.arange(224)
        kept &= ((angle[:, None] // 6 + angle // 6) % 2).astype(bool)
        return kept if kept.sum() > 0.3 * middle.sum() else middle
    y, x = np.mgrid[:224, :224]
    for row, column in points[rng.integers(0, len(points), rng.integers(1, 4))]:
        kept &= np.hypot(y - row, x - column) > rng.uniform(6, 11)
    return kept if kept.sum() > 0.6 * middle.sum() else middle


def dirt(page: np.ndarray, digits: list[Digit], rng: np.random.Generator) -> None:
    """Put dark spots on a page, (H, W, 3), far smaller than its digits."""
    height = np.median([digit.box[3] - digit.box[1] for digit in digits])
    y, x = np.mgrid[: page.shape[0], : page.shape[1]]
    for _ in range(rng.integers(3, 15)):
        row, column = rng.uniform(0, page.shape[0]), rng.uniform(0, page.shape[1])
        radius = rng.uniform(0.005, 0.035) * height
        page[np.hypot(y - row, x - column) < radius] *= rng.uniform(0.3, 0.8)


def desk(page: np.ndarray, rng: np.random.Generator) -> None:
    """Show a dark desk along two edges of a page, (H, W, 3)."""
    y, x = np.mgrid[-1 : 1 : page.shape[0] * 1j, -1 : 1 : page.shape[1] * 1j]
    for across, along in ((x, y), (y, x)):
        side = rng.choice([-1, 1])
        page[side * across + rng.uniform(-0.03, 0.03) * along > rng.uniform(0.9, 0.97)] = rng.uniform(60, 130, 3)


def enlarged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a (H, W) picture."""
    return np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, Image.Resampling.BILINEAR), float)


def write(folder: Path) -> None:
    """Write 20 pages of each kind, named KIND_NUMBER_DIGITS.jpg."""
    folder.mkdir(parents=True)
    for kind in KINDS:
        for number in range(2 * len(COUNTS)):
            page, digits = compose(kind, number)
            page.save(folder / f"{kind}_{number:02}_{''.join(str(digit.label) for digit in digits)}.jpg", quality=95)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
