"""FitCLI: the folder, the loggers and the callbacks of a run that is trained."""

from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from cnn_lightning.callbacks import (
    BestCheckpoint,
    KeepLogits,
    LastCheckpoint,
    LayerTable,
    Overview,
    Pictures,
    SaveCalibration,
    SaveConfig,
)
from cnn_lightning.callbacks.curves import CurvesLogger, RateMonitor
from cnn_lightning.checkpointing.settings import RESUME_KEY, check_resumable, epoch_of, run_of
from cnn_lightning.cli.class_names import find_class
from cnn_lightning.cli.classifier_cli import ClassifierCLI, build_data, progress_bar
from cnn_lightning.cli.loggers import check_new, first_new_step, resume_loggers
from cnn_lightning.cli.named_classes import given_arguments
from cnn_lightning.cli.run_folders import (
    class_label,
    dataset_label,
    make_run,
    newest_last,
    next_name,
    remove_if_empty,
)
from cnn_lightning.cli.terminal import is_rank_zero
from cnn_lightning.cli.unsupported import check_callbacks, check_training
from cnn_lightning.data.default import MNISTOrDigits
from cnn_lightning.errors import UsageError
from cnn_lightning.lightning_fixes import NoProfiler, callbacks_of
from cnn_lightning.reporting.calibration import RISK, load_calibration


class FitCLI(ClassifierCLI):
    """Builds a new run, or one that is resumed.

    Attributes:
        best: Keeps the best checkpoint; None where checkpoints are switched off.
        last: Keeps the last checkpoint; None likewise.
        run: The folder of the run, wherever loggers of the user's write; None where nothing is saved.
        resumes: Whether that run exists already.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.best: BestCheckpoint | None = None
        self.last: LastCheckpoint | None = None
        self.run: Path | None = None
        self.resumes = False
        super().__init__(args, "Train a network, keep its best and its last checkpoint, and test one.", SaveConfig)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of training."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Resume from this checkpoint; 'last' is that of the newest run of this network on this dataset, and "
            "starts a new run if there is no run.",
        )

    def find_checkpoint(self, config: Any) -> Path | None:
        """Return the checkpoint that was named, or the last one of the newest run of this kind."""
        if config.ckpt_path != "last":
            return config.ckpt_path and Path(config.ckpt_path)
        net, data = (find_class(option, config[option].class_path) for option in ("model.net", "data"))
        datasets = [class_label(data)] if data else []
        if data is MNISTOrDigits:
            datasets = ["MNIST", "Digits"]
        elif isinstance(getattr(data, "name", None), property):
            with suppress(ArgumentError, UsageError):  # parsing all options reports it
                spec = {"class_path": config.data.class_path, "init_args": given_arguments(self.args, "data")}
                datasets = [dataset_label(build_data(spec))]
        root = Path(config.trainer.default_root_dir)
        return newest_last([root / f"{class_label(net)}-{name}" for name in datasets]) if net else None

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be trained."""
        check_training(self.config.trainer)
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with the folder of the run and the callbacks."""
        settings = self.config_init.trainer
        saved = self.checkpoint.get(RESUME_KEY, {}).get("precision")
        if settings.precision == "auto" and saved:
            settings.precision = saved  # another machine may choose another one
        check_callbacks(settings.callbacks or [])
        if self.ckpt_path is not None:
            self.resumes = run_of(self.ckpt_path) is not None
            seed = self.config.seed_everything
            check_resumable(self.checkpoint, self.ckpt_path, self.model, self.datamodule, seed)
            epoch = epoch_of(self.checkpoint)
            if settings.max_epochs is not None and 0 <= settings.max_epochs < epoch:
                raise UsageError(
                    f"{self.ckpt_path} is of epoch {epoch}, and max_epochs is {settings.max_epochs}: change "
                    "--trainer.max_epochs"
                )
        if not settings.fast_dev_run:
            self.run = self._find_run(Path(settings.default_root_dir))
            settings.default_root_dir = str(self.run)  # Lightning saves there before it requeues a SLURM job
            if settings.enable_checkpointing is not False:
                self.best = BestCheckpoint(self.run / "checkpoints")
                self.last = LastCheckpoint(self.best, self.config_init.save_every_n_steps)
            if settings.logger in (None, True):
                step = first_new_step(self.checkpoint) if self.checkpoint else None
                *root, name, version = self.run.parts
                settings.logger = CurvesLogger(Path(*root), name, version, default_hp_metric=False, purge_step=step)
            elif settings.logger and self.resumes:
                settings.logger = resume_loggers(settings.logger, self.config.trainer.logger, self.checkpoint)
        self.trainer_defaults["callbacks"] = self.callbacks(settings)
        if settings.profiler is None:
            settings.profiler = NoProfiler()
        try:
            trainer = super().instantiate_trainer(**kwargs)
            if trainer.world_size == 1 and not is_rank_zero():
                raise UsageError(
                    "this process is not the first by LOCAL_RANK, RANK or SLURM_PROCID, but --trainer.devices starts "
                    "only one: unset the variable, or set --trainer.devices and --trainer.strategy"
                )
            if not self.resumes:
                check_new(trainer.loggers)
        except BaseException:
            if self.run is not None:
                remove_if_empty(self.run, *self.run.parents[:2])
            raise
        # Pictures first: they draw before WeightAveraging puts the training weights back.
        callbacks_of(trainer).sort(key=lambda callback: not isinstance(callback, Pictures))
        return trainer

    def checkpoint_to_test(self) -> Path | None:
        """Return the checkpoint of the epoch that is to be tested; None where none was saved."""
        if not self.best or not self.last:
            return None
        path = self.last.path if self.config.test == "last" else self.best.path
        return path if path.exists() else None

    def callbacks(self, settings: Any) -> list[Callback]:
        """Return the callbacks of a run, besides those of the model, of the user, and SaveConfig."""
        callbacks: list[Callback] = []
        if self.best and self.last:
            kept = KeepLogits()
            risk = self.config_init.risk or load_calibration(self.best.path).risk or RISK  # that of a resumed run
            callbacks += [kept, self.best, SaveCalibration(self.best, kept, risk), self.last]
        if settings.enable_model_summary is not False:
            callbacks.append(LayerTable())
        callbacks += progress_bar(settings)
        if settings.logger is not False and not settings.fast_dev_run:
            callbacks.append(RateMonitor())
            if self.config_init.dashboard:
                callbacks += [Overview(), Pictures()]
        return callbacks

    def _find_run(self, root: Path) -> Path:
        """Return the folder of the resumed run, or make that of a new one."""
        if self.ckpt_path is not None and (run := run_of(self.ckpt_path)):
            return run
        folder = root / f"{class_label(type(self.model.net))}-{dataset_label(self.datamodule)}"
        if is_rank_zero():
            return make_run(folder)
        return folder / next_name(folder, "version")  # a guess: trainer.log_dir is broadcast from rank 0
