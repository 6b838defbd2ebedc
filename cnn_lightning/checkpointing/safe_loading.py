"""Reading checkpoints: every byte is checked, and no code in them runs."""

import hashlib
import io
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cnn_lightning.errors import UsageError

# The length of a SHA-256 in hexadecimal digits, as a ZIP archive states the length of its comment.
_LENGTH = struct.pack("<H", 64)
# What Lightning needs to test a checkpoint, besides the weights.
_SAVED_BY_LIGHTNING = {"loops", "global_step", "pytorch-lightning_version"}


# What zipfile raises where it meets damage.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, OverflowError, struct.error)


class DamagedError(UsageError):
    """A file differs from what was saved."""


def with_checksum(archive: bytes) -> bytes:
    """Put the SHA-256 of a ZIP archive, as ``torch.save`` writes it, into the comment at its end."""
    archive = archive[:-2] + _LENGTH  # the last two bytes are the length of the comment, 0 before
    return archive + hashlib.sha256(archive).hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory.

    Args:
        path: A file that a Trainer saved, with our checksum or with those of a ZIP archive alone.

    Raises:
        DamagedError: The file is damaged, or no checkpoint.
        UsageError: It cannot be read, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not _is_intact(content):
        raise DamagedError(f"{path} is not a checkpoint, or a damaged one ({len(content):,} bytes)")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} holds more than tensors and plain values, which could run code: it is not used, name another"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError) as error:  # a ZIP archive of something else
        raise DamagedError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from error


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run, and offer the newest intact one of its folder where it is damaged.

    Returns:
        What Lightning saved: "state_dict", "hyper_parameters", "global_step" and more.

    Raises:
        UsageError: The file is missing, damaged, or no checkpoint of a run.
    """
    try:
        checkpoint = read_checkpoint(path)
    except DamagedError as error:
        good = _newest_intact(path.parent)
        raise UsageError(f"{error}: " + (f"use {good}, which is intact" if good else "name another")) from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    is_model = isinstance(weights, dict) and all(isinstance(value, torch.Tensor) for value in weights.values())
    if not is_model or not checkpoint.keys() >= _SAVED_BY_LIGHTNING:
        raise UsageError(f"{path} is not a checkpoint of a run: expected a file that scripts/fit.py saved")
    return checkpoint


def _is_intact(content: bytes) -> bool:
    """Compare the checksum of all bytes; of an archive without ours, those that ZIP keeps of its parts."""
    if content[-66:-64] == _LENGTH:
        return hashlib.sha256(content[:-64]).hexdigest().encode() == content[-64:]
    if content[-22:-18] != b"PK\5\6":  # how the end of an archive without comment begins
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except _ZIP_ERRORS:
        return False


def _newest_intact(folder: Path) -> Path | None:
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UsageError):
            read_checkpoint(path)
            return path
    return None
