"""Errors and signals as exit codes: what every command does the same way."""

import argparse
import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cnn_lightning.cli.terminal import print_rank_zero, silence_known_warnings
from cnn_lightning.errors import UsageError


def command(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Make a command of a function: what a user can mend becomes one line and exit code 2."""

    @wraps(function)
    def run(args: Sequence[str] | None = None) -> None:
        silence_known_warnings()
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
            print_rank_zero("\nInterrupted.", file=sys.stderr)
            sys.exit(130)

    return run


def exit_with(message: str) -> NoReturn:
    """Print an error in one line and exit with code 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


class OptionParser(argparse.ArgumentParser):
    """Reads the options of a script that is no training; what a user can mend becomes one line and exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        exit_with(f"{message} (--help shows all options)")


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
