"""Classify your own pictures: see ``--help`` and the README."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports without a traceback

from cnn_lightning.cli import predict

predict()
