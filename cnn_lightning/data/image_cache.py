"""Decoded images in a file, so that the pictures are not decoded again."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from cnn_lightning.checkpointing.files import wait_for_lock, write_file
from cnn_lightning.errors import UsageError

VERSION = 1  # of what the images of a picture are; raised when they change
Decoded = tuple[Tensor, dict[int, str]]  # images, and index of a file that cannot be read -> the reason


def cached(
    path: Path, root: Path, files: Sequence[Path], settings: str, shape: Sequence[int], decode: Callable[[], Decoded]
) -> Decoded:
    """Read decoded images from a file, or decode and write them if it is missing, damaged or of other files.

    The file holds the SHA-256 of the rest in its first line; the key, and which files cannot be read, in its second;
    then the pixels. The key depends on the settings, and on path, size and time of every file. A lock lets one process
    write the file that others read.

    Args:
        path: The file, whose folder is made if it does not exist.
        root: Folder of the pictures; the cache stays valid where it is moved with them.
        files: The pictures.
        settings: What else the images depend on.
        shape: (C, H, W) of an image.
        decode: Reads the pictures.

    Raises:
        UsageError: The file cannot be written.
    """
    key = _key(root, files, settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(path.with_name(f"{path.name}.lock"), str(path)):
            found = _read(path, key, len(files), shape) if path.exists() else "missing"
            if not isinstance(found, str):
                return found
            if found != "missing" and getattr(rank_zero_only, "rank", 0) == 0:
                print(f"warning: the cache {path} is {found}: reading the pictures again", file=sys.stderr)
            images, damaged = decode()
            header = json.dumps([key, list(damaged.items())]).encode() + b"\n"
            content = b"".join([_checksum(header, images), header, images.numpy().tobytes()])
            write_file(path, content)
            return images, damaged
    except OSError as error:
        raise UsageError(f"cannot read or write {path} ({error.strerror})", "cache") from error


def _read(path: Path, key: str, count: int, shape: Sequence[int]) -> Decoded | str:
    """Read a cache, or say why it cannot be used."""
    with path.open("rb") as file:
        checksum, header = file.readline(), file.readline()
        try:
            saved_key, saved_damaged = json.loads(header)
            damaged = {int(index): str(reason) for index, reason in saved_damaged}
        except (ValueError, TypeError):
            return "damaged"
        if saved_key != key:
            return "out of date"
        images = torch.zeros(max(0, count - len(damaged)), *shape, dtype=torch.uint8)
        size = file.readinto(images.numpy().data.cast("B")) if len(images) else 0
        if size != images.numel() or file.read(1) or _checksum(header, images) != checksum:
            return "damaged"
    return images, damaged


def _key(root: Path, files: Sequence[Path], settings: str) -> str:
    states = []
    for path in files:
        try:
            status = path.stat()
            states.append((str(path.relative_to(root)), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:  # a broken link, which cannot be read either
            states.append((str(path.relative_to(root)), -1, -1, -1))
    readers = [PIL.__version__, find_spec("pillow_heif") is not None]  # what they cannot read is in the cache, too
    return hashlib.sha256(json.dumps([VERSION, *readers, settings, states]).encode()).hexdigest()


def _checksum(header: bytes, images: Tensor) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(images.numpy()).data)
    return digest.hexdigest().encode() + b"\n"
