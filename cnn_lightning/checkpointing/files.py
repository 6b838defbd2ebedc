"""Atomic file writes, and a lock between processes."""

import errno
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: whatever stops the process or the machine, it is the old one or the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk, read again, and renamed.

    Args:
        path: The file, in a folder that exists; overwritten if it exists.
        content: All bytes of the file.

    Raises:
        OSError: It cannot be written. The old file, if there was one, is unchanged.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if part.read_bytes() != content:
            raise OSError(errno.EIO, "the written bytes read back differently", str(part))
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    for folder in path.parents[:2]:  # the second because the first may be new
        _flush_folder(folder)


@contextmanager
def wait_for_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file; print a line to stderr if another process holds it, and wait.

    Args:
        path: The lock file, in a folder that exists.
        what: What the other process prepares.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process, which prepares {what}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def numbered(name: str, suffix: str = "") -> Iterator[str]:
    """Yield candidates for a free name: "config.yaml", "config_2.yaml", "config_3.yaml" and so on."""
    yield f"{name}{suffix}"
    yield from (f"{name}_{number}{suffix}" for number in itertools.count(2))


def _flush_folder(path: Path) -> None:
    with suppress(OSError):  # not every system can, and the file exists by now
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
