"""Classify your own pictures: see ``--help`` and the README."""

from cnn_lightning.cli import predict

predict()
