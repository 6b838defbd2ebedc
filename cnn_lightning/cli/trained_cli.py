"""TrainedCLI: what starts from a checkpoint of a run and trains nothing: evaluate, predict, draw and export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar

from cnn_lightning.cli.classifier_cli import ClassifierCLI, progress_bar
from cnn_lightning.cli.run_folders import newest_best
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import name_of
from cnn_lightning.reporting.calibration import Calibration, load_calibration


class TrainedCLI(ClassifierCLI):
    """Builds model and dataset as a checkpoint describes them; the command line may change them.

    Attributes:
        checkpoint_path: The checkpoint.
        calibration: Its calibration, ``UNCALIBRATED`` where it has none.
        extra_callbacks: Callbacks of the Trainer besides the progress bar.
    """

    checkpoint_path: Path
    calibration: Calibration
    extra_callbacks: Sequence[Callback] = ()

    def named_checkpoint(self, config: Any) -> str | None:
        """Return the checkpoint that the user named."""
        raise NotImplementedError

    def find_checkpoint(self, config: Any) -> Path:
        """Return the checkpoint that was named, or the best of the newest run."""
        name = self.named_checkpoint(config)
        self.checkpoint_path = Path(name) if name else newest_best(Path(config.trainer.default_root_dir).glob("*-*"))
        self.calibration = load_calibration(self.checkpoint_path)
        return self.checkpoint_path

    def check_normalize(self) -> None:
        """Raise a UsageError if the data module does not say what its network is given."""
        name = name_of(self.datamodule)
        if not hasattr(self.datamodule, "normalize"):
            raise UsageError(
                f"{name} does not say what its network is given: give the class a method normalize, which turns "
                "(B, C, H, W) uint8 images into the input of the network (docs/data.md)"
            )

    def check_risk(self) -> None:
        """Raise a UsageError if the checkpoint is calibrated for another risk than the user asks for."""
        risk, calibrated = self.config.risk, self.calibration.risk
        if risk not in (None, calibrated):
            now = "not calibrated" if calibrated is None else f"calibrated for a risk of {calibrated:.2%}"
            raise UsageError(f"{self.checkpoint_path} is {now}: run evaluate.py with --risk {risk} first")

    def before_instantiate_classes(self) -> None:
        """Prepare images as in training, where the dataset measures how: the images may be missing here."""
        super().before_instantiate_classes()
        arguments = self.config.data.get("init_args", {})
        for name, value in self.checkpoint.get("dataset", {}).items():
            if name in ("mean", "std", "class_names") and value and arguments.get(name, value) is None:
                arguments[name] = value[0] if name != "class_names" and len(value) == 1 else value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a Trainer that writes nothing, with one process, which sees all images in order."""
        settings = self.config_init.trainer
        settings.devices, settings.num_nodes, settings.strategy = 1, 1, "auto"
        # Callbacks of a configuration concern training.
        chosen = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        settings.callbacks = [callback for callback in chosen if isinstance(callback, AnyProgressBar)]
        self.trainer_defaults["callbacks"] = [*self.extra_callbacks, *progress_bar(settings)]
        return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
