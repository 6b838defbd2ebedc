"""``scripts/fit.py`` that writes into a file what it is doing, for whoever kills it: FILE [OPTION...].

With the variable STOP_AT=N, a callback stops it after batch N.
"""

import os
import sys
from pathlib import Path

from lightning.pytorch import Callback

from cnn_lightning.checkpointing import checkpoint_io
from cnn_lightning.cli.fit import FitCLI, fit

phase = Path(sys.argv[1]).open("w")  # noqa: SIM115


def say(what: str) -> None:
    phase.seek(0)
    phase.write(f"{what:<12}")
    phase.flush()


class Watch(Callback):
    """Says whether it trains or validates."""

    def on_train_batch_start(self, *args):
        say("training")

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 == int(os.environ.get("STOP_AT", 0))

    def on_validation_start(self, *args):
        say("validating")

    def on_test_start(self, *args):
        say("testing")


def write_file(path: Path, content: bytes) -> None:
    say("saving")
    write(path, content)
    say("training")


write, checkpoint_io.write_file = checkpoint_io.write_file, write_file
callbacks = FitCLI.callbacks
FitCLI.callbacks = lambda self, settings: [Watch(), *callbacks(self, settings)]
say("starting")
fit(sys.argv[2:])
