"""From command-line arguments to model, dataset and Trainer: what fit, evaluate, predict and draw share."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cnn_lightning.callbacks import EpochLines, ProgressBar, can_draw
from cnn_lightning.checkpointing import settings as saved_settings
from cnn_lightning.checkpointing.checkpoint_io import CheckedCheckpointIO
from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
from cnn_lightning.classifier import MODEL_CLASSES, ImageClassifier
from cnn_lightning.cli.class_names import check_constructors
from cnn_lightning.cli.config_files import StepwiseParser, check_config_files, class_name, parse
from cnn_lightning.cli.hardware import AutoTrainer, choose_threads
from cnn_lightning.cli.named_classes import given_texts
from cnn_lightning.cli.option_names import trainer_options
from cnn_lightning.cli.sizes import adopt_sizes, check_sizes
from cnn_lightning.cli.terminal import is_rank_zero, print_rank_zero, relative_path
from cnn_lightning.cli.unsupported import check_root, check_trainer
from cnn_lightning.data.default import MNISTOrDigits
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import name_of
from cnn_lightning.lightning_fixes import keep_integers_integers, keyboard_interrupt, remove_weight_averaging

# Used where neither a recipe nor the command line says otherwise.
DEFAULTS = {
    "seed_everything": 0,
    "trainer.max_epochs": 5,
    "trainer.default_root_dir": "logs",
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
}
CLASS_DEFAULTS: dict[str, Any] = {
    "model.net": {"class_path": "TwoLayerCNN"},
    "model.optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.005}},
    "model.lr_schedule": {"class_path": "OneCycle"},
    "data": {"class_path": "MNISTOrDigits"},
}


class ClassifierCLI(LightningCLI):
    """Builds ``model``, ``datamodule`` and ``trainer`` from command-line arguments.

    Args:
        args: Command-line arguments.
        description: What the command does, for ``--help``.
        save_config: Callback that saves the settings of a run.

    Attributes:
        ckpt_path: The checkpoint to start from; None for none.
        checkpoint: Its content, empty for none.
        saved_at: When it was saved, in nanoseconds.

    Raises:
        UsageError: A setting is invalid.
    """

    model: ImageClassifier
    datamodule: Any  # a LightningDataModule
    trainer: AutoTrainer

    def __init__(
        self, args: Sequence[str], description: str, save_config: type[SaveConfigCallback] | None = None
    ) -> None:
        self.ckpt_path: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.saved_at = 0
        self.args = list(args)
        check_config_files(args)
        keep_integers_integers()
        super().__init__(
            ImageClassifier,
            LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=save_config,
            trainer_class=AutoTrainer,
            parser_class=StepwiseParser,
            parser_kwargs={"description": description},
            args=self.args,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults, and add the options that every configuration has."""
        parser.set_defaults(DEFAULTS | CLASS_DEFAULTS)
        parser.add_argument(
            "--dashboard",
            type=bool,
            default=True,
            help="In training, also fill TensorBoard with pictures, graph, settings and precision-recall curves.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=PositiveInt | None,
            help="In training, also save the last checkpoint every so many optimizer steps, not only after an epoch.",
        )
        parser.add_argument(
            "--test",
            type=Literal["best", "last"],
            default="best",
            help="In training, the epoch that is tested in the end: that of the lowest val/loss, or the last.",
        )
        parser.add_argument(
            "--risk",
            type=float | None,
            help="Share of wrong answers among those given, which sets the threshold below which an answer is unsure. "
            "Default: 0.001; in evaluate.py, that of the checkpoint's calibration.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse so that each class that is named uses its own defaults, or those of the checkpoint to start from."""
        assert isinstance(parser, StepwiseParser)
        self.config = parse(parser, self.args, CLASS_DEFAULTS, self._checkpoint_settings)
        seed, optimizer = self.config.seed_everything, self.config.model.optimizer
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UsageError(f"seed_everything is {seed}, expected 0 to 4294967295: change --seed_everything")
        if self.config.risk is not None and not 0 < self.config.risk < 1:
            raise UsageError(f"risk is {self.config.risk}, expected more than 0 and less than 1: change --risk")
        if optimizer.get("init_args", {}).get("lr", 0.0) is None:
            raise UsageError("lr is null, expected a number: change --model.optimizer.lr")

    def _checkpoint_settings(self, config: Any) -> dict[str, Any]:
        """Read the checkpoint to start from; return its settings of network and dataset, which are the defaults."""
        self.ckpt_path = self.find_checkpoint(config)
        if self.ckpt_path is None:
            return {}
        self.saved_at = self.ckpt_path.stat().st_mtime_ns if self.ckpt_path.exists() else 0
        self.checkpoint = read_run_checkpoint(self.ckpt_path)
        classes, trusted = (*MODEL_CLASSES, LightningDataModule), given_texts(self.args)
        return saved_settings.settings_in(self.checkpoint, self.ckpt_path, classes, trusted)

    def find_checkpoint(self, config: Any) -> Path | None:
        """Return the checkpoint to start from, whose network and dataset are the defaults; None for none."""
        raise NotImplementedError

    def before_instantiate_classes(self) -> None:
        """Choose the dataset if none was named."""
        data = self.config.data
        check_root(class_name(data), data.get("init_args", {}).get("root"))
        if class_name(data) != MNISTOrDigits.__name__:
            return
        cls, reason = MNISTOrDigits.choose(**data.init_args)
        data.class_path = f"cnn_lightning.data.{cls.__name__}"
        if reason and is_rank_zero():
            print(
                f"warning: using Digits, the digits that come with scikit-learn, because no dataset was named and "
                f"{reason}. Choose with --data MNIST, --data FashionMNIST or --data Digits.",
                file=sys.stderr,
            )

    def instantiate_classes(self) -> None:
        """Build everything, the dataset first; raise a constructor's error without the wrapping of jsonargparse."""
        try:
            self.datamodule = build_data(self.config.data)
            if self.ckpt_path is None:
                adopt_sizes(self.config.model.net, self.datamodule, self.args)
            self.config_init = self.parser.instantiate_classes(self.config.clone().update(self.datamodule, "data"))
            self.model = self.config_init.model
            self.trainer = self.instantiate_trainer()
        except ValueError as error:
            if not isinstance(error, UsageError):
                check_constructors(self.config)
            cause = error.__cause__
            if cause is None or not str(error).startswith("Does not validate against any of the Union subtypes"):
                raise
            raise cause from cause.__cause__

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the Trainer, after model and dataset.

        Raises:
            UsageError: An option of the Trainer is invalid, or model, dataset and checkpoint do not fit together.
        """
        self._check_settings()
        loaded = {}
        if self.ckpt_path is not None:
            saved_settings.check_weights(self.checkpoint, self.ckpt_path, self.model)
            loaded[self.ckpt_path] = self.checkpoint
        plugins = self.config_init.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        self.config_init.trainer.plugins = [*plugins, CheckedCheckpointIO(loaded)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
            raise UsageError(f"{error} Change {trainer_options(str(error))}.") from error
        if trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1:
            choose_threads()
        return trainer

    def test(self, checkpoint: Path | None) -> bool:
        """Test a checkpoint, or the last weights, on the official test set, and print the result.

        Returns:
            Whether there was anything to test.
        """
        data, trainer = self.datamodule, self.trainer
        if trainer.limit_test_batches == 0:
            print_rank_zero("Not tested, because --trainer.limit_test_batches is 0.")
            return False
        remove_weight_averaging(trainer)
        with keyboard_interrupt(trainer):
            (metrics,) = trainer.test(self.model, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
        accuracy, total = metrics["test/acc"], int(self.model.test_metrics.total)
        what = relative_path(checkpoint) if checkpoint else "the last weights"
        print_rank_zero(f"\nTest of {what} on the test images of {name_of(data)}")
        print_rank_zero(f"accuracy    {accuracy:.2%} ({round(accuracy * total):,}/{total:,})")
        print_rank_zero(f"loss        {metrics['test/loss']:.4f}")
        return True

    def _check_settings(self) -> None:
        """Check combinations that no part can check alone."""
        check_trainer(self.config_init.trainer)
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            value = self.config_init.trainer[name]
            if isinstance(value, int | float) and value <= 0:
                raise UsageError(f"{name} is {value}, expected more than 0: change --trainer.{name}")
        if self.model.compile_mode not in (None, "default") and self.config_init.trainer.accumulate_grad_batches > 1:
            # CUDA graphs overwrite the gradients that are to be accumulated (PyTorch issue 169545).
            raise UsageError(
                f"compile_mode {self.model.compile_mode} does not work with --trainer.accumulate_grad_batches: "
                "change --model.compile_mode to default"
            )
        check_sizes(self.model.net, self.datamodule)


def build_data(spec: Namespace | Mapping[str, Any]) -> LightningDataModule:
    """Build a data module from its class_path and init_args, and have checkpoints describe it.

    A data module of the user's may not call ``save_hyperparameters`` itself.
    """
    parser = LightningArgumentParser(add_help=False, exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = parser.parse_object({"data": spec})
    data = parser.instantiate_classes(config).data
    settings = yaml.safe_load(parser.dump(config, skip_none=False))["data"]
    data.save_hyperparameters({"_class_path": settings["class_path"], **settings.get("init_args", {})})
    return data


def progress_bar(settings: Any) -> list[Callback]:
    """Return our progress bar, or lines where no bar can be drawn, unless the user chose another bar or none."""
    chosen = any(isinstance(callback, AnyProgressBar) for callback in settings.callbacks or [])
    if chosen or settings.enable_progress_bar is False:
        return []
    return [ProgressBar() if settings.enable_progress_bar or can_draw() else EpochLines()]
