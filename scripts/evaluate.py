"""Test a checkpoint on the official test images: see ``--help`` and the README."""

from cnn_lightning.cli import evaluate

evaluate()
