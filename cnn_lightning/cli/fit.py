"""``scripts/fit.py``: train a network, keep its best and its last checkpoint, and test one of them."""

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import BestCheckpoint, LastCheckpoint, SaveConfig, Stopped
from cnn_lightning.callbacks.layer_errors import naming_layer
from cnn_lightning.callbacks.position import stopped_early, within_epoch
from cnn_lightning.checkpointing.settings import RESUME_KEY, check_dataset, epoch_of
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.fit_cli import FitCLI
from cnn_lightning.cli.hardware import keep_threads
from cnn_lightning.cli.loggers import keep_rows
from cnn_lightning.cli.run_folders import run_lock
from cnn_lightning.cli.terminal import command_words, device_name, is_rank_zero, print_rank_zero, program, relative_path
from cnn_lightning.data import ImageDataModule
from cnn_lightning.errors import DivergedError, UsageError
from cnn_lightning.facts import name_of
from cnn_lightning.lightning_fixes import callbacks_of, keyboard_interrupt
from cnn_lightning.nets import ConvNet

# What Lightning and PyTorch notice only while they train, and what to do about it.
_LATE_ERRORS = {
    "Expected more than 1 value per channel": ": change --data.batch_size, or set --data.drop_last true",
    "val_check_interval": "",
    "Early stopping conditioned": "",
    "dense gradients": "",
}


@dataclass(frozen=True)
class Run:
    """What ``fit`` has made, for programs that call it.

    Args:
        folder: The folder of the run; None where nothing is saved.
        checkpoint: The checkpoint that was tested, best.ckpt unless --test is "last"; None where none was saved.
        metrics: "test/loss" and "test/acc", which is in [0, 1]; empty where nothing was tested.
        model: The ImageClassifier, with the weights that were tested.
        datamodule: The data module.
        trainer: The Trainer.
    """

    folder: Path | None
    checkpoint: Path | None
    metrics: dict[str, float]
    model: ImageClassifier = field(repr=False)  # their texts would fill a notebook
    datamodule: LightningDataModule = field(repr=False)
    trainer: Trainer = field(repr=False)


@command
def fit(args: Sequence[str]) -> Run:
    """Train a network, keep its best and its last checkpoint, and test one of them.

    Args:
        args: Command-line arguments, or a dictionary of settings. Defaults to the arguments of this process.
    """
    cli = FitCLI(args)
    with run_lock(cli.run) if cli.run and is_rank_zero() else nullcontext():
        train(cli)
        checkpoint = cli.checkpoint_to_test()
        tested = cli.test(checkpoint)
    trainer = cli.trainer
    if cli.run:
        print_rank_zero(f"run         {relative_path(cli.run)}")
    if checkpoint:
        print_rank_zero(f"checkpoint  {relative_path(checkpoint)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        words = [program("tensorboard"), "--logdir", relative_path(trainer.logger.save_dir)]
        print_rank_zero(f"curves      {shlex.join(words)}")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()} if tested else {}
    return Run(
        cli.run and cli.run.absolute(),
        checkpoint and checkpoint.absolute(),
        metrics,
        cli.model,
        cli.datamodule,
        trainer,
    )


