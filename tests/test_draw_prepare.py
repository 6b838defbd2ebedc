"""The page of scripts/draw.py prepares pictures as Python does: each pixel within 1 of 255."""

import statistics
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cnn_lightning.data import EMNIST, MNIST, Digits, FashionMNIST
from cnn_lightning.data.decoding import ToSquare
from cnn_lightning.data.ink import NO_INK
from cnn_lightning.data.photos import Preparation
from tests import composed_photos
from tests.javascript import needs_node, run_node

pytestmark = needs_node

PREPARATIONS = [module.preparation for module in (MNIST, FashionMNIST, Digits, EMNIST)]
SQUARE = [
    ToSquare(28, True, "crop"),
    ToSquare(64, False, "crop"),
    ToSquare(64, False, "pad"),
    ToSquare(32, True, "stretch"),
]
WIDTHS = (8, 14, 22)  # of the page's pen, in pixels of its 224


# Calls a function for each job; the pixels come and go as files, since JSON would be slow.
CALLS = """
const fs = require("node:fs"), bytes = fs.readFileSync("pictures"), results = fs.openSync("results", "w");
let offset = 0;
return data.map(([name, width, height, ...rest]) => {
  const pixels = new Uint8ClampedArray(bytes.subarray(offset, (offset += 4 * width * height)));
  const start = performance.now();
  try {
    const result = eval(name)({ data: pixels, width, height }, ...rest), time = performance.now() - start;
    const values = result.data ?? result;
    fs.writeSync(results, values);
    return [values.length, time];
  } catch (error) {
    return error.message;
  }
});
"""


def call_page(*jobs):
    """Call functions of the page: (name, picture, arguments...) each.

    Returns:
        For each the array that it returned, or the message of its error; the times in milliseconds.
    """
    Path("pictures").write_bytes(b"".join(picture.convert("RGBA").tobytes() for _, picture, *_ in jobs))
    scripts = ("arrays", "ink", "photos")
    answers = run_node(CALLS, scripts, [[name, *picture.size, *rest] for name, picture, *rest in jobs])
    data, results, times, start = np.fromfile("results", np.uint8).astype(int), [], [], 0
    for answer in answers:
        if isinstance(answer, str):
            results.append(answer)
        else:
            results.append(data[start : start + answer[0]])
            start += answer[0]
            times.append(answer[1])
    return results, times


def described(preparation):
    return {"kind": type(preparation).__name__, **asdict(preparation)}


def check_alike(pictures, preparations):
    """Check that page and Python prepare alike; returns the share of identical images, and the median time."""
    pairs = [(picture, preparation) for picture in pictures for preparation in preparations]
    results, times = call_page(*[("preparePicture", picture, described(preparation)) for picture, preparation in pairs])
    largest = []
    for (picture, preparation), result in zip(pairs, results, strict=True):
        expected = preparation(picture).numpy().ravel().astype(int)
        assert isinstance(result, np.ndarray), (result, preparation, picture)
        assert result.shape == expected.shape
        largest.append(np.abs(result - expected).max())
        assert largest[-1] <= 1, (preparation, picture)
    return np.mean(np.array(largest) == 0), statistics.median(times)


def drawing(number):
    """A digit as drawn on the page: round white strokes on black, 224×224, mode "L"."""
    rng = np.random.default_rng(number)
    strokes = composed_photos.written(number % 10, number % 8, rng)
    width, size = WIDTHS[number % 3], rng.uniform(70, 180)
    points = np.concatenate(strokes)
    middle, longest = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0).max()
    centre = 112 + rng.uniform(-1, 1, 2) * max(0, (218 - size - width) / 2)
    canvas = Image.new("L", (4 * 224, 4 * 224))
    pen, radius = ImageDraw.Draw(canvas), 2 * width
    for stroke in strokes:
        corners = [tuple(4 * point) for point in (stroke - middle) / longest * size + centre]
        pen.line(corners, fill=255, width=2 * radius, joint="curve")
        for x, y in corners:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return canvas.resize((224, 224), Image.Resampling.BOX)


