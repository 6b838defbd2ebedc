"""What is watched and saved while a network trains."""

from cnn_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from cnn_lightning.callbacks.config import SaveConfig
from cnn_lightning.callbacks.dashboard import Overview, Pictures
from cnn_lightning.callbacks.progress import LayerTable, ProgressBar
from cnn_lightning.callbacks.scores import KeepScores
from cnn_lightning.callbacks.signals import Stopped

__all__ = [
    "BestCheckpoint",
    "KeepScores",
    "LastCheckpoint",
    "LayerTable",
    "Overview",
    "Pictures",
    "ProgressBar",
    "SaveConfig",
    "Stopped",
]
