"""The runs on disk: ``logs/NETWORK-DATASET/version_N`` with ``config.yaml``, events and ``checkpoints``."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks.config import flat_settings
from cnn_lightning.checkpointing import checkpoint_io
from cnn_lightning.checkpointing.checkpoint_io import DamagedError
from cnn_lightning.classifier import MODEL_CLASSES
from cnn_lightning.data import ImageDataModule
from cnn_lightning.errors import UsageError

# The file that says that a process trains in a run.
LOCK = ".lock"
# What Lightning needs to test a checkpoint, beside the weights.
SAVED_BY_LIGHTNING = {"loops", "global_step", "pytorch-lightning_version"}
# What may change when a run goes on.
FREE_OPTIONS = {"--data.root", "--data.download", "--model.compile_mode"}
# What earlier checkpoints do not say, and how they were trained.
NEW_OPTIONS = {"--model.label_smoothing": 0.0, "--data.flip": False, "--data.shift": 0, "--data.pad": 0} | {
    f"--data.{name}": 0.0 for name in ("rotate", "scale", "shear", "elastic", "erase")
}


def next_number(folder: Path, name: str) -> str:
    """The name of a new folder in a folder: NAME_0, or one more than the greatest number there is."""
    numbers = [path.name.removeprefix(f"{name}_") for path in folder.glob(f"{name}_*")]
    return f"{name}_{max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1}"


def make_run(folder: Path) -> Path:
    """Make the folder of a new run, which no other process has made or will take.

    Raises:
        UsageError: It cannot be made.
    """
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            run = folder / next_number(folder, "version")
            with suppress(FileExistsError, FileNotFoundError):  # another process was faster
                run.mkdir()
                return run
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): change --trainer.default_root_dir") from error


@contextmanager
def taken(run: Path) -> Iterator[None]:
    """Keep a run for this process, which may end in any way; afterwards, remove it if nothing was written to it.

    Raises:
        UsageError: Another process has it.
    """
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process trains in {run}: wait for it, or leave out --ckpt_path to start a new run"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to {run} ({error.strerror}): change --trainer.default_root_dir") from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            if [path.name for path in run.iterdir()] == [LOCK]:
                (run / LOCK).unlink()
                remove_if_empty(run, *run.parents[:2])


def remove_if_empty(*folders: Path) -> None:
    """Remove folders that were made for what was not written, as after a mistake or Ctrl-C."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def newest_checkpoint(folders: Iterable[Path]) -> Path:
    """The best checkpoint that was saved last, among all runs in the given folders.

    Raises:
        UsageError: There is none.
    """
    folders = list(folders)
    paths = [path for folder in folders for path in folder.glob("version_*/checkpoints/best.ckpt")]
    if not paths:
        where = " or ".join(map(str, folders)) or "the folder of --trainer.default_root_dir"
        raise UsageError(f"there is no best.ckpt in {where}: train first with scripts/fit.py, or name a checkpoint")
    return max(paths, key=_saved_at)


def last_checkpoint(folders: Iterable[Path]) -> Path | None:
    """The last checkpoint of the newest run in the given folders; None if there is no run, or it has saved nothing yet.

    A run is as new as what was last written in it: one that was killed at its start is not passed over for an older.
    """
    runs = [run for folder in folders for run in folder.glob("version_*") if run.is_dir()]
    if not runs:
        return None
    saved = {run: [*run.glob("*.yaml"), *run.glob("checkpoints/*.ckpt")] or [run] for run in runs}
    run = max(runs, key=lambda run: max(map(_saved_at, saved[run])))
    last = run / "checkpoints" / "last.ckpt"
    return last if last.exists() else None


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
        UsageError: The file is missing, damaged, or something else. The newest good one beside it is offered.
    """
    try:
        checkpoint = checkpoint_io.read_checkpoint(path)
    except DamagedError as error:
        good = _newest_good(path)
        raise UsageError(f"{error}: " + (f"take {good}, which is good" if good else "name another")) from error
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


def check_goes_on(
    checkpoint: dict[str, Any], path: Path, model: LightningModule, data: LightningDataModule, seed: int
) -> None:
    """Make sure that training can go on from a checkpoint, in the way it began.

    Raises:
        UsageError: It holds weights alone, was saved in the middle of an epoch, or began with other settings.
    """
    if not checkpoint.get("optimizer_states"):
        raise UsageError(f"{path} holds weights alone: to go on, name the last.ckpt of a run")
    loop = checkpoint["loops"]["fit_loop"]
    if not loop["epoch_loop.batch_progress"]["is_last_batch"] and "to_go_on" not in checkpoint:
        raise UsageError(f"{path} was saved in the middle of an epoch: to go on, name the last.ckpt of its run")
    if _seed_of(checkpoint) not in (None, seed):
        raise UsageError(
            f"{path} was trained with --seed_everything {_seed_of(checkpoint)}, here it is {seed}: leave "
            "--seed_everything out to go on, or --ckpt_path to start a new run"
        )
    last, step = path.with_name("last.ckpt"), 0
    if run_of(path) and last != path:
        with suppress(UsageError):  # there is none, or a damaged one, which may be replaced
            step = checkpoint_io.read_checkpoint(last)["global_step"]
    if step > checkpoint["global_step"]:
        raise UsageError(
            f"{last} has come further, to step {step:,}, and would be replaced: name that one, or copy {path.name} to "
            "another folder to start a new run from it"
        )
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
        UsageError: The checkpoint carries none of the network, or names classes that are not known.
    """
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        checkpoint_io.check_classes(checkpoint.get(key), (*MODEL_CLASSES, ImageDataModule), path)
    model = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key != "_instantiator"}
    if "net" not in model:
        raise UsageError(f"{path} does not say which network it holds: expected a file that scripts/fit.py saved")
    settings = {f"model.{key}": value for key, value in model.items()}
    if (seed := _seed_of(checkpoint)) is not None:
        settings["seed_everything"] = seed
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("_instantiator", None)
    if class_path := data.pop("_class_path", None):
        settings["data"] = {"class_path": class_path, "init_args": data}
    return settings


def _seed_of(checkpoint: dict[str, Any]) -> int | None:
    """The seed of the order of the images; None where they are not shuffled, and in earlier checkpoints."""
    loaders = checkpoint["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader", [])
    return loaders[0].get("seed") if loaders else None


def _newest_good(damaged: Path) -> Path | None:
    """The newest checkpoint in the folder of a damaged one that is not."""
    for path in sorted(damaged.parent.glob("*.ckpt"), key=_saved_at, reverse=True):
        with suppress(UsageError):
            checkpoint_io.read_checkpoint(path)
            return path
    return None


def _saved_at(path: Path) -> float:
    return path.stat().st_mtime


@rank_zero_only
def make_folder(folder: Path, option: str) -> None:
    """Make a folder, and those it lies in, in the first process.

    Raises:
        UsageError: It cannot be made; the message names the option to change.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): change {option}") from error
