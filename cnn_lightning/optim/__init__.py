"""Optimizers and learning-rate schedules that PyTorch does not have."""

from cnn_lightning.optim.build import adamw, build_optimizer
from cnn_lightning.optim.muon import ConvMuon
from cnn_lightning.optim.schedules import Cosine, OneCycle

__all__ = ["ConvMuon", "Cosine", "OneCycle", "adamw", "build_optimizer"]
