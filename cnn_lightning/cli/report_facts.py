"""What a report says of a checkpoint: when it was saved, and the settings that it was trained with."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cnn_lightning.checkpointing.main_settings import changed_settings, main_settings
from cnn_lightning.checkpointing.settings import epoch_of, flat_settings, seeding_of
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.cli.terminal import relative_path


def facts_of_checkpoint(checkpoint: Mapping[str, Any], path: Path, run: Path | None) -> dict[str, str]:
    """Describe a checkpoint, label -> text.

    Args:
        checkpoint: What the file holds.
        path: The file.
        run: Folder of its run, whose config.yaml has the settings; None if it has none.
    """
    files = sorted(run.glob("config*.yaml"), key=lambda file: file.stat().st_mtime) if run else []
    if files:
        config = yaml.safe_load(files[-1].read_text(encoding="utf-8"))  # the last, where a run was resumed
    else:
        data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
        config = {"model": dict(checkpoint.get("hyper_parameters", {}))}
        config["data"] = {"class_path": data.pop("_class_path", ""), "init_args": data}
        for group in (config["model"], data):
            group.pop("_instantiator", None)
    main = main_settings(flat_settings("", config))
    changed = changed_settings(config | {"seed_everything": 0}, ImageClassifier)  # the seed has a row of its own
    epochs = f" of {main['epochs']}" if main.get("epochs") else ""
    seed = seeding_of(checkpoint)
    return {
        "optimizer": ", learning rate ".join(str(main[name]) for name in ("optimizer", "lr") if name in main)
        or "unknown",
        "batch size": str(main.get("batch_size", "unknown")),
        "seed": "unknown" if seed is None else str(seed),
        "other settings": ", ".join(f"{name} {value}" for name, value in changed.items()) or "defaults",
        "checkpoint": relative_path(path),
        "saved": f"{_minute(path.stat().st_mtime)}, in epoch {epoch_of(checkpoint)}{epochs}, "
        f"after {checkpoint['global_step']:,} optimizer steps",
        "tested": _minute(datetime.now().timestamp()),
    }


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
