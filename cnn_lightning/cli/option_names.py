"""Options that do not exist: which option took their place, or was meant."""

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence

from lightning.pytorch import Trainer

# The groups whose options belong to the class that is chosen.
_OF_CLASSES = ("trainer.callbacks", "trainer.logger")
_DEVICE = "--trainer.accelerator gpu --trainer.devices N"
_EARLY_STOPPING = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss"
_ROOT = "--data.root FOLDER"
_EMA = "--trainer.callbacks+=EMAWeightAveraging"
_FROM_DATA = "leave it out: the network takes the sizes and the number of classes of the dataset"
_FOLDS = "scripts/compare.py with variants of --data.split_seed, as docs/usage.md shows"
_NO_WORKERS = "leave it out: datasets are kept in memory, without worker processes"
# Options of earlier versions of Lightning, of PyTorch's examples and of other programs, without their group.
REPLACEMENTS = {
    "gpus": _DEVICE,
    "auto_select_gpus": _DEVICE,
    "gpu": "--trainer.accelerator gpu",
    "cuda": "--trainer.accelerator gpu",
    "no_cuda": "--trainer.accelerator cpu",
    "device": "--trainer.accelerator, and --trainer.devices for the number of them",
    "tpu_cores": "--trainer.accelerator tpu --trainer.devices N",
    "num_processes": "--trainer.devices N",
    "distributed_backend": "--trainer.strategy",
    "replace_sampler_ddp": "--trainer.use_distributed_sampler",
    "resume_from_checkpoint": "--ckpt_path PATH",
    "resume": "--ckpt_path last",
    "progress_bar_refresh_rate": "--trainer.callbacks+=TQDMProgressBar --trainer.callbacks.refresh_rate=N, or "
    "--trainer.enable_progress_bar false",
    "checkpoint_callback": "--trainer.enable_checkpointing",
    "weights_summary": "--trainer.enable_model_summary",
    "weights_save_path": "--trainer.default_root_dir",
    "stochastic_weight_avg": _EMA,
    "ema": _EMA,
    "early_stopping": _EARLY_STOPPING,
    "patience": f"{_EARLY_STOPPING} --trainer.callbacks.patience=N",
    "auto_lr_find": "scripts/compare.py with a recipe for each learning rate",
    "auto_scale_batch_size": "--data.batch_size N",
    "amp_backend": "--trainer.precision 16-mixed or bf16-mixed",
    "amp_level": "--trainer.precision 16-mixed or bf16-mixed",
    "amp": "--trainer.precision 16-mixed or bf16-mixed",
    "fp16": "--trainer.precision 16-mixed",
    "bf16": "--trainer.precision bf16-mixed",
    "flush_logs_every_n_steps": "--trainer.log_every_n_steps N",
    "log_interval": "--trainer.log_every_n_steps N",
    "log_dir": "--trainer.default_root_dir FOLDER",
    "logdir": "--trainer.default_root_dir FOLDER",
    "output_dir": "--trainer.default_root_dir FOLDER",
    "save_dir": "--trainer.default_root_dir FOLDER",
    "epochs": "--trainer.max_epochs N",
    "num_epochs": "--trainer.max_epochs N",
    "n_epochs": "--trainer.max_epochs N",
    "steps": "--trainer.max_steps N",
    "num_steps": "--trainer.max_steps N",
    "lr": "--model.optimizer.lr N",
    "learning_rate": "--model.optimizer.lr N",
    "loss": "leave it out: the loss is cross-entropy",
    "criterion": "leave it out: the loss is cross-entropy",
    "optim": "--model.optimizer NAME",
    "lr_scheduler": "--model.lr_schedule NAME",
    "scheduler": "--model.lr_schedule NAME",
    "model_name": "--model.net NAME",
    "network": "--model.net NAME",
    "architecture": "--model.net NAME",
    "arch": "--model.net NAME",
    "pretrained": "--model.net TorchvisionNet --model.net.weights FILE",
    "checkpoint": "--ckpt_path PATH",
    "ckpt": "--ckpt_path PATH",
    "train_batch_size": "--data.batch_size N",
    "test_batch_size": "--data.batch_size N",
    "val_batch_size": "--data.batch_size N",
    "dataset": "--data NAME",
    "classes": _FROM_DATA,
    "n_classes": _FROM_DATA,
    "img_size": _FROM_DATA,
    "input_size": _FROM_DATA,
    "fold": _FOLDS,
    "folds": _FOLDS,
    "k_folds": _FOLDS,
    "data_dir": _ROOT,
    "data_path": _ROOT,
    "data_root": _ROOT,
    "dataset_dir": _ROOT,
    "num_workers": _NO_WORKERS,
    "workers": _NO_WORKERS,
    "pin_memory": _NO_WORKERS,
    "persistent_workers": _NO_WORKERS,
    "val_split": "--data.val_size N",
    "validation_split": "--data.val_size N",
    "seed": "--seed_everything N",
    "random_seed": "--seed_everything N",
    "manual_seed": "--seed_everything N",
}


def instead_of(option: str, options: Sequence[str], value: str = "") -> str:
    """Return the end of a message about an option that does not exist.

    Args:
        option: The option, such as "--trainer.max_epoch".
        options: Those that exist.
        value: What was typed for it; takes the place of N or another word in capitals.
    """
    group, leaf = _split(option)
    by_group: dict[str, dict[str, str]] = {}
    for each in options:
        by_group.setdefault(_split(each)[0], {}).setdefault(_split(each)[1], each)
    if leaf in REPLACEMENTS and group not in _OF_CLASSES:
        use = "use " if REPLACEMENTS[leaf].startswith(("-", "scripts")) else ""
        plain = value if re.fullmatch(r"[\w./~+-]+", value) else ""
        return f"; {use}" + re.sub(r"\b(N|NAME|FOLDER|PATH)\b", lambda match: plain or match[0], REPLACEMENTS[leaf])
    # The names of a group are compared without it, because the shared part would make all of them near.
    for siblings in (by_group.get(group, {}), by_group.get(_nearest(group, by_group), {})):
        if near := _nearest(leaf, siblings):
            return f"; did you mean {siblings[near]}?"
    others: dict[str, str] = {}
    for name in reversed(by_group):
        others |= {} if name in _OF_CLASSES else by_group[name]
    near = leaf if leaf in others else "" if group else _nearest(leaf, others)
    return f"; did you mean {others[near]}?" if near and group not in _OF_CLASSES else "; see --help"


def trainer_options(message: str) -> str:
    """Name the options of the Trainer that an error of Lightning is about: "--trainer.devices"."""
    names = [name for name in inspect.signature(Trainer).parameters if re.search(rf"`{name}`|\({name}=", message)]
    if message.startswith("`Timer(duration"):
        names = ["max_time"]
    return " or ".join(f"--trainer.{name}" for name in names) or "the options of --trainer"


def _split(option: str) -> tuple[str, str]:
    """The group and the name of an option, with hyphens as underscores."""
    group, _, leaf = option.lstrip("-").replace("-", "_").rpartition(".")
    return group, leaf


def _nearest(name: str, names: Iterable[str]) -> str:
    """The name that was mistyped by a letter or two; "" if none is that near."""
    bare = {re.sub("_", "", each.lower()): each for each in names}
    typed = re.sub("_", "", name.lower())
    near = difflib.get_close_matches(typed, bare, n=1, cutoff=0.79)
    swapped = [each for each in bare if len(each) > 2 and sorted(each) == sorted(typed)]
    return bare[(swapped + near)[0]] if swapped or near else ""
