"""The settings that a checkpoint carries, and those that may differ when its run is resumed."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from cnn_lightning.checkpointing.hyperparameters import check_classes
from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import facts_of

# Where a checkpoint has the state of ``ResumeState``; version 0.1 had the same content under another key.
RESUME_KEY, FORMER_RESUME_KEY = "resume_state", "to_go_on"
# What may differ when a run is resumed, besides all of --trainer.
FREE_OPTIONS = {"--data.root", "--data.download", "--data.cache", "--model.compile_mode"}
# Options that earlier checkpoints do not have, and the values they were trained with.
NEW_OPTIONS = {
    "--model.label_smoothing": 0.0,
    "--model.class_weights": None,
    "--model.net.separable": False,
    "--data.flip": False,
    "--data.shift": 0,
    "--data.pad": 0,
    "--data.erase_area": 0.4,
} | {f"--data.{name}": 0.0 for name in ("rotate", "scale", "shear", "elastic", "erase")}


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


def epoch_of(checkpoint: Mapping[str, Any]) -> int:
    """The epoch, counted from 1, in or after which a checkpoint was saved."""
    # Lightning's "epoch" differs by one between checkpoints saved at the end of an epoch and after training.
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]


def seed_of(checkpoint: Mapping[str, Any]) -> int | None:
    """The seed of the order of the images; None where they are not shuffled, and in early checkpoints."""
    loaders = checkpoint["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader", [])
    return loaders[0].get("seed") if loaders else None


def seeding_of(checkpoint: Mapping[str, Any]) -> int | bool | None:
    """What ``--seed_everything`` was: False where PyTorch drew a seed of its own, which has more digits."""
    seed = seed_of(checkpoint)
    return seed if seed is None or 0 <= seed < 2**32 else False


def settings_in(
    checkpoint: Mapping[str, Any], path: Path, classes: tuple[type, ...], trusted: Collection[str] = ()
) -> dict[str, Any]:
    """Return the settings of network and dataset that a checkpoint carries, as defaults for a parser.

    Args:
        checkpoint: What the file holds.
        path: The file, for messages.
        classes: Base classes of what the settings may name.
        trusted: Names of classes that the user gave.

    Raises:
        UsageError: The checkpoint does not describe its network, or names unknown classes.
    """
    named = {"--model": checkpoint.get("hyper_parameters"), "--data": checkpoint.get("datamodule_hyper_parameters")}
    check_classes(named, classes, path, trusted)
    model = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key != "_instantiator"}
    if "net" not in model:
        raise UsageError(f"{path} does not say which network it holds: expected a file that scripts/fit.py saved")
    settings = {f"model.{key}": value for key, value in model.items()}
    if (seed := seeding_of(checkpoint)) is not None:
        settings["seed_everything"] = seed
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("_instantiator", None)
    if class_path := data.pop("_class_path", None):
        settings["data"] = {"class_path": class_path, "init_args": data}
    return settings


def check_weights(checkpoint: Mapping[str, Any], path: Path, model: LightningModule) -> None:
    """Make sure that a checkpoint holds exactly the weights of a model.

    Raises:
        UsageError: It holds those of another network.
    """
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if saved != expected:
        name, shape = min(set(saved.items()) ^ set(expected.items()))
        raise UsageError(
            f"{path} is of another network than {type(model.net).__name__} as configured (they differ in {name} "
            f"{shape}): give --config the config.yaml of its run, or change --model.net"
        )


def check_resumable(
    checkpoint: Mapping[str, Any], path: Path, model: LightningModule, data: LightningDataModule, seed: int | bool
) -> None:
    """Make sure that a run can be resumed from a checkpoint, with the settings that it began with.

    Raises:
        UsageError: It holds only weights, misses the state of the epoch, is older than last.ckpt, or began with other
            settings.
    """
    if not checkpoint.get("optimizer_states"):
        raise UsageError(f"{path} holds only weights: to resume, name the last.ckpt of a run")
    loop = checkpoint["loops"]["fit_loop"]
    if (
        not loop["epoch_loop.batch_progress"]["is_last_batch"]
        and not {RESUME_KEY, FORMER_RESUME_KEY} & checkpoint.keys()
    ):
        raise UsageError(f"{path} was saved in the middle of an epoch: to resume, name the last.ckpt of its run")
    seeding = seeding_of(checkpoint)
    if seeding is not None and (seeding, type(seeding)) != (seed, type(seed)):
        raise UsageError(
            f"{path} was trained with --seed_everything {seeding}, here it is {seed}: leave out "
            "--seed_everything to resume, or --ckpt_path to start a new run"
        )
    _check_newest(checkpoint, path)
    for group, key, configured in (
        ("model", "hyper_parameters", model.hparams),
        ("data", "datamodule_hyper_parameters", data.hparams),
    ):
        began, now = flat_settings(f"--{group}", checkpoint.get(key, {})), flat_settings(f"--{group}", configured)
        began = {option: value for option, value in NEW_OPTIONS.items() if option in now} | began
        for option in sorted(began.keys() - FREE_OPTIONS):  # classes before their settings
            if began[option] != now.get(option):
                raise UsageError(
                    f"{path} was trained with {option} {began[option]}, here it is {now.get(option)}: leave out "
                    f"{option} to resume, or --ckpt_path to start a new run"
                )


def check_dataset(checkpoint: Mapping[str, Any], path: Path, data: LightningDataModule) -> None:
    """Make sure that a run is resumed on the images that it began with, as far as the data module describes them.

    Raises:
        UsageError: The images differ.
    """
    saved, now = checkpoint.get("dataset", {}), asdict(facts_of(data))
    for name in sorted(saved.keys() & now.keys() - {"name"}):
        if None not in (saved[name], now[name]) and saved[name] != now[name]:  # None: not known before the set-up
            raise UsageError(
                f"{path} was trained on other images: {name} is {saved[name]} there, and {now[name]} in "
                f"{facts_of(data).name}: expected the same images, or leave out --ckpt_path to start a new run"
            )


def describes_images(checkpoint: Mapping[str, Any], data: LightningDataModule) -> bool:
    """Whether a data module has the dataset and the split that a checkpoint was trained with, as far as both tell."""
    saved = flat_settings("--data", checkpoint.get("datamodule_hyper_parameters", {}))
    now, name = flat_settings("--data", data.hparams), checkpoint.get("dataset", {}).get("name")
    # Not mean, std and class_names, which a checkpoint fills in where they were measured.
    compared = saved.keys() - FREE_OPTIONS - {f"--data.{each}" for each in ("batch_size", "mean", "std", "class_names")}
    return all(now.get(option) == saved[option] for option in compared) and name in (None, facts_of(data).name)


def _check_newest(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse another checkpoint of a run than its last.ckpt, which training would overwrite."""
    last, step = path.with_name("last.ckpt"), 0
    if last != path and run_of(path):
        with suppress(UsageError):  # missing or damaged, so that it may be overwritten
            step = read_checkpoint(last)["global_step"]
    if step > checkpoint["global_step"]:
        raise UsageError(
            f"{last} is newer (step {step:,}) and would be overwritten: name that one, or copy {path.name} to another "
            "folder to start a new run from it"
        )


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None if it lies elsewhere."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.resolve().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None
