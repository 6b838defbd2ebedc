"""The configuration of a run, as a file that can be given back."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from cnn_lightning.callbacks.hooks import IdleInSteps


class SaveConfig(IdleInSteps, SaveConfigCallback):
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
