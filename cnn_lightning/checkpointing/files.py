"""Files that are there whole, or as they were before."""

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write a file in such a way that, whatever stops the process or the machine, it is the old one or the new one.

    It is written beside its place, because only within a file system is renaming a single step; flushed to the disk,
    read again, and renamed.

    Args:
        path: The file, in a folder that exists. What it held is replaced.
        content: All of it.

    Raises:
        OSError: It cannot be written. The old file, if there was one, is still there.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if part.read_bytes() != content:
            raise OSError(errno.EIO, "what was written reads differently", str(part))
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    for folder in path.parents[:2]:  # the second, because the first may be new
        _flush_folder(folder)


def numbered(name: str, end: str = "") -> Iterator[str]:
    """Names to choose a free one from: like "config.yaml", "config_2.yaml", "config_3.yaml" and so on."""
    yield f"{name}{end}"
    yield from (f"{name}_{number}{end}" for number in itertools.count(2))


def _flush_folder(path: Path) -> None:
    with suppress(OSError):  # not every system can, and the file is there by now
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
