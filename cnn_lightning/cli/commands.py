"""The commands: train or test, and say where everything is."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import SaveConfig
from cnn_lightning.cli.builder import ClassifierCLI, EvaluateCLI, FitCLI
from cnn_lightning.errors import UsageError, exit_with

say = rank_zero_only(print)


def command(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str] | None], None]:
    """Make a command of a function: what a user can mend becomes one line and exit code 2."""

    @wraps(function)
    def run(args: Sequence[str] | None = None) -> None:
        _hush()
        try:
            function(list(sys.argv[1:] if args is None else args))
        except (UsageError, MisconfigurationException) as error:
            exit_with(str(error))
        except KeyboardInterrupt:
            say("\nInterrupted.", file=sys.stderr)
            sys.exit(130)

    return run


@command
def fit(args: Sequence[str] | None = None) -> None:
    """Train a network, keep its best and its last checkpoint, and test the best.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    cli = FitCLI(args)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    _prepare(cli, "fit")
    if not trainer.fast_dev_run:
        _make_folder(Path(trainer.log_dir))
    if cli.ckpt_path:
        say(f"Going on from {_shown(cli.ckpt_path)}, after epoch {cli.checkpoint['epoch'] + 1}")
    say(
        f"Training {type(model.net).__name__} on {type(data).__name__}: {data.size('train'):,} training and "
        f"{data.size('val'):,} validation images, seed {cli.config.seed_everything}, device {_device(trainer)}"
    )
    try:
        with _ctrl_c_as_usual(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cli.ckpt_path, weights_only=True)
    except KeyboardInterrupt:
        _say_how_to_go_on(cli)
        sys.exit(130)
    best = Path(cli.best.best_model_path) if cli.best and cli.best.best_model_path else None
    _test(cli, best)
    if not trainer.fast_dev_run:
        say(f"run         {_shown(trainer.log_dir)}")
    if best:
        say(f"checkpoint  {_shown(best)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        say(f"curves      {shlex.join([_program('tensorboard'), '--logdir', _shown(trainer.default_root_dir)])}")


@command
def evaluate(args: Sequence[str] | None = None) -> None:
    """Test a checkpoint on the official test images.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    cli = EvaluateCLI(args)
    _prepare(cli, "test")
    say(f"Testing {type(cli.model.net).__name__} on {type(cli.datamodule).__name__}, device {_device(cli.trainer)}")
    _test(cli, cli.ckpt_path)


@contextmanager
def _ctrl_c_as_usual(trainer: Trainer) -> Iterator[None]:
    """Lightning makes of Ctrl-C, when it has closed everything, an exit with code 1; make it Ctrl-C again."""
    try:
        yield
    except SystemExit as stop:
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise


def _prepare(cli: ClassifierCLI, stage: str) -> None:
    """Have the dataset ready before Lightning asks for it, so that a mistake leaves no empty run behind."""
    if rank_zero_only.rank == 0:
        cli.datamodule.prepare_data()
    cli.datamodule.setup(stage)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): change --trainer.default_root_dir") from error


def _test(cli: ClassifierCLI, checkpoint: Path | None) -> None:
    data, trainer = cli.datamodule, cli.trainer
    if trainer.limit_test_batches == 0:
        say("Not tested, because --trainer.limit_test_batches is 0.")
        return
    with _ctrl_c_as_usual(trainer):
        metrics = trainer.test(cli.model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    total = min(data.size("test"), trainer.num_test_batches[0] * data.batch_size * trainer.world_size)
    correct = round(metrics["test/acc"] * total)
    what = f"{_shown(checkpoint)}" if checkpoint else "the last weights"
    say(f"\nTest of {what} on the test images of {type(data).__name__}")
    say(f"accuracy    {metrics['test/acc']:.2%} ({correct:,}/{total:,})\nloss        {metrics['test/loss']:.4f}")


def _say_how_to_go_on(cli: FitCLI) -> None:
    last = cli.last.best_model_path if cli.last else None
    if not last:
        say("Stopped before the end of the first epoch: there is no checkpoint to go on from.")
        return
    config = next(c for c in cli.trainer.callbacks if isinstance(c, SaveConfig)).path
    say("Stopped. Go on from the end of the last whole epoch with")
    words = [_program("python"), _shown(sys.argv[0]), "--config", _shown(config), "--ckpt_path", _shown(last)]
    say(shlex.join(words))


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: f"{torch.get_num_threads()} threads"}
    name = f" ({names[device.type](device)})" if device.type in names else ""
    return f"{device}{name}" + (f", {trainer.world_size} processes" if trainer.world_size > 1 else "")


def _program(name: str) -> str:
    """A program of this Python's environment, as it can be typed here."""
    return _shown(Path(sys.executable).with_name(name))


def _shown(path: str | Path) -> str:
    """A path as short as it can be typed here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _hush() -> None:
    """Silence what users can do nothing about, what is not so here, and what the commands say themselves."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls that lightning 2.6 makes
    for message in (
        "`isinstance.treespec, LeafSpec.` is deprecated",  # another of these calls
        "Checkpoint directory .* exists and is not empty",  # a run goes on
        "The number of training batches .* is smaller",  # every epoch ends with a point of the curves
        "You requested to overfit but enabled",  # it is not shuffled then
        "Precision .* is not supported by the model summary",  # LayerTable shows no sizes in MB
        "Be aware that when using `ckpt_path`, callbacks",  # evaluate needs no callbacks of fit
    ):
        warnings.filterwarnings("ignore", message=message)
    noise = (
        "GPU avail", "TPU avail", "💡", "Seed set", "Restor", "Loaded model", "Loading `train", "Trainer already",
        "Using bfloat16", "`Trainer.fit` stopped: `max_epochs",
    )  # fmt: skip
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(lambda record: not record.getMessage().startswith(noise))
