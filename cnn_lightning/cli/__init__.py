"""The commands, each called by the script of its name."""

from cnn_lightning.cli.commands import evaluate, fit

__all__ = ["evaluate", "fit"]
