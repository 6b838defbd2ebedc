"""Callbacks: what is logged, shown and saved while a network trains."""

from cnn_lightning.callbacks.calibration import SaveCalibration
from cnn_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from cnn_lightning.callbacks.config import SaveConfig
from cnn_lightning.callbacks.curves import Curves
from cnn_lightning.callbacks.dashboard import Overview
from cnn_lightning.callbacks.logits import KeepLogits
from cnn_lightning.callbacks.pictures import Pictures
from cnn_lightning.callbacks.progress import EpochLines, LayerTable, ProgressBar, can_draw
from cnn_lightning.callbacks.pruning import PruneTrial
from cnn_lightning.callbacks.resume import ResumeState
from cnn_lightning.callbacks.signals import Stopped

__all__ = [
    "BestCheckpoint",
    "Curves",
    "EpochLines",
    "KeepLogits",
    "LastCheckpoint",
    "LayerTable",
    "Overview",
    "Pictures",
    "ProgressBar",
    "PruneTrial",
    "ResumeState",
    "SaveCalibration",
    "SaveConfig",
    "Stopped",
    "can_draw",
]
