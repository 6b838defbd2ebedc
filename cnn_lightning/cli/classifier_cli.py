"""From command-line arguments to network, dataset and trainer."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.callbacks import (
    BestCheckpoint,
    KeepScores,
    LastCheckpoint,
    LayerTable,
    Overview,
    Pictures,
    ProgressBar,
    SaveConfig,
)
from cnn_lightning.checkpointing.checkpoint_io import CheckedCheckpointIO
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.cli import run_folders as runs
from cnn_lightning.cli.exit_codes import ctrl_c_as_usual
from cnn_lightning.cli.parser import OneLineParser, check_config_files, class_name, drop_other_classes
from cnn_lightning.cli.terminal import print_rank_zero, relative_path
from cnn_lightning.data import ImageDataModule
from cnn_lightning.data.default import MNISTOrDigits
from cnn_lightning.errors import UsageError

# What holds where neither a recipe nor the command line says otherwise.
DEFAULTS = {
    "seed_everything": 0,
    "trainer.max_epochs": 5,
    "trainer.default_root_dir": "logs",
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
}
CLASS_DEFAULTS = {
    "model.net": {"class_path": "TwoLayerCNN"},
    "model.optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.005}},
    "model.lr_schedule": {"class_path": "OneCycle"},
    "data": {"class_path": "MNISTOrDigits"},
}


class ClassifierCLI(LightningCLI):
    """Builds ``model``, ``datamodule`` and ``trainer`` from what the user typed.

    Args:
        args: Command-line arguments.
        description: What the command does, for ``--help``.
        save_config: Callback that saves the settings of a run.

    Attributes:
        ckpt_path: The checkpoint to start from, None for none.
        checkpoint: Its content, empty for none.
        saved_at: When that was saved, in nanoseconds.

    Raises:
        UsageError: A setting is not possible.
    """

    def __init__(
        self, args: Sequence[str], description: str, save_config: type[SaveConfigCallback] | None = None
    ) -> None:
        self.ckpt_path: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        OneLineParser.command_line = args
        check_config_files(args)
        try:
            super().__init__(
                ImageClassifier,
                ImageDataModule,
                subclass_mode_data=True,
                save_config_callback=save_config,
                parser_class=OneLineParser,
                parser_kwargs={"description": description},
                args=args,
                run=False,
                auto_configure_optimizers=False,
            )
        except MisconfigurationException as error:
            raise UsageError(f"{error} Change the options of --trainer.") from error
        except UsageError:
            raise
        except Exception as error:
            # Nothing has been done yet but building what was asked for, and each part says in its own way, with
            # many kinds of exceptions, what it cannot be. jsonargparse wraps some of them.
            raise (error.__context__ if isinstance(error.__context__, UsageError) else UsageError(error)) from error

    def add_arguments_to_parser(self, parser: OneLineParser) -> None:
        """Set the defaults, and add what stands in every configuration."""
        parser.set_defaults(DEFAULTS | CLASS_DEFAULTS)
        parser.add_argument(
            "--dashboard",
            type=bool,
            default=True,
            help="In training, fill TensorBoard with pictures, graph, settings and precision-recall curves, too.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            help="In training, save the last checkpoint also every so many optimizer steps, not only after an epoch.",
        )

    def parse_arguments(self, parser: OneLineParser, args: Sequence[str]) -> None:
        """Parse twice: first to learn which classes are chosen, then with their settings as the defaults.

        Else jsonargparse hands the settings of a class on to the class that takes its place: SGD would have the
        weight_decay of AdamW. Where there is a checkpoint, what it says of network and dataset are the defaults.
        """
        first = parser.parse_args([arg for arg in args if not arg.startswith("--print_config")])
        chosen = {option: first[option] for option in CLASS_DEFAULTS if first[option] is not None}
        names = {option: class_name(spec) for option, spec in chosen.items()}
        defaults = {
            option: {"class_path": spec.class_path}
            for option, spec in chosen.items()
            if names[option] != class_name(CLASS_DEFAULTS[option])
        }
        self.ckpt_path = self.find_checkpoint(first)
        if self.ckpt_path is not None:
            self.saved_at = self.ckpt_path.stat().st_mtime_ns if self.ckpt_path.exists() else 0
            self.checkpoint = runs.read_checkpoint(self.ckpt_path)
            defaults |= runs.settings_in(self.checkpoint, self.ckpt_path)
        parser.set_defaults(defaults)
        self.config = parser.parse_args(drop_other_classes(args, names))

    def find_checkpoint(self, config: Any) -> Path | None:
        """The checkpoint to start from, whose network and dataset are the defaults; None for none."""
        raise NotImplementedError

    def before_instantiate_classes(self) -> None:
        """Choose the dataset if none was named."""
        data = self.config.data
        if class_name(data) != MNISTOrDigits.__name__:
            return
        cls, reason = MNISTOrDigits.choose(**data.init_args)
        data.class_path = f"cnn_lightning.data.{cls.__name__}"
        if reason and rank_zero_only.rank == 0:
            print(
                f"warning: using Digits, the digits that come with scikit-learn, because no dataset was named and "
                f"{reason}. Choose with --data MNIST, --data FashionMNIST or --data Digits.",
                file=sys.stderr,
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; network and dataset are there already."""
        self._check_settings()
        if self.ckpt_path is not None:
            runs.check_fits(self.checkpoint, self.ckpt_path, self.model)
        plugins = self.config_init.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        self.config_init.trainer.plugins = [*plugins, CheckedCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _check_settings(self) -> None:
        """Refuse what neither Lightning nor a network or dataset alone would notice before training."""
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            value = self.config_init.trainer[name]
            if isinstance(value, int | float) and value <= 0:
                raise UsageError(f"{name} is {value}, expected more than 0: change --trainer.{name}")
        every = self.config_init.save_every_n_steps
        if every is not None and every < 1:
            raise UsageError(f"save_every_n_steps is {every}, expected at least 1: change --save_every_n_steps")
        if self.model.compile_mode not in (None, "default") and self.config_init.trainer.accumulate_grad_batches > 1:
            # CUDA graphs write the next gradients over those that are to be added to (PyTorch issue 169545).
            raise UsageError(
                f"compile_mode {self.model.compile_mode} does not go with --trainer.accumulate_grad_batches: "
                "change --model.compile_mode to default"
            )
        net, data = self.model.net, self.datamodule
        for name in ("in_channels", "num_classes", "image_size"):
            if getattr(net, name) != getattr(data, name):
                raise UsageError(
                    f"{name} is {getattr(net, name)} in {type(net).__name__} but {getattr(data, name)} in "
                    f"{type(data).__name__}: change --model.net.{name}"
                )


class FitCLI(ClassifierCLI):
    """Builds a new run, or goes on with one.

    Attributes:
        best: Keeps the best checkpoint; None where checkpoints are switched off.
        last: Keeps the last checkpoint; None likewise.
        run: The folder of the run; None where nothing is saved, or where a logger of the user's has its own.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.best: BestCheckpoint | None = None
        self.last: LastCheckpoint | None = None
        self.run: Path | None = None
        super().__init__(args, "Train a network, keep its best and its last checkpoint, and test the best.", SaveConfig)

    def add_arguments_to_parser(self, parser: OneLineParser) -> None:
        """Add what only training needs."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Go on from this checkpoint; 'last' is that of the newest run of this network on this dataset, and "
            "starts a new run where there is none.",
        )

    def find_checkpoint(self, config: Any) -> Path | None:
        """The checkpoint that was named, or the last one of the newest run of this kind."""
        if config.ckpt_path != "last":
            return config.ckpt_path and Path(config.ckpt_path)
        data = class_name(config.data)
        datasets = ("MNIST", "Digits") if data == MNISTOrDigits.__name__ else (data,)
        root = Path(config.trainer.default_root_dir)
        return runs.last_checkpoint([root / f"{class_name(config.model.net)}-{name}" for name in datasets])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with the folder of the run and what is watched and saved."""
        settings = self.config_init.trainer
        if self.ckpt_path is not None:
            seed = self.config.seed_everything
            runs.check_goes_on(self.checkpoint, self.ckpt_path, self.model, self.datamodule, seed)
            epoch = runs.epoch_of(self.checkpoint)
            if settings.max_epochs is not None and 0 <= settings.max_epochs < epoch:
                raise UsageError(
                    f"{self.ckpt_path} is of epoch {epoch}, and max_epochs is {settings.max_epochs}: change "
                    "--trainer.max_epochs"
                )
        if settings.enable_checkpointing is not False and not settings.fast_dev_run:
            self.best, self.last = BestCheckpoint(), LastCheckpoint(self.config_init.save_every_n_steps)
        if settings.profiler is None:
            settings.profiler = _NoProfiler()
        self.trainer_defaults["callbacks"] = self._callbacks(settings)
        if settings.logger in (None, True, False) and not settings.fast_dev_run:
            self.run = self._find_run(Path(settings.default_root_dir))
            # Here Lightning saves the checkpoints with which it puts jobs of SLURM into the queue again.
            settings.default_root_dir = str(self.run)
            if settings.logger is not False:
                # purge_step hides the points that an interrupted run drew after its checkpoint.
                step = self.checkpoint["global_step"] + 1 if self.checkpoint else None
                *root, name, version = self.run.parts
                settings.logger = _Curves(Path(*root), name, version, default_hp_metric=False, purge_step=step)
        try:
            trainer = super().instantiate_trainer(**kwargs)
            # They draw the averaged weights, if another callback averages them, and it takes these off again.
            trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Pictures))
            return trainer
        except BaseException:
            if self.run is not None:
                runs.remove_if_empty(self.run, *self.run.parents[:2])
            raise

    def _find_run(self, root: Path) -> Path:
        """The folder of the run that goes on, or of a new one."""
        if self.ckpt_path is not None and (run := runs.run_of(self.ckpt_path)):
            return run
        folder = root / f"{type(self.model.net).__name__}-{type(self.datamodule).__name__}"
        if rank_zero_only.rank == 0:
            return runs.make_run(folder)
        return folder / runs.next_number(folder, "version")  # asked for its name, a process asks the first

    def _callbacks(self, settings: Any) -> list[Callback]:
        callbacks = [callback for callback in (self.best, self.last) if callback]
        if settings.enable_model_summary is not False:
            callbacks.append(LayerTable())
        callbacks += _progress_bar(settings)
        if settings.logger is not False and not settings.fast_dev_run:
            callbacks.append(LearningRateMonitor())
            if self.config_init.dashboard:
                callbacks += [Overview(), Pictures()]
        return callbacks


class TrainedCLI(ClassifierCLI):
    """Builds network and dataset as a checkpoint describes them; the command line may change them."""

    def named_checkpoint(self, config: Any) -> str | None:
        """The checkpoint that the user named."""
        raise NotImplementedError

    def find_checkpoint(self, config: Any) -> Path:
        """The checkpoint that was named, or the best of the newest run."""
        if name := self.named_checkpoint(config):
            return Path(name)
        return runs.newest_checkpoint(Path(config.trainer.default_root_dir).glob("*-*"))

    def instantiate_trainer(self, callbacks: Sequence[Callback] = (), **kwargs: Any) -> Trainer:
        """Make a trainer that writes nothing, with one process, which sees all images in their order."""
        settings = self.config_init.trainer
        settings.devices, settings.num_nodes, settings.strategy = 1, 1, "auto"
        # What a configuration says of training is not wanted here.
        settings.callbacks = [callback for callback in settings.callbacks or [] if isinstance(callback, AnyProgressBar)]
        self.trainer_defaults["callbacks"] = [*callbacks, *_progress_bar(settings)]
        return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)


class EvaluateCLI(TrainedCLI):
    """Builds what tests a checkpoint.

    Args:
        args: Command-line arguments.
        index: Which of the checkpoints that are named.

    Attributes:
        scores: Keeps what the network gives for the test images.
    """

    def __init__(self, args: Sequence[str], index: int = 0) -> None:
        self.index = index
        self.scores = KeepScores()
        super().__init__(args, "Test checkpoints on the official test images of their dataset, and write a report.")

    def add_arguments_to_parser(self, parser: OneLineParser) -> None:
        """Add what only evaluation needs."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "ckpt_path",
            nargs="*",
            help="The checkpoint, or several to be compared and averaged; without any, the best of the newest run.",
        )
        parser.add_argument(
            "--report",
            type=bool | str,
            default=True,
            help="A new folder for the report, or false for none. Default: report_N in the folder of the run.",
        )
        parser.add_argument(
            "--shift",
            type=int | None,
            help="Measure accuracy also with the test images moved by 1, 2, ... up to so many pixels.",
        )

        parser.add_argument(
            "--tta",
            type=bool,
            default=False,
            help="Test-time augmentation: average the probabilities also over images moved by a pixel in each "
            "direction, and, but for digits, over all of these mirrored.",
        )

    def named_checkpoint(self, config: Any) -> str | None:
        """The one with the number of this CLI."""
        return config.ckpt_path[self.index] if config.ckpt_path else None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a trainer that keeps the scores."""
        return super().instantiate_trainer(callbacks=[self.scores], **kwargs)


class PredictCLI(TrainedCLI):
    """Builds what classifies pictures."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(args, "Classify your own pictures, prepared as the dataset was.")

    def add_arguments_to_parser(self, parser: OneLineParser) -> None:
        """Add what only prediction needs."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("images", nargs="+", help="Pictures, or folders of them.")
        parser.add_argument(
            "--ckpt_path", type=str | None, help="The checkpoint; without it, the best of the newest run."
        )
        parser.add_argument("--csv", type=str | None, help="Write a row for every file to this new file.")
        parser.add_argument(
            "--picture", type=str | None, help="Draw every picture beside what the network saw, to this new file."
        )

    def named_checkpoint(self, config: Any) -> str | None:
        """That of --ckpt_path."""
        return config.ckpt_path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a trainer without a bar, for it takes a moment, that leaves no picture out."""
        settings = self.config_init.trainer
        settings.enable_progress_bar, settings.fast_dev_run, settings.limit_predict_batches = False, False, None
        return super().instantiate_trainer(**kwargs)


