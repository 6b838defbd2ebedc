"""``scripts/fit.py``: train a network, keep its best and its last checkpoint, and test the best."""

import re
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    LayerTable,
    Overview,
    Pictures,
    SaveConfig,
    Stopped,
)
from cnn_lightning.callbacks.curves import CurvesLogger
from cnn_lightning.checkpointing.settings import check_resumable, epoch_of, run_of
from cnn_lightning.cli.classifier_cli import ClassifierCLI, progress_bar
from cnn_lightning.cli.config_files import class_name
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.run_folders import make_run, newest_last, next_name, remove_if_empty, run_lock
from cnn_lightning.cli.terminal import command_words, device_name, is_rank_zero, print_rank_zero, program, relative_path
from cnn_lightning.data.default import MNISTOrDigits
from cnn_lightning.errors import DivergedError, UsageError
from cnn_lightning.lightning_fixes import NoProfiler, callbacks_of, keyboard_interrupt

# What Lightning and PyTorch notice only while they train, and what to do about it.
_LATE_ERRORS = {
    "Expected more than 1 value per channel": ": change --data.batch_size, or set --data.drop_last true",
    "val_check_interval": "",
    "Early stopping conditioned": "",
    "dense gradients": "",
}


class FitCLI(ClassifierCLI):
    """Builds a new run, or one that is resumed.

    Attributes:
        best: Keeps the best checkpoint; None where checkpoints are switched off.
        last: Keeps the last checkpoint; None likewise.
        run: The folder of the run; None where nothing is saved, or where the user's logger has its own.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.best: BestCheckpoint | None = None
        self.last: LastCheckpoint | None = None
        self.run: Path | None = None
        super().__init__(args, "Train a network, keep its best and its last checkpoint, and test the best.", SaveConfig)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of training."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Resume from this checkpoint; 'last' is that of the newest run of this network on this dataset, and "
            "starts a new run where there is none.",
        )

    def find_checkpoint(self, config: Any) -> Path | None:
        """Return the checkpoint that was named, or the last one of the newest run of this kind."""
        if config.ckpt_path != "last":
            return config.ckpt_path and Path(config.ckpt_path)
        data = class_name(config.data)
        datasets = ("MNIST", "Digits") if data == MNISTOrDigits.__name__ else (data,)
        root = Path(config.trainer.default_root_dir)
        return newest_last([root / f"{class_name(config.model.net)}-{name}" for name in datasets])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with the folder of the run and the callbacks."""
        settings = self.config_init.trainer
        if self.ckpt_path is not None:
            seed = self.config.seed_everything
            check_resumable(self.checkpoint, self.ckpt_path, self.model, self.datamodule, seed)
            epoch = epoch_of(self.checkpoint)
            if settings.max_epochs is not None and 0 <= settings.max_epochs < epoch:
                raise UsageError(
                    f"{self.ckpt_path} is of epoch {epoch}, and max_epochs is {settings.max_epochs}: change "
                    "--trainer.max_epochs"
                )
        if settings.enable_checkpointing is not False and not settings.fast_dev_run:
            self.best = BestCheckpoint()
            self.last = LastCheckpoint(self.best, self.config_init.save_every_n_steps)
        self.trainer_defaults["callbacks"] = self.callbacks(settings)
        if settings.profiler is None:
            settings.profiler = NoProfiler()
        if settings.logger in (None, True, False) and not settings.fast_dev_run:
            self.run = self._find_run(Path(settings.default_root_dir))
            settings.default_root_dir = str(self.run)  # Lightning saves there before it requeues a SLURM job
            if settings.logger is not False:
                # purge_step hides the points that an interrupted run drew after its checkpoint.
                step = self.checkpoint["global_step"] + 1 if self.checkpoint else None
                *root, name, version = self.run.parts
                settings.logger = CurvesLogger(Path(*root), name, version, default_hp_metric=False, purge_step=step)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except BaseException:
            if self.run is not None:
                remove_if_empty(self.run, *self.run.parents[:2])
            raise
        # Pictures first: they draw before WeightAveraging puts the training weights back.
        callbacks_of(trainer).sort(key=lambda callback: not isinstance(callback, Pictures))
        return trainer

    def callbacks(self, settings: Any) -> list[Callback]:
        """Return the callbacks of a run, besides those of the model, of the user, and SaveConfig."""
        callbacks: list[Callback] = [callback for callback in (self.best, self.last) if callback]
        if settings.enable_model_summary is not False:
            callbacks.append(LayerTable())
        callbacks += progress_bar(settings)
        if settings.logger is not False and not settings.fast_dev_run:
            callbacks.append(LearningRateMonitor())
            if self.config_init.dashboard:
                callbacks += [Overview(), Pictures()]
        return callbacks

    def _find_run(self, root: Path) -> Path:
        """Return the folder of the resumed run, or make that of a new one."""
        if self.ckpt_path is not None and (run := run_of(self.ckpt_path)):
            return run
        folder = root / f"{type(self.model.net).__name__}-{type(self.datamodule).__name__}"
        if is_rank_zero():
            return make_run(folder)
        return folder / next_name(folder, "version")  # a guess: trainer.log_dir is broadcast from rank 0