def train(cli: FitCLI) -> None:
    """Train, and turn the ways in which training can end into messages and exit codes."""
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if cli.ckpt_path and cli.ckpt_path.stat().st_mtime_ns != cli.saved_at:
        raise UsageError(f"{cli.ckpt_path} changed while this command started; run the command again")
    # Dataset and network are prepared before Lightning starts, so that a mistake leaves no empty run. A data module of
    # the user's may take long: only Lightning prepares it.
    if isinstance(data, ImageDataModule):
        data.prepare_data()
        data.setup("fit")
    if cli.ckpt_path is not None:
        check_dataset(cli.checkpoint, cli.ckpt_path, data)
    elif isinstance(model.net, ConvNet):
        model.net.load_pretrained()
    if cli.ckpt_path and trainer.strategy.root_device.type == "cpu":
        keep_threads(cli.checkpoint.get(RESUME_KEY, {}).get("threads", 0))
    _print_start(cli)
    if cli.resumes:
        keep_rows(trainer.loggers, cli.checkpoint)
    try:
        with keyboard_interrupt(trainer), naming_layer(model.net):
            trainer.fit(model, datamodule=data, ckpt_path=cli.ckpt_path, weights_only=True)
        finished = trainer.global_step == trainer.max_steps or stopped_early(callbacks_of(trainer))
        if within_epoch(trainer) and not finished:
            # max_time counts the time of all resumed runs together.
            more_time = ["--trainer.max_time=null"] if cli.config.trainer.max_time else []
            epoch, step = trainer.fit_loop.epoch_progress.current.ready, trainer.global_step
            _print_how_to_resume(cli, f"Stopped within epoch {epoch}, at step {step:,}.", more_time)
    except Stopped as stop:
        _print_how_to_resume(cli)
        _exit_other_ranks()
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        _print_how_to_resume(cli)
        sys.exit(130)
    except DivergedError as error:
        _exit_other_ranks()
        best = _saved(cli.best)
        raise UsageError(f"{error}; " + (f"the best until then is {best}" if best else "nothing was saved")) from error
    except UsageError:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the ranks that wait for this one
        raise
    except (ValueError, RuntimeError) as error:
        if model.compile_mode and type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            reason = str(error).splitlines()[0]
            raise UsageError(f"torch.compile fails ({reason}): leave out --model.compile_mode") from error
        for message, advice in _LATE_ERRORS.items():
            if message in str(error):
                raise UsageError(f"{error}{advice}") from error
        raise


def _print_start(cli: FitCLI) -> None:
    data = cli.datamodule
    if cli.ckpt_path:
        step = f"{cli.checkpoint['global_step']:,}"
        print_rank_zero(f"Resuming from {relative_path(cli.ckpt_path)}: epoch {epoch_of(cli.checkpoint)}, step {step}")
    elif cli.config.ckpt_path == "last":
        print_rank_zero("There is no run to resume, or it has no checkpoint yet: starting a new run")
    seed = "no seed" if cli.config.seed_everything is False else f"seed {cli.config.seed_everything}"
    sizes = ""
    if isinstance(data, ImageDataModule):
        sizes = f": {data.size('train'):,} training and {data.size('val'):,} validation images"
    what = f"{type(cli.model.net).__name__} on {name_of(data)}"
    print_rank_zero(f"Training {what}{sizes}, {seed}, device {device_name(cli.trainer)}")
    epochs, every = cli.trainer.max_epochs or 0, cli.trainer.check_val_every_n_epoch or 1
    if epochs > 0 and (left := epochs % every):
        print_rank_zero(
            f"The last {left} of {epochs} epochs will not be validated, so none of them can be best.ckpt: change "
            f"--trainer.check_val_every_n_epoch {every} or --trainer.max_epochs"
        )
    if cli.trainer.auto_precision:
        print_rank_zero(f"Precision {cli.trainer.auto_precision}")


def _exit_other_ranks() -> None:
    """End all processes except rank 0 with exit code 0, because Lightning kills rank 0 when another fails."""
    if not is_rank_zero():
        sys.exit(0)


@rank_zero_only
def _print_how_to_resume(cli: FitCLI, what: str = "Stopped.", options: Sequence[str] = ()) -> None:
    last = _saved(cli.last)
    if not last:
        print_rank_zero(f"{what[:-1]} before anything was saved.")
        return
    config = next(callback for callback in callbacks_of(cli.trainer) if isinstance(callback, SaveConfig)).path
    words = [*command_words("fit"), "--config", relative_path(config), "--ckpt_path", last, *options]
    print_rank_zero(f"{what} To resume from the last checkpoint, run\n{shlex.join(words)}")


def _saved(checkpoint: BestCheckpoint | LastCheckpoint | None) -> str:
    """The file of a checkpoint, "" if it does not exist yet."""
    return relative_path(checkpoint.path) if checkpoint and checkpoint.path.is_file() else ""
