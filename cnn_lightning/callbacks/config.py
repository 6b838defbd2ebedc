"""The settings of a run, as a file for ``--config``."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from cnn_lightning.checkpointing.files import numbered, write_file
from cnn_lightning.checkpointing.settings import flat_settings


class SaveConfig(SaveConfigCallback):
    """Writes all settings to ``config.yaml`` in the folder of the run.

    A run that is resumed with other settings keeps that file and writes ``config_2.yaml``, then 3, and so on. None of
    them names the checkpoint that a run was resumed from, so that ``--config`` starts a new run.

    Attributes:
        path: The file, once it is written.
    """

    path: Path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file once, before training."""
        if stage != "fit":
            return
        config = self.config.clone()
        del config["ckpt_path"]
        content = self.parser.dump(config, skip_none=False).encode()
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        before = b""
        for self.path in (folder / name for name in numbered("config", ".yaml")):
            if not self.path.exists():
                break
            before = self.path.read_bytes()
            if yaml.safe_load(before) == yaml.safe_load(content):  # options may have another order
                return
        write_file(self.path, content)
        if before:
            _print_changes(yaml.safe_load(before), yaml.safe_load(content))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the settings to loggers other than TensorBoard, and the file to those that store files."""
        if not trainer.is_global_zero:
            return
        settings = flat_settings("", yaml.safe_load(self.parser.dump(self.config)))
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger):
                # MLflow raises where a parameter changes, as max_epochs may in a resumed run.
                known = logger.experiment.get_run(logger.run_id).data.params
                logger.log_hyperparams({name: value for name, value in settings.items() if name not in known})
                logger.experiment.log_artifact(logger.run_id, str(self.path))
            elif not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings)
            if isinstance(logger, WandbLogger):
                # With the folder in its name, because W&B writes a config.yaml of its own; copied, since it would link.
                files = Path(logger.experiment.dir)
                copied = files / self.path.parent.name / self.path.name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.path, copied)
                logger.experiment.save(copied, base_path=files, policy="now")


def _print_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = flat_settings("", before), flat_settings("", now)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    print(
        "Resuming with other settings:", ", ".join(f"--{name} {old.get(name)} -> {new.get(name)}" for name in changed)
    )
