"""What the commands print, and how: on rank 0, with short paths, without warnings that concern nobody."""

import logging
import os
import platform
import sys
import threading
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

print_rank_zero = rank_zero_only(print)


def device_name(trainer: Trainer) -> str:
    """The device, and how many processes there are, for people."""
    device = trainer.strategy.root_device
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: f"{torch.get_num_threads()} threads"}
    name = f" ({names[device.type](device)})" if device.type in names else ""
    return f"{device}{name}" + (f", {trainer.world_size} processes" if trainer.world_size > 1 else "")


def processor_name() -> str:
    """The processor's name; Linux knows a better one than Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def program(name: str) -> str:
    """A program of this Python's environment, as it can be typed here."""
    return relative_path(Path(sys.executable).with_name(name))


def relative_path(path: str | Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def silence_known_warnings() -> None:
    """Silence what users can do nothing about, what is not so here, and what the commands say themselves.

    Nor does a letter that cannot be shown stop a command.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # the name of a file may have letters that a terminal has not
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_thread
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls that lightning 2.6 makes
    for message in (
        "`isinstance.treespec, LeafSpec.` is deprecated",  # another of these calls
        "Checkpoint directory .* exists and is not empty",  # a run goes on
        "The number of training batches .* is smaller",  # every epoch ends with a point of the curves
        "You requested to overfit but enabled",  # it is not shuffled then
        "Precision .* is not supported by the model summary",  # LayerTable shows no sizes in MB
        "Be aware that when using `ckpt_path`, callbacks",  # evaluate needs no callbacks of fit
    ):
        warnings.filterwarnings("ignore", message=message)
    noise = (
        "GPU avail", "TPU avail", "💡", "Seed set", "Restor", "Loaded model", "Loading `train", "Trainer already",
        "Using bfloat16", "`Trainer.fit` stopped: `max_epochs", "Found current_model_state",
    )  # fmt: skip
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: not record.getMessage().startswith(noise))


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """Leave it to the main thread to say what TensorBoard's thread could not write: there it is raised again."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)
