"""Hyperparameters in checkpoints: plain values that rebuild a model, and the check that they name known classes."""

import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from cnn_lightning.errors import UsageError

# The settings that may be the name of a class.
_CLASSES = {"class_path", "_class_path", "net", "optimizer", "lr_schedule"}
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def save_plain_hyperparameters(model: LightningModule, net: nn.Module) -> None:
    """Save what rebuilds a model as plain values, so that a checkpoint loads without any code in it.

    On the command line, Lightning passes the parsed configuration of all arguments. In Python, it passes the objects:
    then the network is described by its class and ``init_args``, and optimizer and schedule are left out.

    Args:
        model: The model, called from its constructor.
        net: The network it was built with.
    """
    frame = inspect.currentframe()
    constructor = frame.f_back if frame else None  # Lightning reads the arguments there
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute 'net' is an instance of `nn.Module`")
        model.save_hyperparameters(frame=constructor)
    if model.hparams["net"] is net:
        config = {"class_path": f"{type(net).__module__}.{type(net).__qualname__}", "init_args": net.init_args}
        plain = {"net": config, "_instantiator": _INSTANTIATOR}
        model.save_hyperparameters(plain, ignore=["optimizer", "lr_schedule"], frame=constructor)


def check_classes(settings: Any, bases: tuple[type, ...], path: str | Path) -> None:
    """Make sure that settings in a checkpoint name only imported classes of the expected kinds.

    jsonargparse would import and call whatever is named; Lightning checks only the outermost names.

    Args:
        settings: Nested, with ``class_path`` and the like.
        bases: Base classes that the named classes must have.
        path: The checkpoint, named in the message.

    Raises:
        UsageError: Another name is there.
    """
    if isinstance(settings, list | tuple):
        settings = dict(enumerate(settings))
    if not isinstance(settings, Mapping):
        return
    for key, value in settings.items():
        if key in _CLASSES and value is not None and not isinstance(value, Mapping):
            module, _, name = str(value).rpartition(".")
            cls = getattr(sys.modules.get(module), name, None)
            allowed = isinstance(cls, type) and issubclass(cls, bases)
        else:
            allowed = key != "_instantiator" or value == _INSTANTIATOR
        if not allowed:
            raise UsageError(
                f"{path} names {value}, which is no imported network, optimizer, schedule or dataset: it is not used "
                "because it could run code; if the class is your own, name it with --model.net or --data"
            )
        check_classes(value, bases, path)
