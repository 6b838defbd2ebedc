"""The commands, each called by the script of its name."""

from cnn_lightning.cli.evaluating import evaluate
from cnn_lightning.cli.fitting import fit
from cnn_lightning.cli.predicting import predict

__all__ = ["evaluate", "fit", "predict"]