@command
def fit(args: Sequence[str]) -> None:
    """Train a network, keep its best and its last checkpoint, and test the best.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    cli = FitCLI(args)
    with run_lock(cli.run) if cli.run and is_rank_zero() else nullcontext():
        train(cli)
        best = Path(cli.best.best_model_path) if cli.best and cli.best.best_model_path else None
        cli.test(best)
    trainer = cli.trainer
    if not cli.config.trainer.fast_dev_run:
        print_rank_zero(f"run         {relative_path(str(trainer.log_dir))}")
    if best:
        print_rank_zero(f"checkpoint  {relative_path(best)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        words = [program("tensorboard"), "--logdir", relative_path(trainer.logger.save_dir)]
        print_rank_zero(f"curves      {shlex.join(words)}")


def train(cli: FitCLI) -> None:
    """Train, and turn the ways in which training can end into messages and exit codes."""
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    if cli.ckpt_path and cli.ckpt_path.stat().st_mtime_ns != cli.saved_at:
        raise UsageError(f"{cli.ckpt_path} changed while this command started; run the command again")
    # Dataset and network are prepared before Lightning starts, so that a mistake leaves no empty run.
    data.prepare_data()
    data.setup("fit")
    if cli.ckpt_path is None:
        model.net.load_pretrained()
    _print_start(cli)
    try:
        with keyboard_interrupt(trainer):
            trainer.fit(model, datamodule=data, ckpt_path=cli.ckpt_path, weights_only=True)
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
            if re.search(message, str(error)):
                raise UsageError(f"{error}{advice}") from error
        raise


def _print_start(cli: FitCLI) -> None:
    data = cli.datamodule
    if cli.ckpt_path:
        step = f"{cli.checkpoint['global_step']:,}"
        print_rank_zero(f"Resuming from {relative_path(cli.ckpt_path)}: epoch {epoch_of(cli.checkpoint)}, step {step}")
    elif cli.config.ckpt_path == "last":
        print_rank_zero("There is no run to resume, or it has no checkpoint yet: starting a new run")
    print_rank_zero(
        f"Training {type(cli.model.net).__name__} on {type(data).__name__}: {data.size('train'):,} training and "
        f"{data.size('val'):,} validation images, seed {cli.config.seed_everything}, device {device_name(cli.trainer)}"
    )


def _exit_other_ranks() -> None:
    """End all processes except rank 0 with exit code 0, because Lightning kills rank 0 when another fails."""
    if not is_rank_zero():
        sys.exit(0)


@rank_zero_only
def _print_how_to_resume(cli: FitCLI) -> None:
    last = _saved(cli.last)
    if not last:
        print_rank_zero("Stopped before anything was saved.")
        return
    config = next(callback for callback in callbacks_of(cli.trainer) if isinstance(callback, SaveConfig)).path
    words = [*command_words("fit"), "--config", relative_path(config), "--ckpt_path", last]
    print_rank_zero(f"Stopped. To resume from the last checkpoint, run\n{shlex.join(words)}")


def _saved(checkpoint: BestCheckpoint | LastCheckpoint | None) -> str:
    """The file of a checkpoint, "" if it does not exist yet."""
    return relative_path(checkpoint.path) if checkpoint and checkpoint.path.is_file() else ""
