"""CheckedCheckpointIO: how a Trainer writes and reads checkpoints."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.checkpointing.safe_loading import read_checkpoint, with_checksum
from cnn_lightning.errors import UsageError


class CheckedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and checks every byte before one is used.

    Custom because Lightning 2.6.6 does not flush to the disk, copies from another file system and continues without a
    checkpoint where it may not write, and because PyTorch compares no checksums when it loads.

    A file is what ``torch.save`` writes, a ZIP archive that every program can load, with the SHA-256 of its bytes in
    the comment at the end.

    Args:
        loaded: Checkpoints by path that have been read already; each is used once.
    """

    def __init__(self, loaded: dict[Path, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.loaded = loaded or {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Overwrite a checkpoint.

        Raises:
            UsageError: It cannot be written. The one before is unchanged.
        """
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, with_checksum(buffer.getvalue()))
        except OSError as error:
            raise UsageError(
                f"cannot save the checkpoint {path} ({error.strerror}); what was saved there before is kept: make "
                "room, or change --trainer.default_root_dir"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Load a checkpoint into CPU memory, with ``weights_only``, whatever the other arguments are."""
        path = Path(path)
        return self.loaded.pop(path) if path in self.loaded else read_checkpoint(path)
