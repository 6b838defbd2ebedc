"""What this machine computes fast: bfloat16 or not, and with how many threads."""

import inspect
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, MPSAccelerator

from cnn_lightning.cores import free_cores, own_cores

CPUINFO = Path("/proc/cpuinfo")
# Names of instructions for bfloat16 in /proc/cpuinfo: of x86 and of ARM. oneDNN also calls it supported without them.
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
# Variables with which users choose the number of threads.
CHOSEN_BY_USER = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
ALL_THREADS = torch.get_num_threads()  # PyTorch's choice: one for each core

if TYPE_CHECKING:
    Precision = Any
else:
    Precision = inspect.signature(Trainer).parameters["precision"].annotation | Literal["auto"]

_reasons: dict[int, str] = {}  # number of threads -> why so many


class AutoTrainer(Trainer):
    """Lightning's Trainer, whose precision may be chosen for the device.

    Args:
        accelerator: 'cpu', 'gpu', 'tpu', 'mps' or 'auto', or an accelerator of your own.
        precision: Double (64, '64' or '64-true'), full (32, '32' or '32-true'), mixed with float16 (16, '16' or
            '16-mixed') or with bfloat16 ('bf16' or 'bf16-mixed'), or 'auto': 'bf16-mixed' where processor or GPU has
            instructions for bfloat16, else '32-true'.
        **kwargs: All other arguments of Lightning's Trainer.

    Attributes:
        auto_precision: The precision that was chosen, and why; "" where it was not 'auto'.
    """

    def __init__(self, *, accelerator: str | Accelerator = "auto", precision: Precision = None, **kwargs: Any) -> None:
        self.auto_precision = ""
        if precision == "auto":
            precision, reason = choose_precision(accelerator)
            self.auto_precision = f"{precision}, because {reason}"
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)


def choose_precision(accelerator: str | Accelerator) -> tuple[str, str]:
    """Choose between bfloat16 and float32 for a device, by its instructions.

    Args:
        accelerator: That of the Trainer.

    Returns:
        The precision and the reason.
    """
    device = device_of(accelerator)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has instructions for bfloat16"
        return "32-true", "this GPU has no instructions for bfloat16"
    if device != "cpu":
        return "32-true", f"bfloat16 is chosen on CUDA devices and processors only, not on {device}"
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if not flags:
        return "32-true", "this system does not list the instructions of its processor"
    if found := [name for name in BFLOAT16 if name in flags[0].split()]:
        return "bf16-mixed", f"this processor has instructions for bfloat16 ({', '.join(found)})"
    return "32-true", "this processor has no instructions for bfloat16"


def device_of(accelerator: str | Accelerator) -> str:
    """Return "cpu", "cuda" or another name, for what the Trainer would use as ``accelerator``."""
    kinds = {"cpu": CPUAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
    if isinstance(accelerator, Accelerator):
        return next((name for name, kind in kinds.items() if isinstance(accelerator, kind)), type(accelerator).__name__)
    if accelerator not in ("auto", "gpu"):
        return accelerator
    return next((name for name in ("mps", "cuda") if kinds[name].is_available()), "cpu")


@cache  # so that all parts of a command use the same number
def choose_threads() -> None:
    """Use only as many threads as other programs leave cores free, unless the user has chosen their number."""
    if CHOSEN_BY_USER & os.environ.keys() or torch.get_num_threads() != ALL_THREADS:
        return
    free, cores = free_cores()
    if (threads := max(1, free)) < ALL_THREADS:
        torch.set_num_threads(threads)
        _reasons[threads] = f"because other programs keep {cores - free} of {cores} cores busy"


def keep_threads(threads: int) -> None:
    """Use as many threads as the run that is resumed, because results of another number differ in the last bits.

    Args:
        threads: The number; 0 where it is not known.
    """
    now = torch.get_num_threads()
    if 0 < threads <= own_cores() and threads != now:
        torch.set_num_threads(threads)
        _reasons[threads] = "as when the run began"
    elif threads > now:
        _reasons[now] = f"although the run began with {threads}: the last bits of its results will differ"


def forget_threads(threads: int) -> None:
    """End what ``choose_threads`` and ``keep_threads`` chose for a command.

    Args:
        threads: The number before.
    """
    choose_threads.cache_clear()
    _reasons.clear()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def describe_threads() -> str:
    """Say how many threads PyTorch uses, and why, where other than all: "1 thread, because ..."."""
    threads = torch.get_num_threads()
    reason = _reasons.get(threads)
    return f"{threads} thread{'s' * (threads != 1)}" + (f", {reason}" if reason else "")
