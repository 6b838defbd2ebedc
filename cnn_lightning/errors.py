"""Errors that a user can cause and mend."""

import sys
from typing import NoReturn


class UsageError(Exception):
    """Says in one line what was wrong, what was expected, and the flag or file to change.

    The commands print it and exit with code 2.
    """


class DivergedError(UsageError):
    """Training has gone wrong for good: loss or weights are not finite."""


def exit_with(message: str) -> NoReturn:
    """Print an error in one line and exit with code 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
