"""``scripts/predict.py``: classify the user's own pictures."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from torch import Tensor

from cnn_lightning.cli.classifier_cli import TrainedCLI
from cnn_lightning.cli.exit_codes import command, exit_with
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.data.photos import Preparation, read_photo
from cnn_lightning.errors import UsageError
from cnn_lightning.lightning_fixes import keyboard_interrupt
from cnn_lightning.reporting import images as pictures

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
UNSURE = 0.8  # probability below which a prediction is flagged
SIDE = 84  # of a picture in --picture, in pixels
MOST_SHOWN = 400


class PredictCLI(TrainedCLI):
    """Builds what classifies pictures."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(args, "Classify your own pictures, prepared as the dataset was.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of prediction."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("images", nargs="+", help="Pictures, or folders of them.")
        parser.add_argument("--ckpt_path", type=str | None, help="The checkpoint. Default: the best of the newest run.")
        parser.add_argument("--csv", type=str | None, help="Write a row for every file to this new file.")
        parser.add_argument(
            "--picture", type=str | None, help="Draw every picture next to what the network saw, to this new file."
        )

    def named_checkpoint(self, config: Any) -> str | None:
        """Return that of ``--ckpt_path``."""
        return config.ckpt_path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a Trainer that shows no progress bar and leaves no picture out."""
        settings = self.config_init.trainer
        settings.enable_progress_bar, settings.fast_dev_run, settings.limit_predict_batches = False, False, None
        return super().instantiate_trainer(**kwargs)


@dataclass
class Picture:
    """A picture that could be read.

    Attributes:
        path: The file.
        photo: (SIDE, SIDE, 3) uint8: the picture, made small.
        image: (1, 28, 28) uint8: what the network sees.
    """

    path: Path
    photo: np.ndarray
    image: Tensor


@dataclass
class Prediction:
    """The class of a picture.

    Attributes:
        probabilities: (num_classes,) float, as a list.
        first: The likeliest class.
        probability: Its probability.
        second: The second likeliest class.
        other: Its probability.
    """

    probabilities: list[float]
    first: str
    probability: float
    second: str
    other: float

    @property
    def is_unsure(self) -> bool:
        """Whether the probability is too low to be believed."""
        return self.probability < UNSURE


@command
def predict(args: Sequence[str]) -> None:
    """Classify pictures with a trained network: exit code 0, 1 if some could not be read, 2 if none could.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    cli = PredictCLI(args)
    config, preparation = cli.config, cli.datamodule.preparation
    if "" in config.images:
        raise UsageError("the name of a picture is empty: expected files or folders")
    if preparation is None:
        name = type(cli.datamodule).__name__
        raise UsageError(f"{name} does not say how its images were made: give the class an attribute preparation")
    for option in ("csv", "picture"):
        _check_new(f"--{option}", config[option])
    files = [path for name in config.images for path in _files(Path(name))]
    read = {path: _read(path, preparation) for path in files}
    good = [picture for picture in map(read.get, files) if isinstance(picture, Picture)]
    for path in files:
        if isinstance(error := read[path], UsageError):
            print(f"error: {_printable(path)}: {error}", file=sys.stderr)
    if not good:
        exit_with("none of the pictures could be read")
    predictions = _classify(cli, good)
    class_names = cli.datamodule.class_names
    _print_table(good, predictions, class_names)
    try:
        if config.csv:
            by_path = {picture.path: prediction for picture, prediction in zip(good, predictions, strict=True)}
            _write_csv(Path(config.csv), files, by_path, read, class_names)
        if config.picture:
            _draw(good[:MOST_SHOWN], predictions).save(config.picture)
    except OSError as error:
        raise UsageError(f"cannot write ({error}): change --csv or --picture") from error
    if config.picture and len(good) > MOST_SHOWN:
        print(f"{config.picture} shows the first {MOST_SHOWN} of {len(good):,} pictures.")
    if len(good) < len(files):
        sys.exit(1)


def _check_new(option: str, name: str | None) -> None:
    if name is None:
        return
    path = Path(name)
    if path.exists():
        raise UsageError(f"{option} {name} exists: name a new file, or move that one away")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: there is no folder {path.parent}")
    if option == "--picture" and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{option} {name}: expected a name that ends with .png or .jpg")


