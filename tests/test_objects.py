from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cnn_lightning import data
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.cli.fit import fit
from cnn_lightning.data import Digits
from cnn_lightning.data.objects import find_objects
from cnn_lightning.data.photos import read_photo
from cnn_lightning.errors import UsageError
from tests import composed_pages, composed_photos
from tests.conftest import REPOSITORY

MNIST = data.MNIST.preparation


def page(digits, slope=0.0, width=9, size=(900, 600), pens=(30,), top=90, step=140, height=90):
    """Digits in rows, a text each, drawn with strokes: the page, and each digit's centre in reading order."""
    rng = np.random.default_rng(0)
    sheet, centres = np.full(size[::-1], 240.0), []
    for row, text in enumerate(digits):
        for column, digit in enumerate(text):
            x, y = 90 + step * column, top + step * row + slope * step * column
            strokes = composed_photos.written(int(digit), (row + column) % 8, rng)
            points = np.concatenate(strokes)
            middle, side = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0).max()
            placed = [(stroke - middle) / side * height + (x, y) for stroke in strokes]
            ink = composed_photos.draw(placed, size, width, "felt", rng)
            sheet += ink * (pens[len(centres) % len(pens)] - sheet)
            centres.append((x, y))
    return sheet, centres


def photo(sheet, grain=3.0):
    """A sheet as a camera sees it."""
    noise = np.random.default_rng(1).normal(0, grain, sheet.shape) if grain else 0
    return Image.fromarray((sheet + noise).clip(0, 255).astype(np.uint8))


def check(picture, centres):
    """Each digit is found once, in this order."""
    found = find_objects(picture)
    assert len(found) == len(centres)
    for (left, top, right, bottom), (x, y) in zip([each.box for each in found], centres, strict=True):
        assert left < x < right
        assert top < y < bottom
        assert 60 < bottom - top < 120  # a speck may touch it
    return found


@pytest.mark.parametrize("grain", [0, 3])
@pytest.mark.parametrize("slope", [-0.15, 0, 0.15])
def test_rows_that_are_not_straight_are_read_in_order(grain, slope):
    sheet, centres = page(["314159", "265", "35897"], slope, size=(900, 700), top=190 if slope < 0 else 90)
    check(photo(sheet, grain), centres)


@pytest.mark.parametrize("grain", [0, 3])
def test_light_on_dark_and_pens_of_different_darkness(grain):
    sheet, centres = page(["2718", "2818"], pens=(30, 160, 90))
    check(photo(sheet, grain), centres)
    check(photo(255 - sheet, grain), centres)


def test_an_object_does_not_see_its_neighbours():
    sheet, _ = page(["123456"], pens=(30, 150))
    alone, _ = page(["12"], pens=(30, 150))
    both = [MNIST.from_ink(find_objects(photo(each))[1].ink) for each in (sheet, alone)]
    assert (both[0].float() - both[1].float()).abs().mean() < 2
    assert (both[0].float() - MNIST(photo(alone[:, 160:])).float()).abs().mean() < 3


def drawn(lines, width=9, size=(900, 300)):
    """Lines on a sheet, with a 1 of height 100 on each side."""
    sheet = Image.new("L", size, 240)
    for line in ([(100, 100), (100, 200)], [(800, 100), (800, 200)], *lines):
        ImageDraw.Draw(sheet).line(line, fill=30, width=width)
    return np.asarray(sheet, float)


FIVE = [[(430, 108), (425, 145), (470, 150), (480, 180), (420, 200)], [(446, 96), (490, 92)]]
SEVEN = [[(420, 100), (480, 100), (440, 200)], [(474, 140), (496, 150)]]
FOUR = [[(430, 100), (415, 150), (458, 150)], [(472, 110), (466, 200)]]
DASHED = [[(450, y), (450, y + 14)] for y in range(100, 200, 28)]


@pytest.mark.parametrize("lines", [FIVE, SEVEN, FOUR, DASHED])
@pytest.mark.parametrize("grain", [0, 3])
def test_strokes_that_belong_together(lines, grain):
    found = find_objects(photo(drawn(lines), grain))
    assert len(found) == 3
    left, top, right, bottom = found[1].box
    points = np.concatenate([np.array(line) for line in lines])
    assert np.abs(np.array([left, top, right, bottom]) - [*points.min(0), *points.max(0)]).max() < 9


def test_dots_alone():
    sheet = Image.new("L", (600, 300), 240)
    for x in (150, 300, 450):
        for y in range(80, 220, 20):
            ImageDraw.Draw(sheet).ellipse((x - 5, y - 5, x + 5, y + 5), fill=30)
    assert [each.box[3] - each.box[1] > 120 for each in find_objects(sheet)] == [True] * 3


