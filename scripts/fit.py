"""Train a network and test it: see ``--help`` and the README."""

from cnn_lightning.cli import fit

fit()
