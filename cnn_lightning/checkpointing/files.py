"""Atomic file writes."""

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


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
