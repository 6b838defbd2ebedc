"""What is watched and saved while a network trains."""

from cnn_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from cnn_lightning.callbacks.config import SaveConfig
from cnn_lightning.callbacks.display import LayerTable, ProgressBar

__all__ = ["BestCheckpoint", "LastCheckpoint", "LayerTable", "ProgressBar", "SaveConfig"]
