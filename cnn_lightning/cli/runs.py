"""The runs on disk: ``logs/NETWORK-DATASET/version_N`` with ``config.yaml``, events and ``checkpoints``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from cnn_lightning.callbacks.config import flat_settings
from cnn_lightning.errors import UsageError

# What Lightning needs to test a checkpoint, beside the weights.
SAVED_BY_LIGHTNING = {"loops", "global_step", "pytorch-lightning_version"}
# What may change when a run goes on.
FREE_OPTIONS = {"--data.root", "--data.download", "--model.compile_mode"}
# What earlier checkpoints do not say, and how they were trained.
NEW_OPTIONS = {"--model.label_smoothing": 0.0, "--data.flip": False, "--data.shift": 0, "--data.pad": 0}


def next_number(folder: Path, name: str) -> str:
    """The name of a new folder in a folder: NAME_0, or one more than the greatest number there is."""
    numbers = [path.name.removeprefix(f"{name}_") for path in folder.glob(f"{name}_*")]
    return f"{name}_{max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1}"


def newest_checkpoint(folders: Iterable[Path], name: str) -> Path:
    """The "best" or "last" checkpoint that was saved last, among all runs in the given folders.

    Raises:
        UsageError: There is none.
    """
    folders = list(folders)
    paths = [path for folder in folders for path in folder.glob(f"version_*/checkpoints/{name}.ckpt")]
    if not paths:
        where = " or ".join(map(str, folders)) or "the folder of --trainer.default_root_dir"
        raise UsageError(f"there is no {name}.ckpt in {where}: train first with scripts/fit.py, or name a checkpoint")
    return max(paths, key=lambda path: path.stat().st_mtime)


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint belongs to, None if it lies elsewhere."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.resolve().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def epoch_of(checkpoint: dict[str, Any]) -> int:
    """The epoch, from 1, in or after which a checkpoint was saved."""
    # Lightning's "epoch" is one more in a checkpoint that was saved after fit than in one saved at the end of an epoch.
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning into CPU memory; no code in it is run.

    Returns:
        What Lightning saved: "state_dict", "hyper_parameters", "global_step" and more.

    Raises:
        UsageError: The file is missing, damaged, or something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except Exception as error:  # PyTorch checks little: a damaged file fails wherever it is noticed first
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else error
        raise UsageError(f"{path} is not a checkpoint, or a damaged one ({size}): name another") from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    is_model = isinstance(weights, dict) and all(isinstance(value, torch.Tensor) for value in weights.values())
    if not is_model or not checkpoint.keys() >= SAVED_BY_LIGHTNING:
        raise UsageError(f"{path} is not a checkpoint of a run: expected a file that scripts/fit.py saved")
    return checkpoint


def check_fits(checkpoint: dict[str, Any], path: Path, model: LightningModule) -> None:
    """Make sure that a checkpoint holds exactly the weights of a model.

    Raises:
        UsageError: It holds those of another network.
    """
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if saved != wanted:
        name, shape = min(set(saved.items()) ^ set(wanted.items()))
        raise UsageError(
            f"{path} is of another network than {type(model.net).__name__} as configured (they differ in {name} "
            f"{shape}): give --config the config.yaml of its run, or change --model.net"
        )


def check_goes_on(checkpoint: dict[str, Any], path: Path, model: LightningModule, data: LightningDataModule) -> None:
    """Make sure that training can go on from a checkpoint, in the way it began.

    Raises:
        UsageError: It holds weights alone, was saved in the middle of an epoch, or began with other settings.
    """
    if not checkpoint.get("optimizer_states"):
        raise UsageError(f"{path} holds weights alone: to go on, name the last.ckpt of a run")
    if not checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]:
        raise UsageError(f"{path} was saved in the middle of an epoch: to go on, name the last.ckpt of its run")
    for group, key, configured in (
        ("model", "hyper_parameters", model.hparams),
        ("data", "datamodule_hyper_parameters", data.hparams),
    ):
        began, now = flat_settings(f"--{group}", checkpoint.get(key, {})), flat_settings(f"--{group}", configured)
        began = {option: value for option, value in NEW_OPTIONS.items() if option in now} | began
        for option in sorted(began.keys() - FREE_OPTIONS):  # classes before their settings
            if began[option] != now.get(option):
                raise UsageError(
                    f"{path} was trained with {option} {began[option]}, here it is {now.get(option)}: leave {option} "
                    "out to go on, or --ckpt_path to start a new run"
                )


def settings_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of network and dataset that a checkpoint carries, as defaults for a parser.

    Raises:
        UsageError: The checkpoint carries none of the network.
    """
    model = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key != "_instantiator"}
    if "net" not in model:
        raise UsageError(f"{path} does not say which network it holds: expected a file that scripts/fit.py saved")
    settings = {f"model.{key}": value for key, value in model.items()}
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("_instantiator", None)
    if class_path := data.pop("_class_path", None):
        settings["data"] = {"class_path": class_path, "init_args": data}
    return settings
