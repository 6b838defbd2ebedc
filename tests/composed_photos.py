"""Photos of handwritten digits, composed: strokes, pen, paper, light, camera and JPEG, each with its own settings.

``compose(number)`` is deterministic. Even numbers and odd ones share no handwriting: what is tuned on the even ones is
tested on the odd ones. Half of the digits are drawn in eight styles of handwriting, half are skeletons of MNIST's test
images, whose own strokes are wide and soft.

    python tests/composed_photos.py FOLDER    # writes all photos, to look at or for scripts/predict.py
"""

import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

WIDTHS = (1 / 60, 1 / 35, 1 / 20, 1 / 9)  # of the pen, as a share of the digit's height: ball-pen to marker
DARKNESSES = (0.3, 0.5, 0.75, 0.95)  # contrast of pen and paper: pencil to black ink
PAPERS = ("plain", "gradient", "squared", "lined", "shadow")
COUNT = 4 * len(WIDTHS) * len(DARKNESSES) * len(PAPERS)
BALL_PENS = range(10_000, 10_020)  # numbers of photos of thin ball-pen strokes on plain paper

# Strokes of a digit in a box of width 0.6 and height 1, as corners of smooth curves: two ways to write each digit.
_RING = [(0.3 + 0.3 * np.sin(t), 0.5 - 0.5 * np.cos(t)) for t in np.linspace(0.1, 2 * np.pi + 0.15, 16)]
_OVAL = [(0.3 - 0.26 * np.sin(t), 0.5 - 0.5 * np.cos(t)) for t in np.linspace(-0.5, 2 * np.pi - 0.6, 16)]
_SIX = [(0.5, 0.0), (0.25, 0.2), (0.06, 0.5), (0.03, 0.8), (0.2, 1.0), (0.45, 0.95), (0.55, 0.75)]
_CURL = [(0.52, 0.1), (0.36, 0.0), (0.15, 0.15), (0.02, 0.5), (0.06, 0.85), (0.28, 1.0), (0.5, 0.9), (0.56, 0.7)]
_NINE = [(0.52, 0.14), (0.36, 0.0), (0.14, 0.05), (0.04, 0.25), (0.14, 0.45), (0.36, 0.46), (0.52, 0.2)]
_EIGHT = [(0.5, 0.12), (0.3, 0.0), (0.1, 0.12), (0.14, 0.34), (0.44, 0.6), (0.54, 0.82), (0.3, 1.0), (0.06, 0.84)]
STROKES = {
    0: ([_RING], [_OVAL]),
    1: ([[(0.3, 0.0), (0.29, 0.5), (0.28, 1.0)]], [[(0.08, 0.28), (0.2, 0.16), (0.36, 0.0)], [(0.36, 0.0), (0.36, 1)]]),
    2: (
        [[(0.05, 0.22), (0.2, 0.02), (0.45, 0.05), (0.52, 0.28), (0.3, 0.65), (0.03, 0.98)], [(0.03, 0.98), (0.6, 1)]],
        [[(0.05, 0.15), (0.25, 0.0), (0.5, 0.12), (0.48, 0.4), (0.28, 0.75), (0.1, 0.97), (0.02, 0.88), (0.15, 0.8),
          (0.35, 0.95), (0.6, 0.95)]],
    ),
    3: (
        [[(0.08, 0.1), (0.3, 0.0), (0.5, 0.12), (0.46, 0.36), (0.22, 0.46)],
         [(0.22, 0.46), (0.48, 0.54), (0.56, 0.78), (0.32, 1.0), (0.02, 0.9)]],
        [[(0.06, 0.02), (0.5, 0.0)], [(0.5, 0.0), (0.22, 0.4)],
         [(0.22, 0.4), (0.5, 0.5), (0.54, 0.8), (0.28, 1.0), (0.02, 0.92)]],
    ),
    4: (
        [[(0.12, 0.02), (0.06, 0.5)], [(0.06, 0.5), (0.58, 0.5)], [(0.46, 0.05), (0.42, 1.0)]],
        [[(0.4, 0.0), (0.02, 0.66)], [(0.02, 0.66), (0.6, 0.66)], [(0.42, 0.4), (0.4, 1.0)]],
    ),
    5: (
        [[(0.12, 0.02), (0.08, 0.42)], [(0.08, 0.42), (0.35, 0.36), (0.54, 0.6), (0.42, 0.92), (0.05, 0.97)],
         [(0.12, 0.03), (0.54, 0.0)]],
        [[(0.55, 0.02), (0.14, 0.04)], [(0.14, 0.04), (0.1, 0.45)],
         [(0.1, 0.45), (0.4, 0.42), (0.52, 0.68), (0.36, 0.97), (0.02, 0.9)]],
    ),
    6: ([[*_SIX, (0.35, 0.56), (0.05, 0.75)]], [[*_CURL, (0.4, 0.52), (0.15, 0.58), (0.05, 0.72)]]),
    7: (
        [[(0.03, 0.03), (0.56, 0.0)], [(0.56, 0.0), (0.36, 0.45), (0.24, 1.0)]],
        [[(0.02, 0.05), (0.56, 0.02)], [(0.56, 0.02), (0.2, 1.0)], [(0.14, 0.5), (0.54, 0.48)]],
    ),
    8: (
        [[*_EIGHT, (0.16, 0.6), (0.4, 0.38), (0.48, 0.22), (0.5, 0.13)]],
        [[(0.3 + 0.2 * np.sin(t), 0.24 - 0.24 * np.cos(t)) for t in np.linspace(3.1, 9.5, 14)],
         [(0.3 + 0.27 * np.sin(t), 0.74 - 0.26 * np.cos(t)) for t in np.linspace(0, 6.4, 14)]],
    ),
    9: (
        [[*_NINE, (0.5, 0.1)], [(0.53, 0.05), (0.48, 0.55), (0.42, 1.0)]],
        [[*_NINE, (0.54, 0.15), (0.54, 0.6), (0.4, 0.94), (0.12, 0.97)]],
    ),
}  # fmt: skip
# Slant in degrees, width, and which digits are written in the second way.
STYLES = (
    (0, 1.0, ""), (3, 1.1, "0123456789"), (12, 0.85, "02468"), (20, 1.0, "13579"),
    (-8, 1.05, "01346"), (8, 0.75, "25789"), (15, 1.2, "1478"), (5, 0.9, "023569"),
)  # fmt: skip


