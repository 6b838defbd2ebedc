"""The configuration of a run, as a file that can be given back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from cnn_lightning.callbacks.hooks import IdleInEpochs


class SaveConfig(IdleInEpochs, SaveConfigCallback):
    """Writes all settings to ``config.yaml`` in the folder of the run, for ``--config``.

    A run that goes on keeps the file and writes ``config_2.yaml`` (then 3, ...) beside it. Neither names the
    checkpoint it went on from, so that giving it back starts a new run.

    Attributes:
        path: The file, once it is written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file once, before training."""
        if stage != "fit":
            return
        self.config = self.config.clone()
        del self.config["ckpt_path"]
        folder = Path(trainer.log_dir)
        earlier = len(list(folder.glob("config*.yaml")))
        self.config_filename = f"config_{earlier + 1}.yaml" if earlier else "config.yaml"
        self.path = folder / self.config_filename
        super().setup(trainer, pl_module, stage)


def flat_settings(option: str, settings: Any) -> dict[str, Any]:
    """Name settings by the options that change them.

    Args:
        option: The option of all of them, like "--model".
        settings: The settings as they are saved, nested in dictionaries with ``class_path`` and ``init_args``.

    Returns:
        Like {"--model.optimizer": "AdamW", "--model.optimizer.lr": 0.005}.
    """
    if not isinstance(settings, Mapping):
        return {option: settings}
    flat = {}
    for key, value in settings.items():
        if key in ("class_path", "_class_path"):
            flat[option] = value.rpartition(".")[2]
        elif key != "_instantiator":
            flat |= flat_settings(option if key == "init_args" else f"{option}.{key}".removeprefix("."), value)
    return flat
