"""What every command does the same way: errors and signals become exit codes, and mistakes in own code tracebacks."""

import argparse
import errno
import inspect
import os
import re
import select
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TextIO, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import cnn_lightning
from cnn_lightning.callbacks.signals import stop_signals
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.cli.from_python import Arguments, CommandError, process_restored, to_words
from cnn_lightning.cli.terminal import known_warnings_silenced, print_rank_zero
from cnn_lightning.data import ImageDataModule, ImageFolder
from cnn_lightning.errors import UsageError

Result = TypeVar("Result")
# Errors of the operating system that are no mistake in code.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
# Where the code lies that is not the user's: Python, installed packages, this package, and the script that was called.
_FOREIGN = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_FOREIGN += [str(Path(cnn_lightning.__file__).parent), "<"]


class Exit(SystemExit):
    """An error that was printed in one line, its message."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def command(function: Callable[[Sequence[str]], Result]) -> Callable[..., Result]:
    """Turn a function of command-line arguments into a command.

    A mistake in the user's input is printed in one line, with exit code 2. A mistake in the user's code is a traceback
    that ends in their file, with exit code 1. Ctrl-C exits with 130, SIGTERM with 143, SIGHUP with 129,
    and a closed pipe, as of ``| head``, with 141.

    From Python, the command takes a list of words or a dictionary of settings, returns what the function returns, and
    leaves the process as it was, except for its random numbers and the current folder in ``sys.path``. A mistake in
    the input is then a CommandError.
    """

    @wraps(function)
    def run(args: Arguments | None = None) -> Result:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append("")  # classes of the user's lie in the current folder, as for python -m
        try:
            with process_restored(), known_warnings_silenced():
                return _call(function, args)
        except Exit as stop:
            raise CommandError(stop.message) from None

    return run


def _call(function: Callable[[Sequence[str]], Result], args: Arguments | None) -> Result:
    try:
        with _signals_raise(), broken_pipe_exits():
            return function([with_home(arg) for arg in (sys.argv[1:] if args is None else to_words(args))])
    except UsageError as error:
        exit_with(f"{error}: change {option_of(error.argument)}" if error.argument else str(error))
    except MisconfigurationException as error:
        exit_with(str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            _end_in_own_file(error)
            raise
        exit_with(f"cannot read or write {error.filename or 'a file'} ({error.strerror}): free space, or change it")
    except KeyboardInterrupt:
        print_rank_zero("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # PyTorch raises a RuntimeError for the memory of a CPU.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            exit_with(f"out of memory ({error}): choose a smaller network, batch or image")
        _end_in_own_file(error)
        raise


def exit_with(message: str) -> NoReturn:
    """Print an error in one line and exit with code 2."""
    message = " ".join(message.split())
    print("error:", message, file=sys.stderr)
    raise Exit(message)


def option_of(argument: str) -> str:
    """Return the option that sets an argument of the model, the dataset, the Trainer or the network."""
    if argument.partition(".")[0] in inspect.signature(ImageClassifier).parameters:
        return f"--model.{argument}"
    if argument.startswith("data."):  # where a network has an argument of the same name
        return f"--{argument}"
    for group, cls in (("data", ImageDataModule), ("data", ImageFolder), ("trainer", Trainer)):
        if argument in inspect.signature(cls).parameters:
            return f"--{group}.{argument}"
    return f"--model.net.{argument}"


def with_home(text: str) -> str:
    """Replace ~ or ~USER at the start of a path, or of the value of an option; a shell leaves ``--data.root=~/x``."""
    # Path.expanduser raises where there is no such user.
    return re.sub(r"^(-[^=\s]*=)?(~[\w.-]*)(?=/|\Z)", lambda m: (m[1] or "") + os.path.expanduser(m[2]), text)  # noqa: PTH111


def at_least_one(text: str) -> int:
    """Convert the text of an option to a positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected at least 1")
    return int(text)


class OptionParser(argparse.ArgumentParser):
    """Parses the options of a command that trains nothing itself; an invalid one is an error in one line.

    Args:
        description: Text for ``--help``, printed as it is.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Exit with the message."""
        exit_with(f"{message} (--help shows all options)")


@contextmanager
def broken_pipe_exits() -> Iterator[None]:
    """Exit with 141, as a program that SIGPIPE ends, where whoever reads the output is gone, as with ``| head``."""
    try:
        try:
            yield
        except SystemExit as stop:
            if not stop.code and _reader_is_gone(sys.stdout):
                raise BrokenPipeError from stop  # argparse ignores that of --help
            raise
        finally:
            if sys.stdout:  # None where it is closed
                sys.stdout.flush()  # at interpreter exit, an error is a traceback and exit code 120
    except BrokenPipeError:
        closed = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]
        if not closed:
            raise  # it is of a connection in the user's code
        for file in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)  # for what is still in its buffer
        sys.exit(141)


def _reader_is_gone(stream: TextIO | None) -> bool:
    try:
        poll = select.poll()
        poll.register(stream, 0)  # type: ignore[arg-type]
    except (AttributeError, OSError, TypeError, ValueError):  # it is closed or no file; Windows has no poll
        return False
    return bool(poll.poll(0))


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise, so that everything open is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    handlers = dict.fromkeys(stop_signals(), lambda number, _: sys.exit(128 + number))
    handlers[signal.SIGINT] = signal.default_int_handler
    # A handler that was not set from Python cannot be restored.
    known = {number: handler for number, handler in handlers.items() if signal.getsignal(number) is not None}
    before = {number: signal.signal(number, handler) for number, handler in known.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_in_own_file(error: BaseException) -> None:
    """Cut the frames of libraries off the end of a traceback, if the user's own code called them."""
    own: TracebackType | None = None
    frame = error.__traceback__
    while frame:
        path = frame.tb_frame.f_code.co_filename
        if not path.startswith(tuple(_FOREIGN)) and path != sys.argv[0]:
            own = frame
        frame = frame.tb_next
    if own:
        own.tb_next = None
