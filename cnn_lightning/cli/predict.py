"""``scripts/predict.py``: classify the user's own pictures."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image, ImageOps
from torch import Tensor

from cnn_lightning.checkpointing.settings import epoch_of
from cnn_lightning.cli.exit_codes import command, exit_with
from cnn_lightning.cli.predictions import (
    MOST_SHOWN,
    SIDE,
    Failure,
    Picture,
    Place,
    draw_predictions,
    predictions_of,
    print_table,
    printable,
    write_csv,
)
from cnn_lightning.cli.run_folders import new_path
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.cli.trained_cli import TrainedCLI
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.data.objects import Found, find_objects
from cnn_lightning.data.photos import SIZE, Preparation, count_pictures, original_size, read_photo
from cnn_lightning.data.picture_formats import SUFFIXES, is_picture
from cnn_lightning.data.pieces import MOST
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import class_names_of, name_of
from cnn_lightning.lightning_fixes import keyboard_interrupt
from cnn_lightning.reporting.images import WIDTH


class PredictCLI(TrainedCLI):
    """Builds what classifies pictures."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(args, "Classify your own pictures, prepared as the dataset was.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of prediction."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("images", nargs="+", help="Pictures, or folders of them.")
        parser.add_argument(
            "--ckpt_path", type=str | None, help="The checkpoint. Default: the best.ckpt that was saved last."
        )
        parser.add_argument("--csv", type=str | None, help="Write a row for every file to this new file.")
        parser.add_argument(
            "--picture", type=str | None, help="Draw every picture next to what the network saw, to this new file."
        )
        parser.add_argument(
            "--split",
            type=bool | Literal["auto"],
            default="auto",
            help="Classify each object of a page of digits: auto if there are several, true also if there is one.",
        )

    def named_checkpoint(self, config: Any) -> str | None:
        """Return that of ``--ckpt_path``."""
        return config.ckpt_path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a Trainer that shows no progress bar and leaves no picture out."""
        settings = self.config_init.trainer
        settings.enable_progress_bar, settings.fast_dev_run, settings.limit_predict_batches = False, False, None
        return super().instantiate_trainer(**kwargs)


@command
def predict(args: Sequence[str]) -> None:
    """Classify pictures with a trained network: exit code 0, 1 if some could not be read, 2 if none could.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    cli = PredictCLI(args)
    config, name = cli.config, name_of(cli.datamodule)
    if "" in config.images:
        raise UsageError("the name of a picture is empty: expected files or folders")
    preparation = getattr(cli.datamodule, "preparation", None)
    if preparation is None:
        raise UsageError(
            f"{name} does not say how its images were made: give the class an attribute preparation, a function that "
            "turns a PIL.Image.Image into a (C, H, W) uint8 tensor (docs/data.md)"
        )
    cli.check_normalize()
    cli.check_risk()
    for option in ("csv", "picture"):
        if config[option] is not None:
            _check_new(f"--{option}", config[option])
    can_split = isinstance(preparation, Preparation) and preparation.strokes and preparation.one_piece
    if config.split is True and not can_split:
        raise UsageError(f"--split true finds digits on a page, which {name} does not have: leave --split out")
    results: list[Picture | Failure] = []
    files = [path for name in config.images for path in _files(Path(name))]
    for path in files:
        try:
            results += _read(path, preparation, config.split if can_split else False, bool(config.picture))
        except UsageError as error:
            print(f"error: {printable(path)}: {error}", file=sys.stderr)
            results.append(Failure(path, error))
    pictures = [result for result in results if isinstance(result, Picture)]
    if not pictures:
        exit_with("none of the pictures could be read")
    _check_images([picture.image for picture in pictures], name)
    probabilities = _probabilities(cli, pictures)
    class_names = class_names_of(cli.datamodule, probabilities.shape[1])[: probabilities.shape[1]]
    predictions = predictions_of(probabilities, class_names, cli.calibration)
    print(f"{_checkpoint_line(cli)}\n{_calibration_line(cli)}\n")
    print_table(pictures, predictions, class_names)
    try:
        if config.csv:
            write_csv(Path(config.csv), results, predictions, class_names)
        if config.picture:
            draw_predictions(pictures, predictions).save(config.picture)
    except OSError as error:
        raise UsageError(f"cannot write ({error}): change --csv or --picture") from error
    if config.split == "auto" and any(picture.place for picture in pictures):
        print("\nPictures of several objects were split: --split false takes each picture for one object.")
    if config.picture and len(pictures) > MOST_SHOWN:
        print(f"{config.picture} shows the first {MOST_SHOWN} of {len(pictures):,} pictures.")
    if len(pictures) < len(results):
        sys.exit(1)


def _check_new(option: str, name: str) -> None:
    path = new_path(option, name)
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: there is no folder {path.parent}")
    if option == "--picture" and path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{option} {name}: expected a name that ends with .png or .jpg")


def _files(path: Path) -> list[Path]:
    """A file that was named, or the pictures in a folder and its subfolders, in natural order."""
    unreadable: list[OSError] = []
    found, seen = list[Path](), {path.resolve()}
    for folder, subfolders, names in os.walk(path, onerror=unreadable.append, followlinks=True):
        found += filter(is_picture, (Path(folder, name) for name in names))
        real = {name: Path(folder, name).resolve() for name in subfolders}
        subfolders[:] = [name for name in subfolders if real[name] not in seen]  # a link may lead back
        seen.update(real.values())
    found.sort(key=_natural_key)
    return found + [Path(error.filename) for error in unreadable] if found else [path]