def drawn_picture(number):
    """Shapes on a coloured background, which may be uneven and have grain, of any size, grey or in colour."""
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(20, 420, 2))
    x, noise = np.linspace(-1, 1, width), rng.normal(0, 1, (height, width))
    slope, grain = ((0, 0), (40, 0), (0, 4))[number % 3]
    paper = rng.integers(60, 200, 3) + (slope * x + grain * noise)[..., None]
    picture = Image.fromarray(paper.clip(0, 255).astype(np.uint8))
    pen, long = ImageDraw.Draw(picture), min(width, height)
    ink = 0 if paper.mean() > 128 else 255
    pen.ellipse(
        (0.3 * width, 0.2 * height, 0.7 * width, 0.9 * height), outline=(ink, 90, ink), width=max(2, long // 12)
    )
    pen.line((0.2 * width, 0.5 * height, 0.8 * width, 0.3 * height), fill=(ink, ink, 30), width=max(2, long // 9))
    for radius in range(1, 5):  # dirt, of which the largest specks stay
        place = (width * (radius / 5 - 0.1), 0.07 * height)
        pen.ellipse((place[0] - radius / 2, place[1], place[0] + radius / 2, place[1] + radius), fill=(ink, ink, ink))
    return picture.convert("L") if number % 2 else picture


def image_pictures(images):
    """Images of a dataset: as they are, enlarged, and enlarged as black on white."""
    pictures = []
    for number, image in enumerate(images):
        side = (28, 100, 333)[number % 3]
        picture = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        pictures.append(Image.fromarray(255 - np.asarray(picture)) if number % 3 == 2 else picture)
    return pictures


def test_drawings():
    assert check_alike([drawing(number) for number in range(30)], PREPARATIONS)[0] > 0.9


@pytest.mark.slow
def test_pictures():
    digits = Digits().read(train=False)[0][:, 0].numpy()
    photos = [composed_photos.compose(number)[0].reduce(2) for number in (4, 61)]
    check_alike(photos, [MNIST.preparation, FashionMNIST.preparation, *SQUARE])
    check_alike([*map(drawn_picture, range(6)), *image_pictures(digits[:4])], [*PREPARATIONS, *SQUARE])


@pytest.mark.campaign
@pytest.mark.real_data
def test_200_drawings_and_100_pictures():
    photos = [composed_photos.compose(number)[0] for number in range(1, 240, 6)]
    images = [module(download=False).read(train=False)[0][:15, 0].numpy() for module in (MNIST, FashionMNIST)]
    pictures = [*map(drawn_picture, range(1000, 1030)), *image_pictures(images[0]), *image_pictures(images[1])]
    groups = {"drawings": [drawing(number) for number in range(1000, 1200)], "photos": photos, "pictures": pictures}
    for name, group in groups.items():
        parts = [check_alike(group[i : i + 10], PREPARATIONS) for i in range(0, len(group), 10)]
        share, time = np.array(parts).T
        print(f"{len(group)} {name}: {share.mean():.1%} identical, {np.median(time):.1f} ms")
        check_alike(group[:20], SQUARE)


def test_grey_picture_as_rgb():
    """The page does not know the mode of a picture: it is prepared alike in mode L and RGB."""
    picture = composed_photos.compose(61)[0].reduce(3).convert("L")
    check_alike([picture, picture.convert("RGB")], [MNIST.preparation, SQUARE[0], SQUARE[1]])


@pytest.mark.parametrize("strokes", [True, False])
def test_nothing_but_background(strokes):
    grain = np.random.default_rng(0).normal(200, 3, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    preparation = described(Preparation(20, centre_by_mass=True, strokes=strokes))
    for picture in (Image.new("L", (224, 224)), Image.fromarray(grain), Image.new("RGB", (1, 1), "red")):
        assert call_page(("preparePicture", picture, preparation))[0] == [NO_INK]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (28, 28), (27, 41)])
def test_squares_of_any_shape(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    check_alike([Image.fromarray(pixels)], SQUARE)


def test_plain_picture():
    picture = drawn_picture(4)
    for channels in (1, 3):
        (result,), _ = call_page(("plainPicture", picture, channels, 28))
        assert (result == ToSquare(28, channels == 1, "pad")(picture).numpy().ravel()).all()


@pytest.mark.parametrize("size", [(1500, 1100), (901, 1203), (4001, 300), (1000, 800)])
def test_shrunk(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    (result,), _ = call_page(("shrunk", photo))
    photo.thumbnail((1000, 1000), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert (result == np.asarray(photo.convert("RGBA")).ravel()).all()


@pytest.mark.parametrize("ink", ["black", "white"])
def test_transparent_picture_is_put_on_the_paper_with_more_contrast(ink):
    picture = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(picture).rectangle((10, 5, 20, 30), fill=ink)
    (result,), _ = call_page(("shrunk", picture))
    paper = Image.new("RGBA", picture.size, "white" if ink == "black" else "black")
    assert (result == np.asarray(Image.alpha_composite(paper, picture)).ravel()).all()


def test_shift_and_pad():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8))
    flat, picture = pixels.ravel().tolist(), Image.new("L", (1, 1))
    (shifted, padded), _ = call_page(
        ("(_, ...rest) => shiftPicture(...rest)", picture, flat, 3, 8, 3, -2),
        ("(_, ...rest) => padPicture(...rest)", picture, flat, 3, 8, 2),
    )
    expected = np.zeros((3, 8, 8), int)
    expected[:, :6, 3:] = pixels[:, 2:, :5]
    assert (shifted == expected.ravel()).all()
    assert (padded == np.pad(pixels, ((0, 0), (2, 2), (2, 2))).ravel()).all()
