"""The folders of runs: ``logs/NETWORK-DATASET/version_N`` with ``config.yaml``, events and ``checkpoints``.

A user may give a run another name than ``version_N``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.errors import UsageError

# The file whose lock says that a process trains in a run.
LOCK = ".lock"


@rank_zero_only
def make_folder(folder: Path, option: str) -> None:
    """Make a folder and its parents, on rank 0.

    Raises:
        UsageError: It cannot be made; the message names the option to change.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): change {option}") from error


def new_path(option: str, name: str, kind: str = "file") -> Path:
    """Return the path of what is to be written.

    Raises:
        UsageError: It exists; the message names the option to change.
    """
    path = Path(name)
    if path.exists():
        raise UsageError(f"{option} {name} exists: name a new {kind}, or move that one away")
    return path


def next_name(folder: Path, name: str) -> str:
    """Return NAME_N for the next free number in a folder: NAME_0, or one more than the greatest."""
    numbers = [path.name.removeprefix(f"{name}_") for path in folder.glob(f"{name}_*")]
    return f"{name}_{max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1}"


def class_label(cls: type) -> str:
    """Return the name of a class, with its module unless it is of this package: two files may use one name."""
    return cls.__name__ if cls.__module__.startswith("cnn_lightning.") else f"{cls.__module__}.{cls.__qualname__}"


def dataset_label(data: LightningDataModule) -> str:
    """Return the name that a dataset has of its own, such as that of its folder, or the label of its class."""
    name = getattr(data, "name", None)
    return name if name and name != type(data).__name__ else class_label(type(data))


def make_run(folder: Path) -> Path:
    """Make the folder of a new run, which no other process can get.

    Raises:
        UsageError: It cannot be made.
    """
    while True:
        make_folder(folder, "--trainer.default_root_dir")
        run = folder / next_name(folder, "version")
        try:
            run.mkdir()
        except (FileExistsError, FileNotFoundError):  # another process was faster
            continue
        except OSError as error:
            raise UsageError(
                f"cannot write to {folder} ({error.strerror}): change --trainer.default_root_dir"
            ) from error
        return run


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Lock a run for this process; afterwards, remove the folder if nothing was written to it.

    Raises:
        UsageError: Another process holds the lock.
    """
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process trains in {run}: wait for it, or leave out --ckpt_path to start a new run"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write to {run} ({error.strerror}): to resume, copy this folder to a place that can be written, "
            "and name the last.ckpt of the copy with --ckpt_path"
        ) from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            if [path.name for path in run.iterdir()] == [LOCK]:
                (run / LOCK).unlink()
                remove_if_empty(run, *run.parents[:2])


def remove_if_empty(*folders: Path) -> None:
    """Remove folders that were made for what was never written."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def newest_best(folders: Iterable[Path]) -> Path:
    """Return the best.ckpt that was saved last, among all runs in some folders.

    Raises:
        UsageError: There is none.
    """
    folders = list(folders)
    paths = _checkpoints(folders, "best.ckpt")
    if not paths:
        where = " or ".join(map(str, folders)) or "the folder of --trainer.default_root_dir"
        if lasts := _checkpoints(folders, "last.ckpt"):
            raise UsageError(f"there is no best.ckpt in {where}, only last.ckpt: name {max(lasts, key=_saved_at)}")
        raise UsageError(f"there is no best.ckpt in {where}: train first with scripts/fit.py, or name a checkpoint")
    return max(paths, key=_saved_at)


def newest_tested(folders: Iterable[Path]) -> Path:
    """Return the checkpoint that ``fit`` has tested, of the run whose best.ckpt was saved last.

    Raises:
        UsageError: There is none.
    """
    best = newest_best(folders)
    config = yaml.safe_load((best.parents[1] / "config.yaml").read_text(encoding="utf-8"))
    return best.with_name(f"{config.get('test', 'best')}.ckpt")


def newest_last(folders: Iterable[Path]) -> Path | None:
    """Return the last.ckpt of the newest run in some folders; None if there is no run, or it has saved nothing yet.

    Runs are ordered by their last write, so that one killed at startup is not skipped.
    """
    runs = [run for folder in folders for run in folder.glob("*") if _is_run(run)]
    if not runs:
        return None
    saved = {run: [*run.glob("*.yaml"), *run.glob("checkpoints/*.ckpt")] or [run] for run in runs}
    last = max(runs, key=lambda run: max(map(_saved_at, saved[run]))) / "checkpoints" / "last.ckpt"
    return last if last.exists() else None


def _checkpoints(folders: Iterable[Path], name: str) -> list[Path]:
    return [path for folder in folders for path in folder.glob(f"*/checkpoints/{name}")]


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run; one that was killed at startup has nothing but its name."""
    written = [folder / "config.yaml", folder / "checkpoints"]
    return folder.is_dir() and (folder.name.startswith("version_") or any(path.exists() for path in written))


def _saved_at(path: Path) -> float:
    return path.stat().st_mtime
