"""Former path of the schedules: checkpoints and config.yaml files of version 0.1 name it."""

from cnn_lightning.optim.schedules import Cosine, OneCycle

__all__ = ["Cosine", "OneCycle"]
