"""What the commands have in common: errors in one line, and how they speak."""

import argparse
import errno
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.cli.builder import ClassifierCLI
from cnn_lightning.errors import UsageError, exit_with

say = rank_zero_only(print)


class OptionParser(argparse.ArgumentParser):
    """Reads the options of a script that is no training; what a user can mend becomes one line and exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        exit_with(f"{message} (--help shows all options)")


def command(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Make a command of a function: what a user can mend becomes one line and exit code 2."""

    @wraps(function)
    def run(args: Sequence[str] | None = None) -> None:
        _hush()
        try:
            with _ended_by_signals():
                function(list(sys.argv[1:] if args is None else args))
        except (UsageError, MisconfigurationException) as error:
            exit_with(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
                raise
            exit_with(
                f"cannot read or write {error.filename or 'a file'} ({error.strerror}): make room, or choose another"
            )
        except KeyboardInterrupt:
            say("\nInterrupted.", file=sys.stderr)
            sys.exit(130)

    return run


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, closing all that is open, with exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hears signals in the main thread only
        return
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: lambda *_: sys.exit(143)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c_as_usual(trainer: Trainer) -> Iterator[None]:
    """Lightning makes of Ctrl-C, when it has closed everything, an exit with code 1; make it Ctrl-C again."""
    try:
        yield
    except SystemExit as stop:
        if stop.code == 1 and trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise


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


def test_checkpoint(cli: ClassifierCLI, checkpoint: Path | None) -> bool:
    """Test a checkpoint, or the last weights, on the official test images, and say how good it is.

    Returns:
        Whether there was anything to test.
    """
    data, trainer = cli.datamodule, cli.trainer
    if trainer.limit_test_batches == 0:
        say("Not tested, because --trainer.limit_test_batches is 0.")
        return False
    # Its work is done, and after it Lightning (2.6.6) would test the weights that were not averaged.
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)]
    with ctrl_c_as_usual(trainer):
        metrics = trainer.test(cli.model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    total = min(data.size("test"), trainer.num_test_batches[0] * data.batch_size * trainer.world_size)
    correct = round(metrics["test/acc"] * total)
    what = f"{shown(checkpoint)}" if checkpoint else "the last weights"
    say(f"\nTest of {what} on the test images of {type(data).__name__}")
    say(f"accuracy    {metrics['test/acc']:.2%} ({correct:,}/{total:,})\nloss        {metrics['test/loss']:.4f}")
    return True


def device_of(trainer: Trainer) -> str:
    """The device, and how many processes there are, for people."""
    device = trainer.strategy.root_device
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: f"{torch.get_num_threads()} threads"}
    name = f" ({names[device.type](device)})" if device.type in names else ""
    return f"{device}{name}" + (f", {trainer.world_size} processes" if trainer.world_size > 1 else "")


def processor() -> str:
    """The processor's name; Linux knows a better one than Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def program(name: str) -> str:
    """A program of this Python's environment, as it can be typed here."""
    return shown(Path(sys.executable).with_name(name))


def shown(path: str | Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """Leave it to the main thread to say what TensorBoard's thread could not write: there it is raised again."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def _hush() -> None:
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