class Setting(NamedTuple):
    """How a photo was composed."""

    digit: int
    width: float  # one of WIDTHS
    darkness: float  # one of DARKNESSES
    paper: str  # one of PAPERS
    hand: int  # 0 to 7: one of STYLES; -1: MNIST's


def setting(number: int) -> Setting:
    """Settings of a photo: every pen on every paper, twice among the even numbers and twice among the odd ones."""
    if number in BALL_PENS:
        widths, dark = (1 / 60, 1 / 45, 1 / 55, 1 / 50), (0.5, 0.6, 0.7, 0.8)
        return Setting(number % 10, widths[number % 4], dark[number // 4 % 4], "plain", number % len(STYLES))
    half, rest = number % 2, number // 2
    rest, kind = divmod(rest, 2)
    rest, width = divmod(rest, len(WIDTHS))
    rest, dark = divmod(rest, len(DARKNESSES))
    hand = -1 if kind else 2 * ((width + dark + rest) % 4) + half
    return Setting((7 * rest + 3 * width + dark + 5 * kind) % 10, WIDTHS[width], DARKNESSES[dark], PAPERS[rest], hand)


def compose(number: int) -> tuple[Image.Image, int]:
    """Return a photo as a JPEG, decoded again, and the digit on it."""
    digit, width, darkness, paper, hand = setting(number)
    rng = np.random.default_rng(number)
    strokes = skeleton(digit, number) if hand < 0 else written(digit, hand, rng)
    long = int(rng.integers(600, 1201))
    size = (long, long * 3 // 4)[:: rng.choice([-1, 1])]  # width and height of the photo
    height = min(size) * rng.uniform(0.4, 0.75)  # of the digit
    placed = place(strokes, size, height, rng)
    kind = rng.choice(["ball", "pencil", "felt"] if width < 1 / 10 else ["felt"])
    if number in BALL_PENS:
        kind = "ball"
    alpha = draw(placed, size, max(2.0, width * height), str(kind), rng)
    pen = np.array([[40, 50, 120], [25, 25, 30], [60, 60, 62], [150, 30, 40]][rng.integers(4)], float)
    sheet = np.array([238, 234, 226], float) + rng.uniform(-8, 8, 3)
    page = sheet + ruling(paper, size, rng)[..., None]
    # A darkness of 1 is black ink of contrast 200; the pen's colour is what full ink would have.
    strength = darkness * 200 / (sheet.mean() - pen.mean())
    page = page + (alpha * min(1.0, strength))[..., None] * (pen - sheet)
    page *= light(paper, size, rng)[..., None]
    page += rng.normal(0, 1, (*size[::-1], 1)) * rng.uniform(1.5, 4)  # grain of the paper
    blurred = ndimage.gaussian_filter(page, (*(2 * [rng.uniform(0.5, 1.6)]), 0))
    noisy = blurred + rng.normal(0, rng.uniform(1, 4), blurred.shape)
    file = BytesIO()
    photo = Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))
    photo.save(file, "JPEG", quality=int(rng.integers(30, 91)))
    return Image.open(file).convert("RGB"), digit


def written(digit: int, hand: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Strokes of a digit in a style, each time a little differently: (N, 2) points each."""
    slant, stretch, second = STYLES[hand]
    shift, phase = rng.normal(0, 0.02, (2, 2)), rng.uniform(0, 6, 2)
    strokes = []
    for corners in STROKES[digit][str(digit) in second]:
        points = smooth(np.array(corners, float) + rng.normal(0, 0.012, (len(corners), 2)))
        points += shift[0] * np.sin(5 * points + phase) + shift[1] * np.sin(3 * points[:, ::-1] + phase)
        points[:, 0] = stretch * points[:, 0] + np.tan(np.radians(slant + rng.normal(0, 3))) * (0.5 - points[:, 1])
        strokes.append(points)
    return strokes


def smooth(corners: np.ndarray) -> np.ndarray:
    """Points on a Catmull-Rom spline through (N, 2) corners."""
    if len(corners) < 3:
        return corners[0] + np.linspace(0, 1, 30)[:, None] * (corners[-1] - corners[0])
    ends = np.concatenate([2 * corners[:1] - corners[1:2], corners, 2 * corners[-1:] - corners[-2:-1]])
    t = np.linspace(0, 1, 12)[:, None]
    pieces = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        pieces.append((2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2)
    return np.concatenate(pieces)


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's test images and labels."""
    from cnn_lightning.data import MNIST

    images, labels = MNIST(download=False).read(train=False)
    return images[:, 0].numpy(), labels.numpy()


def skeleton(digit: int, number: int) -> list[np.ndarray]:
    """Strokes of a test image of MNIST: its skeleton as smooth lines."""
    images, labels = mnist()
    images = images[labels == digit][number % 2 :: 2]
    for image in np.roll(images, -(number * 7919) % len(images), axis=0):
        large = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
        thin = thinned(large > 100)
        # A wide stroke fills loops, and a faint one breaks: then the skeleton is not this digit any more.
        if thin.any() and ndimage.distance_transform_edt(~thin)[large > 60].max() <= 15:
            break
    strokes = []
    left = {tuple(point) for point in np.argwhere(thin)}
    whole = set(left)
    neighbours = {p: [q for q in _around(p) if q in whole] for p in whole}
    while left:
        start = min(left, key=lambda p: (sum(q in left for q in neighbours[p]), p))
        path = [start]
        left.discard(start)
        while near := [q for q in neighbours[path[-1]] if q in left]:
            path.append(min(near, key=lambda q: abs(q[0] - path[-1][0]) + abs(q[1] - path[-1][1])))
            left.discard(path[-1])
        joined = [q for q in neighbours[path[-1]] if q not in path[-3:]]  # where it meets another stroke
        before = [q for q in neighbours[start] if q not in path[:3]]
        points = np.array(before[:1] + path + joined[:1], float)[:, ::-1]
        if len(path) > 3:
            ends = points[[0, -1]]
            points = ndimage.gaussian_filter1d(points, 4, axis=0, mode="nearest")
            strokes.append(np.concatenate([ends[:1], points, ends[1:]]))
    return strokes


def _around(point: tuple[int, int]) -> list[tuple[int, int]]:
    return [(point[0] + y, point[1] + x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def thinned(mask: np.ndarray) -> np.ndarray:
    """Skeleton of a mask (Zhang and Suen 1984)."""
    mask = np.pad(mask, 1)
    while True:
        before = mask.sum()
        for step in (0, 1):
            p = [np.roll(mask, shift, (0, 1)) for shift in
                 ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))]  # fmt: skip
            count = sum(each.astype(int) for each in p)
            turns = sum(~a & b for a, b in zip(p, p[1:] + p[:1], strict=True))
            north, east, south, west = p[::2]
            first, second = (east & south & (north | west), north & west & (east | south))
            kept = (first if step == 0 else second) | (count < 2) | (count > 6) | (turns != 1)
            mask = mask & kept
        if mask.sum() == before:
            return mask[1:-1, 1:-1]


def place(strokes: list[np.ndarray], size: tuple[int, int], height: float, rng: np.random.Generator) -> list:
    """Turn strokes, see them at a small angle, scale them to a height in pixels and put them on the page."""
    points = np.concatenate(strokes)
    middle, side = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0).max()
    angle = np.radians(rng.uniform(-12, 12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tilt = rng.uniform(-0.15, 0.15, 2)
    centre = np.array(size) / 2 + rng.uniform(-0.5, 0.5, 2) * (np.array(size) - 1.25 * height).clip(0)
    placed = []
    for stroke in strokes:
        seen = (stroke - middle) / side @ turn.T
        placed.append(centre + height * seen / (1 + seen @ tilt)[:, None])
    return placed


def draw(strokes: list, size: tuple[int, int], width: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Opacity of the ink, (H, W) in [0, 1]: a ball-pen skips, a pencil leaves the grain of the paper."""
    picture = Image.new("L", (2 * size[0], 2 * size[1]))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        steps = np.r_[0, np.cumsum(np.hypot(*np.diff(stroke, axis=0).T))]
        along = np.arange(0, max(steps[-1], 1), max(1.0, width / 4))
        points = np.stack([np.interp(along, steps, stroke[:, axis]) for axis in (0, 1)], 1)
        pressure = ndimage.gaussian_filter1d(rng.normal(0, 1, len(points) + 40), 12)[20:-20] * 3
        ink = np.full(len(points), 1.0)
        if kind == "ball":
            ink = np.clip(0.85 + 0.12 * pressure, 0.45, 1)
            skips = ndimage.gaussian_filter1d(rng.normal(0, 1, len(points) + 20), 2)[10:-10] * 2.6
            ink = np.where(skips > 1.6, 0.25 * ink, ink)
        radii = width * np.clip(1 + 0.08 * pressure, 0.7, 1.3)
        for (x, y), radius, grey in zip(2 * points, radii, ink, strict=True):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(255 * grey))
    alpha = np.asarray(picture.resize(size, Image.Resampling.BOX), float) / 255
    if kind == "pencil":
        grain = ndimage.gaussian_filter(rng.normal(0, 1, alpha.shape), 0.9)
        alpha = alpha * np.clip(0.75 + 0.3 * grain / grain.std(), 0, 1)
    return alpha


def ruling(paper: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Printed lines of the paper, (H, W) at most 0."""
    page = np.zeros(size[::-1])
    if paper not in ("squared", "lined"):
        return page
    y, x = np.mgrid[: size[1], : size[0]]
    angle, gap = np.radians(rng.uniform(-6, 6)), rng.uniform(28, 60) * (1 if paper == "squared" else 2)
    for turned in (y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle))[: 3 - len(paper) % 3]:
        page[(turned + gap / 3) % gap < rng.uniform(1.2, 2.5)] = -rng.uniform(18, 45)
    return page


def light(paper: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Light on the page, (H, W) in (0, 1]: even, falling off, or with the shadow of a hand or of the phone."""
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    fall = {"gradient": rng.uniform(0.2, 0.45), "shadow": 0.08}.get(paper, 0.05)
    seen = 1 - fall * (along + 1.42) / 2.84 - fall / 4 * (x * x + y * y)
    if paper == "shadow":
        turned = angle + rng.uniform(1, 2)
        edge = x * np.cos(turned) + y * np.sin(turned) + 0.15 * np.sin(4 * along) - rng.uniform(-0.3, 0.3)
        seen = seen * (1 - rng.uniform(0.2, 0.4) / (1 + np.exp(-edge / rng.uniform(0.01, 0.12))))
    return seen


def write(folder: Path) -> None:
    """Write all photos as PNG, named NUMBER_DIGIT.png."""
    folder.mkdir(parents=True)
    for number in (*range(COUNT), *BALL_PENS):
        photo, digit = compose(number)
        photo.save(folder / f"{number:05}_{digit}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
