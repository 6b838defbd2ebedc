"""The runs on disk: ``logs/NETWORK-DATASET/version_N`` with ``config.yaml``, events and ``checkpoints``."""

import pickle
from pathlib import Path
from typing import Any

import torch

from cnn_lightning.errors import UsageError


def newest_run(folder: Path) -> Path | None:
    """The run of the highest number among the ``version_N`` in a folder."""
    runs = [path for path in folder.glob("version_*") if path.name.removeprefix("version_").isdigit()]
    return max(runs, key=lambda path: int(path.name.removeprefix("version_")), default=None)


def last_checkpoint(folder: Path) -> Path:
    """The last checkpoint of the newest run in a folder like ``logs/LeNetCNN-MNIST``.

    Raises:
        UsageError: There is no run, or it has not saved a checkpoint yet.
    """
    run = newest_run(folder)
    if run is None:
        raise UsageError(f"there is no run in {folder}: give --ckpt_path a file, or leave it out to start a new run")
    path = run / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UsageError(f"{run}, the newest run, stopped before its first checkpoint: leave --ckpt_path out")
    return path


def newest_best_checkpoint(root: Path) -> Path:
    """The best checkpoint that was saved last, among all runs below a folder.

    Raises:
        UsageError: There is none.
    """
    paths = root.glob("*/version_*/checkpoints/best.ckpt")
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError(f"there is no checkpoint in {root}: train first with scripts/fit.py, or name a checkpoint")
    return newest


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint belongs to, None if it lies elsewhere."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.resolve().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning into CPU memory; no code in it is run.

    Returns:
        What Lightning saved: "state_dict", "hyper_parameters", "global_step" and more.

    Raises:
        UsageError: The file is missing, damaged, or something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        size = path.stat().st_size
        raise UsageError(f"{path} is not a checkpoint, or a damaged one ({size:,} bytes): name another") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UsageError(f"{path} is not a checkpoint of a run: expected a file that scripts/fit.py saved")
    return checkpoint


def check_fits(checkpoint: dict[str, Any], path: Path, model: torch.nn.Module) -> None:
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
