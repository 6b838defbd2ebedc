"""The settings of a run that a reader looks for: the main ones, and those that differ from the defaults."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer

# Of the options of the Trainer, those that change what is trained.
TRAINER = (
    "callbacks", "max_steps", "max_time", "limit_train_batches", "overfit_batches", "precision", "gradient_clip_val",
    "accumulate_grad_batches",
)  # fmt: skip
MAIN = {
    "network": "model.net",
    "dataset": "data",
    "optimizer": "model.optimizer",
    "lr": "model.optimizer.lr",
    "batch_size": "data.batch_size",
    "epochs": "trainer.max_epochs",
}
_NO_RESULT_DEPENDS_ON = {"data.root", "data.download", "model.compile_mode"}
_REQUIRED = object()  # the default of an argument that has none


def main_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the settings with the names MAIN from all settings by option, as ``flat_settings("", config)`` gives them.

    Settings that a run does not have are left out.
    """
    return {name: settings[option] for name, option in MAIN.items() if option in settings}


def changed_settings(config: Mapping[str, Any], model: type) -> dict[str, Any]:
    """Return the other settings that differ from their defaults, and that a result depends on.

    Args:
        config: The content of config.yaml: ``model``, ``data``, ``trainer`` and ``seed_everything``, if there.
        model: Class of the model, whose defaults count.

    Returns:
        Option without dashes -> value.
    """
    found = dict(_changes("seed_everything", config.get("seed_everything", 0), 0))
    for name, value in config.get("model", {}).items():
        found |= _changes(f"model.{name}", value, _defaults(model).get(name, _REQUIRED))
    found |= _changes("data", config.get("data"), None)
    trainer = config.get("trainer", {})
    for name in TRAINER:
        found |= _changes(f"trainer.{name}", trainer.get(name), _defaults(Trainer)[name]) if name in trainer else {}
    return {name: value for name, value in found.items() if name not in {*MAIN.values(), *_NO_RESULT_DEPENDS_ON}}


def _changes(option: str, value: Any, default: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        if name != getattr(default, "__name__", None):
            yield option, name
        defaults = _defaults(getattr(sys.modules.get(module), name, None))
        for argument, each in (value.get("init_args") or {}).items():
            yield from _changes(f"{option}.{argument}", each, defaults.get(argument, _REQUIRED))
    elif _plain(value) != _plain(default):
        yield option, _plain(value)


def _plain(value: Any) -> Any:
    """A list for a sequence, and the names of classes."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value["class_path"].rpartition(".")[2] if isinstance(value, Mapping) and "class_path" in value else value


def _defaults(cls: Any) -> dict[str, Any]:
    """The defaults of the arguments of a constructor, also of those that it passes on to its base classes."""
    bases = reversed(cls.__mro__) if isinstance(cls, type) else [cls] if callable(cls) else []
    found: dict[str, Any] = {}
    for base in bases:
        function = base.__dict__.get("__init__", None) if isinstance(base, type) else base
        parameters = inspect.signature(function).parameters.values() if inspect.isfunction(function) else []
        found |= {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    return found
