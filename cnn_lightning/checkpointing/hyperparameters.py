"""Hyperparameters in checkpoints: plain values that rebuild a model, and the check that they name known classes."""

import inspect
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from torch import nn

from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet

# The settings that may be the name of a class.
_CLASSES = {"class_path", "_class_path", "net", "optimizer", "lr_schedule"}
# Where installed packages lie, whose layers and models are not the user's networks.
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def save_plain_hyperparameters(model: LightningModule, net: nn.Module) -> None:
    """Save what rebuilds a model as plain values, so that a checkpoint loads without any code in it.

    On the command line, Lightning passes the parsed configuration of all arguments. In Python, it passes the objects:
    then a network with ``init_args``, as every ``ConvNet``, is described by these and its class, and optimizer and
    schedule are left out.

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
        plain: dict[str, Any] = {"_instantiator": _INSTANTIATOR}
        if hasattr(net, "init_args"):
            path = f"{type(net).__module__}.{type(net).__qualname__}"
            plain["net"] = {"class_path": path, "init_args": net.init_args}
        else:
            del model.hparams["net"]
        model.save_hyperparameters(plain, ignore=["optimizer", "lr_schedule"], frame=constructor)


def check_model(
    checkpoint: Mapping[str, Any], bases: tuple[type, ...], path: str | Path, settings: Mapping[str, Any]
) -> None:
    """Make sure that a model can be built from a checkpoint.

    Args:
        checkpoint: What the file holds.
        bases: Base classes of what it may name.
        path: The file, for messages.
        settings: Arguments of the model that are given besides.

    Raises:
        UsageError: It names other classes, or it does not describe its network, and none is given.
    """
    former = {key: checkpoint.get(key) for key in ("hparams", "module_arguments")}  # Lightning's former names
    saved = checkpoint.get("hyper_parameters", {})
    check_classes({"--model": {key: saved[key] for key in saved.keys() - settings}} | former, bases, path)
    if "net" not in settings and "net" not in checkpoint.get("hyper_parameters", {"net": ""}):
        raise UsageError(
            f"{path} holds the weights of a network that was built in Python, and not how: expected "
            "load_from_checkpoint(path, net=NETWORK)"
        )


def check_classes(
    settings: Mapping[str, Any], bases: tuple[type, ...], path: str | Path, trusted: Collection[str] = ()
) -> None:
    """Make sure that settings in a checkpoint name only imported classes of the expected kinds.

    jsonargparse would import and call whatever is named; Lightning checks only the outermost names.

    Args:
        settings: Nested settings by option: "--model", "--data".
        bases: Base classes that the named classes must have.
        path: The checkpoint, named in the message.
        trusted: Names that the user gave, which may be layers or models of an installed library.

    Raises:
        UsageError: Other names are there.
    """
    named = [(option, value) for root, content in settings.items() for option, value in _named_classes(root, content)]
    unknown = [(option, value) for option, value in named if not _is_known(option, value, bases, trusted)]
    if unknown:
        raise UsageError(
            f"{path} names {' and '.join(str(value) for _, value in unknown)}, which is not an imported network, "
            "optimizer, schedule or dataset: it is not used because it could run code; if it is your own, import it, "
            f"on the command line with {' '.join(f'{option} {value}' for option, value in unknown)}"
        )


def _named_classes(option: str, settings: Any) -> Iterator[tuple[str, Any]]:
    """The classes that settings name, and the options that name them; "_instantiator" for what builds them."""
    if isinstance(settings, str):  # jsonargparse reads YAML in it, and imports a name where a class is expected
        try:
            parsed = yaml.safe_load(settings)
        except yaml.YAMLError:
            return
        if isinstance(parsed, Mapping | list):
            yield from _named_classes(option, parsed)
        elif _may_be_imported(settings):
            yield option, settings
        return
    items = settings.items() if isinstance(settings, Mapping) else ()
    for key, value in enumerate(settings) if isinstance(settings, list | tuple) else items:
        is_class = key in _CLASSES and value is not None and not isinstance(value, Mapping)
        own = option if key in ("class_path", "_class_path", "init_args") else f"{option}.{key}"
        if is_class or key == "_instantiator":
            yield str(key) if key == "_instantiator" else own, value
        else:
            yield from _named_classes(own, value)


def _may_be_imported(text: str) -> bool:
    """Whether a text is the path of something in an installed module, like "torch.nn.ReLU"."""
    first, dot, rest = text.partition(".")
    return bool(dot) and all(map(str.isidentifier, (first, *rest.split(".")))) and find_spec(first) is not None


def _is_known(option: str, value: Any, bases: tuple[type, ...], trusted: Collection[str]) -> bool:
    if option == "_instantiator":
        return value == _INSTANTIATOR
    module, _, name = str(value).rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not isinstance(cls, type) or not issubclass(cls, bases):
        return False
    return value in trusted or not _is_module_of_library(cls)


def _is_module_of_library(cls: type) -> bool:
    """Whether a class is a layer or model of an installed library: these take functions and files as arguments."""
    file = getattr(sys.modules[cls.__module__], "__file__", None) or ""
    return issubclass(cls, nn.Module) and not issubclass(cls, ConvNet) and file.startswith(_LIBRARIES)
