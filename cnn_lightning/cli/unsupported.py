"""What Lightning offers and this project refuses, and what to use instead."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
)

from cnn_lightning.cli.class_names import find_class
from cnn_lightning.cli.hardware import device_of
from cnn_lightning.errors import UsageError

OPTION = "trainer.callbacks"
# Callbacks, with their subclasses, that fail or whose result would be in no checkpoint.
REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: "the model has no part called backbone: write a subclass of BaseFinetuning for model.net",
    BatchSizeFinder: "it would change the batch size after config.yaml is saved and the schedule is planned: set "
    "--data.batch_size, or compare sizes with scripts/compare.py",
    LearningRateFinder: "it would change the learning rate after config.yaml is saved and the schedule is planned: set "
    "--model.optimizer.lr, or compare rates with scripts/compare.py",
    ModelPruning: "its masks are in no checkpoint that a run could be tested or resumed from: prune the network of "
    "best.ckpt in Python, with torch.nn.utils.prune",
    OnExceptionCheckpoint: "a new run would start from what it saved of another one: leave it out, and resume from "
    "last.ckpt (--save_every_n_steps saves it more often)",
    SpikeDetection: "it cannot load what it saves, so that no run could be tested or resumed: leave it out; training "
    "stops where the loss is not finite",
    StochasticWeightAveraging: "it averages after the last checkpoint is saved, so that no checkpoint holds the "
    "average: use EMAWeightAveraging",
}


def check_training(settings: Any) -> None:
    """Check the settings of a Trainer that is to train, before its callbacks are built.

    Args:
        settings: The settings.

    Raises:
        UsageError: A callback does not work here, or there is nothing to train.
    """
    for name in ("max_steps", "limit_train_batches"):
        if settings[name] == 0:
            raise UsageError(f"{name} is 0, expected more than 0: change --trainer.{name}")
    if not isinstance(settings.callbacks, list | None):
        settings.callbacks = [settings.callbacks]
    for spec in settings.callbacks or []:
        cls = find_class(OPTION, spec.class_path)
        reason = next((REFUSED[refused] for refused in REFUSED if cls and issubclass(cls, refused)), "")
        if cls is BaseFinetuning:
            reason = "it does nothing by itself, expected a subclass of it"
        elif cls and issubclass(cls, DeviceStatsMonitor) and device_of(settings.accelerator) == "cpu":
            reason = "" if find_spec("psutil") else "it needs the package psutil: pip install psutil"
        if cls and reason:
            raise UsageError(f"--{OPTION} {cls.__name__}: {reason}")


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that no callback of the user overwrites the checkpoints of every run, or takes the worst for the best.

    Raises:
        UsageError: One does.
    """
    for callback in callbacks:
        name = f"--{OPTION} {type(callback).__name__}"
        if isinstance(callback, EarlyStopping | ModelCheckpoint):
            better = {"acc": "max", "loss": "min"}.get((callback.monitor or "").rpartition("/")[2])
            if better not in (None, callback.mode):
                problem = f"mode is {callback.mode}, expected {better} for {callback.monitor}"
                raise UsageError(f"{name}: {problem}: change --{OPTION}.mode")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            if callback.save_last:
                raise UsageError(f"{name}: every run saves last.ckpt: leave out save_last")
            if callback.filename in ("best", "last"):
                raise UsageError(f"{name}: every run saves {callback.filename}.ckpt: change filename")


def check_trainer(settings: Any) -> None:
    """Check that no option of the Trainer switches off what every command needs.

    Raises:
        UsageError: One does.
    """
    if settings.barebones:
        raise UsageError(
            "--trainer.barebones true excludes logging, and with it the loss and accuracy of validation and test: "
            "leave it out; --trainer.logger false --trainer.enable_checkpointing false --trainer.enable_progress_bar "
            "false --trainer.enable_model_summary false --trainer.log_every_n_steps 0 switch off the rest"
        )


def check_root(dataset: str, root: str | Path | None) -> None:
    """Check that ``--data.root`` names no table of images, such as Kaggle's train.csv, or a folder with only that.

    Args:
        dataset: Name of the class of the dataset; classes of the user's may read anything.
        root: The folder of the datasets.

    Raises:
        UsageError: It does.
    """
    if root is None or dataset not in ("MNIST", "FashionMNIST", "MNISTOrDigits"):
        return
    path = Path(root)
    folders = [path / name for name in ("MNIST", "FashionMNIST")]
    is_table = path.is_file() and path.suffix.lower() in (".csv", ".zip", ".gz", ".npz", ".parquet")
    if is_table or ((path / "train.csv").is_file() and not any(folder.is_dir() for folder in folders)):
        raise UsageError(
            f"--data.root {root} is a table of images, expected the folder of the datasets: docs/data.md shows how to "
            "train on Kaggle's train.csv with a class of your own, and to classify its test.csv with predict.py"
        )
    if path.is_file() and dataset == "MNISTOrDigits":
        raise UsageError(f"--data.root {root} is a file, expected the folder of the datasets")
