"""``scripts/fit.py``: train a network and test it."""

import re
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import BestCheckpoint, LastCheckpoint, SaveConfig, Stopped
from cnn_lightning.cli import run_folders as runs
from cnn_lightning.cli.classifier_cli import FitCLI, test_checkpoint
from cnn_lightning.cli.exit_codes import command, ctrl_c_as_usual
from cnn_lightning.cli.terminal import device_name, print_rank_zero, program, relative_path
from cnn_lightning.errors import DivergedError, UsageError


@command
def fit(args: Sequence[str] | None = None) -> None:
    """Train a network, keep its best and its last checkpoint, and test the best.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    cli = FitCLI(args)
    with runs.taken(cli.run) if cli.run and rank_zero_only.rank == 0 else nullcontext():
        _train(cli)
        best = Path(cli.best.best_model_path) if cli.best and cli.best.best_model_path else None
        test_checkpoint(cli, best)
    trainer = cli.trainer
    if not trainer.fast_dev_run:
        print_rank_zero(f"run         {relative_path(trainer.log_dir)}")
    if best:
        print_rank_zero(f"checkpoint  {relative_path(best)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        print_rank_zero(
            f"curves      {shlex.join([program('tensorboard'), '--logdir', relative_path(trainer.logger.save_dir)])}"
        )


def _train(cli: FitCLI) -> None:
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if cli.ckpt_path and cli.ckpt_path.stat().st_mtime_ns != cli.saved_at:
        raise UsageError(f"{cli.ckpt_path} was saved anew while this command started: type it again")
    # The dataset and the network are made ready before Lightning starts, so that a mistake leaves no empty run behind.
    data.prepare_data()
    data.setup("fit")
    if cli.ckpt_path is None:
        try:
            model.net.load_pretrained()
        except ValueError as error:
            raise UsageError(error) from error
    if cli.ckpt_path:
        print_rank_zero(
            f"Going on from {relative_path(cli.ckpt_path)}: epoch {runs.epoch_of(cli.checkpoint)}, "
            f"step {cli.checkpoint['global_step']:,}"
        )
    elif cli.config.ckpt_path == "last":
        print_rank_zero("The newest run has no checkpoint yet, or there is none: starting a new run")
    print_rank_zero(
        f"Training {type(model.net).__name__} on {type(data).__name__}: {data.size('train'):,} training and "
        f"{data.size('val'):,} validation images, seed {cli.config.seed_everything}, device {device_name(trainer)}"
    )
    try:
        with ctrl_c_as_usual(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cli.ckpt_path, weights_only=True)
    except Stopped as stop:
        _say_how_to_go_on(cli)
        _leave_it_to_the_first()
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        _say_how_to_go_on(cli)
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        # What Lightning and PyTorch notice only while they train, and say in one line.
        if not re.search("val_check_interval|Early stopping conditioned|dense gradients", str(error)):
            raise
        raise UsageError(error) from error
    except DivergedError as error:
        _leave_it_to_the_first()
        best = _saved(cli.best)
        raise UsageError(f"{error}; " + (f"the best until then is {best}" if best else "nothing was saved")) from error
    except UsageError:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that wait for this one
        raise


def _leave_it_to_the_first() -> None:
    """End all processes but the first, as if nothing were wrong: Lightning kills the first when another fails."""
    if rank_zero_only.rank > 0:
        sys.exit(0)


@rank_zero_only
def _say_how_to_go_on(cli: FitCLI) -> None:
    last = _saved(cli.last)
    if not last:
        print_rank_zero("Stopped before anything was saved.")
        return
    config = next(c for c in cli.trainer.callbacks if isinstance(c, SaveConfig)).path
    print_rank_zero("Stopped. Go on where it was saved last with")
    words = [program("python"), relative_path(sys.argv[0]), "--config", relative_path(config), "--ckpt_path", last]
    print_rank_zero(shlex.join(words))


def _saved(checkpoint: BestCheckpoint | LastCheckpoint | None) -> str:
    """The file of a checkpoint, "" if there is none yet."""
    # Lightning notes the name before it writes the file.
    path = checkpoint.best_model_path if checkpoint else ""
    return relative_path(path) if path and Path(path).is_file() else ""
