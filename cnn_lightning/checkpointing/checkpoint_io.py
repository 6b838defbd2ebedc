"""How checkpoints are written to disk and read again."""

import hashlib
import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.errors import UsageError

# The length of a SHA-256 in hexadecimal digits, as a ZIP archive says how long the comment at its end is.
_LENGTH = struct.pack("<H", 64)
# The settings that may be the name of a class.
_CLASSES = {"class_path", "_class_path", "net", "optimizer", "lr_schedule"}
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


class DamagedError(UsageError):
    """A file is not what was saved."""


class CheckedCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, and of which every byte is checked before it is used.

    Our own, because Lightning (2.6.6) does not flush to disk, copies from another file system and goes on without a
    checkpoint when it may not write, and because PyTorch compares no checksums when it loads.

    A file is what ``torch.save`` writes, a ZIP archive, which every program can load; the comment at its end is the
    SHA-256 of all that comes before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint in the place of the one before.

        Raises:
            UsageError: It cannot be written. The one before is still there.
        """
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, _with_digest(buffer.getvalue()))
        except OSError as error:
            raise UsageError(
                f"cannot save the checkpoint {path} ({error.strerror}); what was saved there before is kept: make "
                "room, or change --trainer.default_root_dir"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Load a checkpoint into CPU memory, whatever the other arguments say: see ``read_checkpoint``."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory; no code in it is run.

    Raises:
        DamagedError: The file is damaged, or no checkpoint.
        UsageError: It cannot be read, or asks for more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not _is_whole(content):
        raise DamagedError(f"{path} is not a checkpoint, or a damaged one ({len(content):,} bytes)")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} asks for more than tensors and plain values, which could run code: it is not used, name another"
        ) from error
    except Exception as error:  # a ZIP archive of something else fails wherever PyTorch notices it
        raise DamagedError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from error


def check_classes(settings: Any, bases: tuple[type, ...], path: str | Path) -> None:
    """Make sure that settings in a checkpoint name only classes that are imported already, of the kinds expected.

    jsonargparse would import and call whatever is named; Lightning checks only the outermost names.

    Args:
        settings: Nested, with ``class_path`` and the like.
        bases: Classes of which those named must be subclasses.
        path: The checkpoint, for the message.

    Raises:
        UsageError: Another name is there.
    """
    if isinstance(settings, list | tuple):
        settings = dict(enumerate(settings))
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        if key in _CLASSES and value is not None and not isinstance(value, Mapping):
            module, _, name = str(value).rpartition(".")
            cls = getattr(sys.modules.get(module), name, None)
            allowed = isinstance(cls, type) and issubclass(cls, bases)
        else:
            allowed = key != "_instantiator" or value == _INSTANTIATOR
        if not allowed:
            raise UsageError(
                f"{path} names {value}, which is no network, optimizer, schedule or dataset that is known here: it is "
                "not used, for it could run code; if it is your own, name it with --model.net or --data"
            )
        check_classes(value, bases, path)


def _with_digest(archive: bytes) -> bytes:
    # torch.save leaves the comment empty: the last two bytes, its length, are 0.
    archive = archive[:-2] + _LENGTH
    return archive + hashlib.sha256(archive).hexdigest().encode()


def _is_whole(content: bytes) -> bool:
    """Whether every byte is as it was saved; of an archive without our digest, whether ZIP's checksums agree."""
    if content[-66:-64] == _LENGTH:
        return hashlib.sha256(content[:-64]).hexdigest().encode() == content[-64:]
    if content[-22:-18] != b"PK\5\6":  # how the end of an archive without comment begins
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile notices damage in many ways
        return False