def _progress_bar(settings: Any) -> list[Callback]:
    """Our bar, unless there is to be none or another."""
    chosen = any(isinstance(callback, AnyProgressBar) for callback in settings.callbacks or [])
    return [] if chosen or settings.enable_progress_bar is False else [ProgressBar()]


class _Curves(TensorBoardLogger):
    """Draws no curve of the epoch over the steps, which Lightning adds to every value, counted from 0."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class _NoProfiler(PassThroughProfiler):
    """Measures nothing, like Lightning's own, which yet makes a generator 50 times in a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext:
        return self._nothing


def test_checkpoint(cli: ClassifierCLI, checkpoint: Path | None) -> bool:
    """Test a checkpoint, or the last weights, on the official test images, and say how good it is.

    Returns:
        Whether there was anything to test.
    """
    data, trainer = cli.datamodule, cli.trainer
    if trainer.limit_test_batches == 0:
        print_rank_zero("Not tested, because --trainer.limit_test_batches is 0.")
        return False
    # Its work is done, and after it Lightning (2.6.6) would test the weights that were not averaged.
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, WeightAveraging)]
    with ctrl_c_as_usual(trainer):
        metrics = trainer.test(cli.model, datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    total = min(data.size("test"), trainer.num_test_batches[0] * data.batch_size * trainer.world_size)
    correct = round(metrics["test/acc"] * total)
    what = f"{relative_path(checkpoint)}" if checkpoint else "the last weights"
    print_rank_zero(f"\nTest of {what} on the test images of {type(data).__name__}")
    print_rank_zero(
        f"accuracy    {metrics['test/acc']:.2%} ({correct:,}/{total:,})\nloss        {metrics['test/loss']:.4f}"
    )
    return True