def _natural_key(path: Path) -> Any:
    """Sort 2 before 10, and upper case with lower case."""
    parts = [re.split(r"(\d+)", part.casefold()) for part in path.parts]
    return [[int(text) if text.isdecimal() else text for text in part] for part in parts], path


def _read(
    path: Path, preparation: Callable[[Image.Image], Tensor], split: bool | str, with_page: bool
) -> list[Picture]:
    """Read and prepare a picture, or each of its objects if it is split, with a small copy of the page if wanted."""
    photo = read_photo(path)
    if (count := count_pictures(path)) > 1:
        print(f"warning: {printable(path)}: holds {count:,} pictures, only the first is classified", file=sys.stderr)
    # A picture of the dataset's own size holds one object.
    if isinstance(preparation, Preparation) and split and (split is True or max(photo.size) > SIZE):
        objects = find_objects(photo)
        if len(objects) > 1 or (split is True and objects):
            if len(objects) >= MOST:
                print(f"warning: {printable(path)}: only the {MOST} largest objects are classified", file=sys.stderr)
            return _objects(path, photo, objects, preparation, with_page)
    image = preparation(photo)
    photo = photo.convert("RGB")
    photo.thumbnail((SIDE, SIDE))
    return [Picture(path, image, photo, None)]


def _objects(
    path: Path, photo: Image.Image, objects: Sequence[Found], preparation: Preparation, with_page: bool
) -> list[Picture]:
    """Prepare the objects of a page."""
    size = original_size(path)
    photo = photo.convert("RGB")
    page = ImageOps.contain(photo, (WIDTH, 2 * WIDTH)) if with_page else None
    scale = size[0] / photo.width, size[1] / photo.height
    pictures = []
    for number, (box, ink) in enumerate(objects, start=1):
        left, top, right, bottom = (round(side * scale[index % 2]) for index, side in enumerate(box))
        place = Place(number, (left, top, right, bottom), page, size)
        crop = photo.crop(box)
        crop.thumbnail((SIDE, SIDE))
        pictures.append(Picture(path, preparation.from_ink(ink), crop, place))
    return pictures


def _check_images(images: Sequence[Any], name: str) -> None:
    """Check what a data module of the user's made of pictures: images of the same shape."""
    for image in images:
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
            what = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise UsageError(f"preparation of {name} returned {what}, expected a uint8 tensor of shape (C, H, W)")
    if len(shapes := {tuple(image.shape) for image in images}) > 1:
        listed = " and ".join(map(str, sorted(shapes)[:2]))
        raise UsageError(f"preparation of {name} returned images of shape {listed}, expected one shape for all")


def _checkpoint_line(cli: PredictCLI) -> str:
    """Say what classifies: checkpoint, network, dataset and epoch."""
    settings, name = cli.checkpoint.get("datamodule_hyper_parameters", {}), name_of(cli.datamodule)
    trained_on = cli.checkpoint.get("dataset", {}).get("name") or settings.get("_class_path", name).rpartition(".")[2]
    what = f"{type(cli.model.net).__name__}, trained on {trained_on}, epoch {epoch_of(cli.checkpoint)}"
    other = f"; pictures prepared as for {name}" if name != trained_on else ""
    return printable(f"Classifying with {relative_path(cli.checkpoint_path)}: {what}{other}")


def _calibration_line(cli: PredictCLI) -> str:
    """Say which answers are unsure, and why."""
    calibration, risk = cli.calibration, cli.calibration.risk
    unsure = f"Unsure below {calibration.threshold_text}" if calibration.threshold <= 1 else "All answers are unsure"
    if risk is None:
        return f"{unsure}: the checkpoint is not calibrated, evaluate.py does it on the validation images"
    if not calibration.is_reached:
        return f"{unsure}: {calibration.images:,} validation images are too few to show a risk of {risk:.2%}"
    return f"{unsure}: of the other answers, about {risk:.2%} or less are wrong on images like those of training"


def _probabilities(cli: PredictCLI, pictures: Sequence[Picture]) -> Tensor:
    """Return the (N, num_classes) probabilities of N pictures."""
    data = cli.datamodule
    images = torch.stack([picture.image for picture in pictures])
    images = data.padded(images) if hasattr(data, "padded") else images
    labels, batch_size = torch.zeros(len(images), dtype=torch.int64), getattr(data, "batch_size", None) or 64
    loader = TensorLoader(images, labels, batch_size, data.normalize)
    with keyboard_interrupt(cli.trainer):
        batches = cli.trainer.predict(cli.model, loader, ckpt_path=cli.ckpt_path, weights_only=True)
    probabilities = torch.cat([torch.as_tensor(batch) for batch in batches or []]).float()
    if not probabilities.isfinite().all():
        raise UsageError(
            f"the network in {relative_path(cli.checkpoint_path)} gives NaN: its training has diverged, name another "
            "checkpoint with --ckpt_path"
        )
    return probabilities
