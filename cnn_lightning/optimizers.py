"""Former path of ConvMuon: checkpoints and config.yaml files of version 0.1 name it."""

from cnn_lightning.optim.muon import ConvMuon

__all__ = ["ConvMuon"]
