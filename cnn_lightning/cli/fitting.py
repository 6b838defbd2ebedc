"""``scripts/fit.py``: train a network and test it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import SaveConfig
from cnn_lightning.cli import runs
from cnn_lightning.cli.builder import FitCLI
from cnn_lightning.cli.command import (
    command,
    ctrl_c_as_usual,
    device_of,
    make_folder,
    program,
    say,
    shown,
    test_checkpoint,
)


@command
def fit(args: Sequence[str] | None = None) -> None:
    """Train a network, keep its best and its last checkpoint, and test the best.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    cli = FitCLI(args)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    # The dataset is made ready before Lightning asks for it, so that a mistake leaves no empty run behind.
    if rank_zero_only.rank == 0:
        data.prepare_data()
    data.setup("fit")
    if not trainer.fast_dev_run:
        make_folder(Path(trainer.log_dir), "--trainer.default_root_dir")
    if cli.ckpt_path:
        say(f"Going on from {shown(cli.ckpt_path)}, after epoch {runs.epoch_of(cli.checkpoint)}")
    say(
        f"Training {type(model.net).__name__} on {type(data).__name__}: {data.size('train'):,} training and "
        f"{data.size('val'):,} validation images, seed {cli.config.seed_everything}, device {device_of(trainer)}"
    )
    try:
        with ctrl_c_as_usual(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cli.ckpt_path, weights_only=True)
    except KeyboardInterrupt:
        _say_how_to_go_on(cli)
        sys.exit(130)
    best = Path(cli.best.best_model_path) if cli.best and cli.best.best_model_path else None
    test_checkpoint(cli, best)
    if not trainer.fast_dev_run:
        say(f"run         {shown(trainer.log_dir)}")
    if best:
        say(f"checkpoint  {shown(best)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        say(f"curves      {shlex.join([program('tensorboard'), '--logdir', shown(trainer.logger.save_dir)])}")


def _say_how_to_go_on(cli: FitCLI) -> None:
    last = cli.last.best_model_path if cli.last else None
    if not last:
        say("Stopped before the end of the first epoch: there is no checkpoint to go on from.")
        return
    config = next(c for c in cli.trainer.callbacks if isinstance(c, SaveConfig)).path
    say("Stopped. Go on from the end of the last whole epoch with")
    words = [program("python"), shown(sys.argv[0]), "--config", shown(config), "--ckpt_path", shown(last)]
    say(shlex.join(words))
