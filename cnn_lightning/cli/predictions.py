"""What ``scripts/predict.py`` writes: its table, ``--csv`` and ``--picture``."""

import csv
from collections.abc import Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.reporting.calibration import Calibration
from cnn_lightning.reporting.images import WIDTH, grid, pixels
from cnn_lightning.reporting.lettering import LINE, shorten, write
from cnn_lightning.reporting.palette import BLUE, ORANGE, PAPER

SIDE = 168  # of a picture in --picture, in pixels
MOST_SHOWN = 400
COLUMNS = ("file", "class", "probability", "second_class", "second_probability", "unsure", "error")  # of --csv
PLACE_COLUMNS = ("object", "left", "top", "right", "bottom")  # the last ones, so that the others keep their places


class Place(NamedTuple):
    """Where an object lies in a picture of several."""

    number: int  # in reading order, from 1
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the file's picture, the last two exclusive
    page: Image.Image | None  # the whole picture, mode "RGB", at most WIDTH pixels wide, for --picture
    size: tuple[int, int]  # width and height of the file's picture


class Picture(NamedTuple):
    """A picture that could be read, or one of its objects."""

    path: Path
    image: Tensor  # (C, H, W) uint8: what the network sees
    photo: Image.Image  # mode "RGB", at most SIDE pixels a side
    place: Place | None  # None: the whole picture is one object


class Failure(NamedTuple):
    """A file that could not be read."""

    path: Path
    error: Exception


class Prediction(NamedTuple):
    """What the network says of a picture."""

    first: str  # the class
    probability: float
    second: str
    second_probability: float
    probabilities: list[float]  # of all classes
    unsure: bool


def predictions_of(probabilities: Tensor, class_names: Sequence[str], calibration: Calibration) -> list[Prediction]:
    """Turn (N, num_classes) probabilities of a network into N predictions with calibrated probabilities."""
    probabilities = calibration.apply(probabilities)
    return [
        Prediction(
            class_names[first], row[first], class_names[second], row[second], row, row[first] < calibration.threshold
        )
        for row, (first, second) in zip(probabilities.tolist(), probabilities.topk(2).indices.tolist(), strict=True)
    ]


def print_table(pictures: Sequence[Picture], predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """Print a row for each picture or object; the boxes only if there are objects."""
    numbers = [f" #{each.place.number}" if each.place else "" for each in pictures]
    files = [printable(relative_path(each.path)) + number for each, number in zip(pictures, numbers, strict=True)]
    boxes = [" ".join(map(str, each.place.box)) if each.place else "" for each in pictures]
    columns = [_aligned(["file", *files]), _aligned(["left top right bottom", *boxes]) if any(boxes) else None]
    heads, *places = ("  ".join(cells) for cells in zip(*filter(None, columns), strict=True))
    width = max(map(len, [*class_names, "class"]))
    print(f"{heads}  {'class':<{width}}  probability  second guess")
    for place, each in zip(places, predictions, strict=True):
        guesses = f"{each.probability:>11.1%}  {each.second:<{width}} {each.second_probability:>6.1%}"
        print(f"{place}  {each.first:<{width}}  {guesses}{'  unsure' if each.unsure else ''}")


def _aligned(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [f"{cell:<{width}}" for cell in cells]


def write_csv(
    path: Path, results: Sequence[Picture | Failure], predictions: Sequence[Prediction], class_names: Sequence[str]
) -> None:
    """Write a row for each picture or object, and for each file that could not be read."""
    left = iter(predictions)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *(f"p({name})" for name in class_names), *PLACE_COLUMNS])
        for result in results:
            row = [""] * 5 + [result.error] if isinstance(result, Failure) else _row(result, next(left))
            table.writerow([printable(result.path), *row])


def _row(picture: Picture, prediction: Prediction) -> list[Any]:
    place = [picture.place.number, *picture.place.box] if picture.place else [""] * len(PLACE_COLUMNS)
    *guesses, probabilities, unsure = prediction
    return [*guesses, int(unsure), "", *probabilities, *place]


def draw_predictions(pictures: Sequence[Picture], predictions: Sequence[Prediction]) -> Image.Image:
    """Draw the first 400 pictures or objects next to what the network saw, then the pages with their boxes."""
    shown = list(zip(pictures, predictions, strict=True))[:MOST_SHOWN]
    captions = [f"{_short_name(picture)}\n{each.first} ({each.probability:.0%})" for picture, each in shown]
    both = np.stack([_side_by_side(picture) for picture, _ in shown])
    parts = [grid(both, captions, columns=min(4, len(shown)))]
    objects = [(picture.place, picture.path.name, each) for picture, each in shown if picture.place]
    for _, page in groupby(objects, key=lambda each: id(each[0].page)):
        parts += _with_boxes(list(page))
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), PAPER)
    for top, part in zip(accumulate([0, *(part.height for part in parts)]), parts, strict=False):
        whole.paste(part, (0, top))
    return whole


def _with_boxes(objects: Sequence[tuple[Place, str, Prediction]]) -> list[Image.Image]:
    """Draw the page of some objects, its name above, with their boxes and classes, orange if unsure."""
    (first, name, _), *_ = objects
    assert first.page is not None
    title, page = Image.new("RGB", (WIDTH, 2 * LINE), PAPER), first.page.copy()
    write(title, (2, LINE // 2), shorten(printable(name), WIDTH - 2))
    for place, _, prediction in objects:
        colour = ORANGE if prediction.unsure else BLUE
        left, top, right, bottom = (round(side * page.width / place.size[0]) for side in place.box)
        ImageDraw.Draw(page).rectangle((left, top, right, bottom), outline=colour, width=2)
        write(page, (left, top), prediction.first, anchor="lb" if top > LINE else "la", fill=colour)
    return [title, page]


def _short_name(picture: Picture) -> str:
    """The start of a file's name, and the number of the object."""
    number = f" #{picture.place.number}" if picture.place else ""
    return printable(picture.path.name)[: 28 - len(number)] + number


def _side_by_side(picture: Picture) -> np.ndarray:
    """Draw a picture, made small, next to what the network sees: (SIDE, 2 * SIDE, 3) uint8."""
    both = Image.new("RGB", (2 * SIDE, SIDE), PAPER)
    seen = Image.fromarray(pixels(picture.image[None])[0])
    sharp = SIDE % max(seen.size) == 0  # each pixel a square
    seen = ImageOps.contain(seen, (SIDE, SIDE), Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC)
    for left, part in ((0, picture.photo), (SIDE, seen)):
        both.paste(part, (left + (SIDE - part.width) // 2, (SIDE - part.height) // 2))
    return np.asarray(both)


def printable(path: str | Path) -> str:
    """A name with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
