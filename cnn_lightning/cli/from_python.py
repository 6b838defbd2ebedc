"""Calls of the commands from Python and notebooks: their arguments, their errors, and what they leave behind."""

import json
import numbers
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cnn_lightning.cli.hardware import forget_threads
from cnn_lightning.errors import UsageError

# A list like ["--model.net", "MLP"], or settings like {"model.net": "MLP"} or {"model": {"net": "MLP"}}.
Arguments = Sequence[Any] | Mapping[str, Any]


class CommandError(UsageError, SystemExit):
    """A user-facing error of a command.

    A SystemExit, so that a program that does not catch it ends with exit code 2, and a notebook shows its one line; a
    ValueError, so that a program that continues with the next run can catch it like any other.
    """

    def __init__(self, message: object) -> None:
        super().__init__(message)
        self.code = 2


def to_words(args: Arguments) -> list[str]:
    """Convert arguments to the words of a command line.

    Args:
        args: A list of words, or a dictionary of settings, which may be nested as in a configuration file.

    Raises:
        UsageError: They are something else, or a value is an object that no command line can hold.
    """
    if isinstance(args, Mapping):
        return [f"--{name}={_text(name, value)}" for name, value in _flat(args)]
    if isinstance(args, str) or not isinstance(args, Sequence):
        raise UsageError(f"the arguments are {args!r}, expected a list of words or a dictionary of settings")
    return [_text("an argument", arg) for arg in args]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{str(key).removeprefix('--')}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _text(name: str, value: Any) -> str:
    """Write a value as it is typed."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | list | tuple | Mapping):
        return json.dumps(value, default=lambda item: _plain(name, item))
    return str(_plain(name, value))


def _plain(name: str, value: Any) -> str | float:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    kind = type(value).__name__
    raise UsageError(
        f"{name} is an object of the class {kind}, expected a plain value or a class; Trainer.fit takes objects"
    )


@contextmanager
def process_restored() -> Iterator[None]:
    """Restore what a command changes for the whole process, so that the next one finds what a new process would.

    Random numbers are not restored: a command sets its seed when it starts.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, dtype = torch.backends.cudnn.benchmark, torch.get_default_dtype()
    report, stdout = threading.excepthook, sys.stdout
    errors, buffering = getattr(stdout, "errors", None), getattr(stdout, "line_buffering", None)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            forget_threads(threads)
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.backends.cudnn.benchmark = benchmark
            torch.set_default_dtype(dtype)
            threading.excepthook = report
            if hasattr(stdout, "reconfigure"):
                stdout.reconfigure(errors=errors, line_buffering=buffering)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