def _files(path: Path) -> Iterator[Path]:
    """A file that was named, or the pictures in a folder and its subfolders."""
    unreadable: list[OSError] = []
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=unreadable.append)
        for name in sorted(names)
        if Path(name).suffix.lower() in SUFFIXES
    ]
    found = sorted(found) + [Path(error.filename) for error in unreadable if found]
    yield from found or [path]


def _read(path: Path, preparation: Preparation) -> Picture | UsageError:
    try:
        photo = read_photo(path)
        image = preparation(photo)
    except UsageError as error:
        return error
    photo = photo.convert("RGB")
    photo.thumbnail((SIDE, SIDE))
    small = Image.new("RGB", (SIDE, SIDE), pictures.PAPER)
    small.paste(photo, ((SIDE - photo.width) // 2, (SIDE - photo.height) // 2))
    return Picture(path, np.asarray(small), image)


def _classify(cli: PredictCLI, good: Sequence[Picture]) -> list[Prediction]:
    data, names = cli.datamodule, cli.datamodule.class_names
    images = data.padded(torch.stack([picture.image for picture in good]))
    loader = TensorLoader(images, torch.zeros(len(images), dtype=torch.int64), data.batch_size, data.normalize)
    with keyboard_interrupt(cli.trainer):
        batches = cli.trainer.predict(cli.model, loader, ckpt_path=cli.ckpt_path, weights_only=True)
    probabilities = torch.cat([torch.as_tensor(batch) for batch in batches or []]).float()
    if not probabilities.isfinite().all():
        raise UsageError(
            f"the network in {relative_path(cli.checkpoint_path)} gives NaN: its training has diverged, name another "
            "checkpoint with --ckpt_path"
        )
    best = [part.tolist() for part in probabilities.topk(2)]
    return [
        Prediction(row.tolist(), names[first], probability, names[second], other)
        for row, (probability, other), (first, second) in zip(probabilities, *best, strict=True)
    ]


def _print_table(good: Sequence[Picture], predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    files = [_printable(relative_path(picture.path)) for picture in good]
    width, name_width = max(map(len, [*files, "file"])), max(map(len, [*class_names, "class"]))
    print(f"{'file':<{width}}  {'class':<{name_width}}  probability  second guess")
    for file, one in zip(files, predictions, strict=True):
        second = f"{one.second:<{name_width}} {one.other:>6.1%}"
        flag = "  unsure" if one.is_unsure else ""
        print(f"{file:<{width}}  {one.first:<{name_width}}  {one.probability:>11.1%}  {second}{flag}")


def _write_csv(
    path: Path,
    files: Sequence[Path],
    predictions: dict[Path, Prediction],
    read: dict[Path, Picture | UsageError],
    class_names: Sequence[str],
) -> None:
    """Write a row for each file; those that could not be read have an error and no class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        columns = ("file", "class", "probability", "second_class", "second_probability", "unsure", "error")
        table.writerow([*columns, *(f"p({name})" for name in class_names)])
        for path in files:
            if one := predictions.get(path):
                guesses = [one.first, one.probability, one.second, one.other, int(one.is_unsure), ""]
                table.writerow([_printable(path), *guesses, *one.probabilities])
            else:
                table.writerow([_printable(path), "", "", "", "", "", str(read[path])])


def _draw(good: Sequence[Picture], predictions: Sequence[Prediction]) -> Image.Image:
    """Draw every picture next to what the network sees."""
    both, captions = [], []
    for picture, one in zip(good, predictions, strict=False):
        seen = picture.image[0].numpy().repeat(SIDE // 28, axis=0).repeat(SIDE // 28, axis=1)
        both.append(np.concatenate([picture.photo, seen[..., None].repeat(3, axis=2)], axis=1))
        captions.append(f"{_printable(picture.path.name)[:28]}\n{one.first} {one.probability:.0%}")
    return pictures.grid(np.stack(both), captions, columns=4, tile=2 * SIDE + 12)


def _printable(path: str | Path) -> str:
    """A name with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
