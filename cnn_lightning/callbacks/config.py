"""The configuration of a run, as a file that can be given back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from cnn_lightning.callbacks.hooks import IdleInEpochs
from cnn_lightning.checkpointing.files import numbered, write_file


class SaveConfig(IdleInEpochs, SaveConfigCallback):
    """Writes all settings to ``config.yaml`` in the folder of the run, for ``--config``.

    A run that goes on with other settings keeps the file and writes ``config_2.yaml`` (then 3, ...) beside it. Neither
    names the checkpoint it went on from, so that giving it back starts a new run.

    Attributes:
        path: The file, once it is written.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file once, before training."""
        if stage != "fit":
            return
        config = self.config.clone()
        del config["ckpt_path"]
        content = self.parser.dump(config, skip_none=False).encode()
        folder = Path(trainer.log_dir)  # which the first process tells the others
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        before = b""
        for self.path in (folder / name for name in numbered("config", ".yaml")):
            if not self.path.exists():
                break
            before = self.path.read_bytes()
            if before == content:
                return
        write_file(self.path, content)
        if before:
            _say_what_changed(yaml.safe_load(before), yaml.safe_load(content))


def _say_what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = flat_settings("", before), flat_settings("", now)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    said = ", ".join(f"--{name} {old.get(name)} -> {new.get(name)}" for name in changed)
    print(f"Going on with other settings than before: {said}")


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