def test_specks_lines_and_the_edge_of_the_sheet_do_not_count():
    sheet, centres = page(["6174", "1729", "4104"])
    rng = np.random.default_rng(2)
    for x, y in rng.uniform(20, 550, (15, 2)).astype(int):
        sheet[y : y + 4, x : x + 4] *= 0.6
    squared = sheet.copy()
    squared[::24] = np.minimum(squared[::24], 205)
    squared[:, ::24] = np.minimum(squared[:, ::24], 205)
    check(photo(squared), centres)
    edge = sheet.copy()
    edge[:, :14] = edge[-18:] = 70
    check(photo(edge), centres)


def test_a_shadow_is_no_object():
    sheet, centres = page(["6174", "1729"])
    sheet[160:, 300:] *= 0.65
    check(photo(sheet), centres)


def test_squares_as_dark_as_the_strokes():
    sheet, _ = page(["6174", "1729"], width=3, pens=(190,))
    sheet[::24] = sheet[:, ::24] = 185
    assert find_objects(photo(sheet)) == []


def test_nothing_to_see():
    with pytest.raises(UsageError, match="nothing but background"):
        find_objects(Image.new("L", (300, 200), 255))
    assert find_objects(photo(np.full((300, 200), 200.0))) == []


def test_sizes_that_are_odd():
    rng = np.random.default_rng(0)
    for size in ((3, 400), (400, 3), (2, 5), (30, 30), (112, 113), (1000, 7)):
        noisy = (200 + rng.normal(0, 5, size)).clip(0, 255)
        noisy[: size[0] // 2 + 1, size[1] // 3 : size[1] // 2 + 1] = 20
        assert len(find_objects(Image.fromarray(noisy.astype(np.uint8)))) < 2


def test_one_object_is_not_split():
    for path in sorted((REPOSITORY / "docs/photos").iterdir()):
        assert len(find_objects(read_photo(path))) == 1
    images = Digits().read(train=False)[0][:60, 0].numpy()
    for image in images:
        assert len(find_objects(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC))) < 2


@pytest.mark.real_data
def test_mnist_images_are_not_split():
    images = data.MNIST(download=False).read(train=False)[0][::40, 0].numpy()
    for image in images:
        assert len(find_objects(Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC))) < 2


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["mixed", "squared"])
def test_composed_page(kind):
    picture, digits = composed_pages.compose(kind, 5)
    count, _ = found_on(picture, digits)
    assert count == len(digits) == 12


def found_on(picture, digits):
    """Objects that lie on exactly one digit, each with that digit, and the number of the others."""
    size = picture.width
    picture.thumbnail((1000, 1000), Image.Resampling.BILINEAR)
    hits = {}
    for found in find_objects(picture):
        left, top, right, bottom = (size / picture.width * side for side in found.box)
        x, y = (left + right) / 2, (top + bottom) / 2
        on = [each for each in digits if each.box[0] <= x <= each.box[2] and each.box[1] <= y <= each.box[3]]
        hits.setdefault(on[0] if len(on) == 1 else None, []).append(found)
    pairs = [(digit, found[0]) for digit, found in hits.items() if digit and len(found) == 1]
    return len(pairs), pairs


@pytest.mark.real_data
@pytest.mark.campaign
def test_composed_pages(capsys):
    """20 pages of each kind, 292 digits: docs/usage.md has the figures."""
    fit(["--data=MNIST", "--model.net=TwoLayerCNN", "--trainer.max_epochs=3", "--trainer.accelerator=cpu",
         "--dashboard=false", "--trainer.enable_progress_bar=false"])  # fmt: skip
    (model,) = (ImageClassifier.load_from_checkpoint(path, weights_only=True).eval()
                for path in sorted(Path("logs").glob("*/version_0/checkpoints/best.ckpt")))  # fmt: skip
    for kind in composed_pages.KINDS:
        total = count = right = 0
        for number in range(2 * len(composed_pages.COUNTS)):
            picture, digits = composed_pages.compose(kind, number)
            found, pairs = found_on(picture, digits)
            images = torch.stack([MNIST.from_ink(each.ink) for _, each in pairs])
            with torch.no_grad():
                guesses = model.predict_step(data.MNIST(download=False).normalize(images)).argmax(1).tolist()
            total, count = total + len(digits), count + found
            right += sum(digit.label == guess for (digit, _), guess in zip(pairs, guesses, strict=True))
        with capsys.disabled():
            print(f"{kind}: {total} digits, {count} found ({count / total:.1%}), {right} right ({right / total:.1%})")
        assert count >= 0.97 * total
        assert right >= 0.94 * total
