"""What the commands print: on rank 0, with short paths, without warnings that concern nobody."""

import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.cli.hardware import describe_threads

print_rank_zero = rank_zero_only(print)


def is_rank_zero() -> bool:
    """Whether this process has rank 0."""
    return getattr(rank_zero_only, "rank", 0) == 0


def device_name(trainer: Trainer) -> str:
    """Describe the device and the number of processes, like "cpu (2 threads)"."""
    device = trainer.strategy.root_device
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: describe_threads()}
    name = f" ({names[device.type](device)})" if device.type in names else ""
    return f"{device}{name}" + (f", {trainer.world_size} processes" if trainer.world_size > 1 else "")


def processor_name() -> str:
    """Name the processor; Linux knows a better name than Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def program(name: str) -> str:
    """Return the path of a program of this Python's environment."""
    return relative_path(Path(sys.executable).with_name(name))


def command_words(name: str) -> list[str]:
    """Return how a command was called: as a script, as ``python -m cnn_lightning``, or as ``cnn-lightning``."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" or (called.suffix == ".py" and called.stem != name):  # a program of the user's
        return [program("python"), "-m", "cnn_lightning", name]
    return [program("python"), relative_path(called)] if called.suffix == ".py" else [relative_path(called), name]


def relative_path(path: str | Path) -> str:
    """Shorten a path to one relative to the current folder, if it lies in there."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@contextmanager
def known_warnings_silenced() -> Iterator[None]:
    """Silence warnings that users cannot act on, that do not hold here, or that the commands print themselves."""
    if hasattr(sys.stdout, "reconfigure"):
        # A file name may have letters that a terminal cannot show; a log file shows each line when it is printed.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_thread
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls that lightning 2.6 makes
    for message in (
        "`isinstance.treespec, LeafSpec.` is deprecated",  # another of these calls
        "Checkpoint directory .* exists and is not empty",  # of a resumed run
        "Experiment logs directory .* exists and is not empty",  # of a resumed run, whose rows are kept
        "The number of training batches .* is smaller",  # every epoch ends with a point of the curves
        "You requested to overfit but enabled",  # shuffling is off then
        "Precision .* is not supported by the model summary",  # LayerTable shows no sizes in MB
        "You're resuming from a checkpoint that ended before",  # ResumeState skips the batches that were trained
        "Be aware that when using `ckpt_path`, callbacks",  # evaluate needs no callbacks of fit
    ):
        warnings.filterwarnings("ignore", message=message)
    noise = (
        "GPU avail", "TPU avail", "💡", "Seed set", "Restor", "Loaded model", "Loading `train", "Trainer already",
        "Using bfloat16", "`Trainer.fit` stopped: `max_epochs", "Found current_model_state",
    )  # fmt: skip

    def is_no_noise(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(noise)

    names = ("lightning.pytorch", "lightning.fabric")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(is_no_noise)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_no_noise)


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """Report an exception of a thread, except what TensorBoard could not write: the main thread raises that, too."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)
