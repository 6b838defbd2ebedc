"""``scripts/fit.py`` with what stops it in the invariant test: STOP BATCH [OPTION...]; for several processes."""

import os
import signal
import sys

import pytest

from cnn_lightning.cli.fit import fit
from tests.faults import DieAt, add_callback
from tests.test_invariant import STOPS

stop, batch, *options = sys.argv[1:]
if stop != "none":
    patch = pytest.MonkeyPatch()
    callback, stopping, _ = STOPS[stop](int(batch), patch)
    if isinstance(callback, DieAt):
        callback.on_train_batch_start = lambda trainer, *_: (
            os.kill(os.getpid(), signal.SIGKILL) if trainer.global_step == callback.step else None
        )
    add_callback(patch, callback)
    options += stopping
fit(options)
