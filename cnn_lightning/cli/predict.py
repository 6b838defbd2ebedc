"""``scripts/predict.py``: classify the user's own pictures."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnn_lightning.cli.classifier_cli import PredictCLI
from cnn_lightning.cli.exit_codes import command, ctrl_c_as_usual, exit_with
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.data import ImageDataModule
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.data.photos import read_photo
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images as pictures

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
UNSURE = 0.8  # probability below which a prediction is flagged
SIDE = 84  # of a picture in --picture, in pixels
MOST_SHOWN = 400


@dataclass
class Prediction:
    """What a file shows.

    Attributes:
        path: The file.
        error: Why it could not be used, "" if it could.
        photo: (SIDE, SIDE, 3) uint8: the picture, made small.
        image: (1, 28, 28) uint8: what the network sees.
        probabilities: (num_classes,) float: of every class.
    """

    path: Path
    error: str = ""
    photo: np.ndarray | None = None
    image: Tensor | None = None
    probabilities: Tensor | None = None

    def guesses(self, class_names: Sequence[str]) -> tuple[str, float, str, float]:
        """The likeliest class and its probability, and the second likeliest."""
        (probability, other), (first, second) = (best.tolist() for best in self.probabilities.topk(2))
        return class_names[first], probability, class_names[second], other


@command
def predict(args: Sequence[str] | None = None) -> None:
    """Classify pictures with a trained network: exit code 0, 1 if some could not be used, 2 if none could.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    cli = PredictCLI(args)
    if "" in cli.config.images:
        raise UsageError("the name of a picture is empty: expected files or folders")
    if cli.datamodule.preparation is None:
        name = type(cli.datamodule).__name__
        raise UsageError(f"{name} does not say how its images were made: give the class an attribute preparation")
    for option in ("csv", "picture"):
        _check_new(f"--{option}", cli.config[option])
    predictions = [_read(path, cli.datamodule) for name in cli.config.images for path in _files(Path(name))]
    good = [prediction for prediction in predictions if not prediction.error]
    for prediction in predictions:
        if prediction.error:
            print(f"error: {_printable(prediction.path)}: {prediction.error}", file=sys.stderr)
    if not good:
        exit_with("none of the pictures could be used")
    _classify(cli, good)
    class_names = cli.datamodule.class_names
    _print_table(good, class_names)
    try:
        if cli.config.csv:
            _write_csv(Path(cli.config.csv), predictions, class_names)
        if cli.config.picture:
            _draw(good[:MOST_SHOWN], class_names).save(cli.config.picture)
    except OSError as error:
        raise UsageError(f"cannot write ({error}): change --csv or --picture") from error
    if cli.config.picture and len(good) > MOST_SHOWN:
        print(f"{cli.config.picture} shows the first {MOST_SHOWN} of {len(good):,} pictures.")
    if len(good) < len(predictions):
        sys.exit(1)


def _check_new(option: str, name: str | None) -> None:
    if name is None:
        return
    path = Path(name)
    if path.exists():
        raise UsageError(f"{option} {name} is there already: name a file that is not, or move that one away")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: there is no folder {path.parent}")
    if option == "--picture" and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{option} {name}: expected a name that ends with .png or .jpg")


def _files(path: Path) -> Iterator[Path]:
    """A file that was named, or the pictures in a folder and in the folders in it."""
    unreadable: list[OSError] = []
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=unreadable.append)
        for name in sorted(names)
        if Path(name).suffix.lower() in SUFFIXES
    ]
    found = sorted(found) + [Path(error.filename) for error in unreadable if found]
    yield from found or [path]


def _read(path: Path, data: ImageDataModule) -> Prediction:
    try:
        photo = read_photo(path)
        image = data.preparation(photo)
    except UsageError as error:
        return Prediction(path, error=str(error))
    photo = photo.convert("RGB")
    photo.thumbnail((SIDE, SIDE))
    small = Image.new("RGB", (SIDE, SIDE), pictures.PAPER)
    small.paste(photo, ((SIDE - photo.width) // 2, (SIDE - photo.height) // 2))
    return Prediction(path, photo=np.asarray(small), image=image)


def _classify(cli: PredictCLI, predictions: Sequence[Prediction]) -> None:
    data = cli.datamodule
    images = data.padded(torch.stack([prediction.image for prediction in predictions]))
    loader = TensorLoader(images, torch.zeros(len(images), dtype=torch.int64), data.batch_size, data.normalize)
    with ctrl_c_as_usual(cli.trainer):
        batches = cli.trainer.predict(cli.model, loader, ckpt_path=cli.ckpt_path, weights_only=True)
    for prediction, probabilities in zip(predictions, torch.cat(batches).float(), strict=True):
        if not probabilities.isfinite().all():
            raise UsageError(
                f"the network in {relative_path(cli.ckpt_path)} gives NaN: its training has diverged, "
                "name another checkpoint with --ckpt_path"
            )
        prediction.probabilities = probabilities


def _print_table(predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    files = [_printable(relative_path(prediction.path)) for prediction in predictions]
    width, name_width = max(map(len, [*files, "file"])), max(map(len, [*class_names, "class"]))
    print(f"{'file':<{width}}  {'class':<{name_width}}  probability  second guess")
    for file, prediction in zip(files, predictions, strict=True):
        name, probability, second, other = prediction.guesses(class_names)
        flag = "  unsure" if probability < UNSURE else ""
        print(
            f"{file:<{width}}  {name:<{name_width}}  {probability:>11.1%}  {second:<{name_width}} {other:>6.1%}{flag}"
        )


def _write_csv(path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """A row for each file; those that could not be used have an error, and no class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        columns = ("file", "class", "probability", "second_class", "second_probability", "unsure", "error")
        table.writerow([*columns, *(f"p({name})" for name in class_names)])
        for prediction in predictions:
            row = [_printable(prediction.path)]
            if prediction.error:
                row += ["", "", "", "", "", prediction.error]
            else:
                guesses = prediction.guesses(class_names)
                row += [*guesses, int(guesses[1] < UNSURE), "", *prediction.probabilities.tolist()]
            table.writerow(row)


def _draw(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Image.Image:
    """Every picture beside what the network sees of it."""
    both, captions = [], []
    for prediction in predictions:
        seen = prediction.image[0].numpy().repeat(SIDE // 28, axis=0).repeat(SIDE // 28, axis=1)
        both.append(np.concatenate([prediction.photo, seen[..., None].repeat(3, axis=2)], axis=1))
        name, probability, *_ = prediction.guesses(class_names)
        captions.append(f"{_printable(prediction.path.name)[:28]}\n{name} {probability:.0%}")
    return pictures.grid(np.stack(both), captions, columns=4, tile=2 * SIDE + 12)


def _printable(path: str | Path) -> str:
    """A name with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
