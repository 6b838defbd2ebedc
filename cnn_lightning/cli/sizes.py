"""The sizes in which network and dataset must agree."""

from collections.abc import Sequence

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from torch import nn

from cnn_lightning.cli.named_classes import given_arguments
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import facts_of

SIZES = ("in_channels", "num_classes", "image_size")


def adopt_sizes(net: Namespace, data: LightningDataModule, args: Sequence[str]) -> None:
    """Give a network the sizes of a dataset, except those that the user gave.

    Custom because a link of LightningCLI cannot be overridden by an option.

    Args:
        net: Configuration of the network, which is changed.
        data: The dataset.
        args: Command-line arguments.
    """
    facts, arguments = facts_of(data), net.get("init_args", {})
    for name in SIZES:
        size = getattr(facts, name)
        if size is not None and name in arguments and name not in given_arguments(args, "model.net"):
            arguments[name] = size


def check_sizes(net: nn.Module, data: LightningDataModule) -> None:
    """Make sure that network and dataset agree, as far as they state their sizes.

    Raises:
        UsageError: They differ.
    """
    facts = facts_of(data)
    sizes = {name: (getattr(net, name, None), getattr(facts, name)) for name in SIZES}
    wrong = {name: pair for name, pair in sizes.items() if None not in pair and pair[0] != pair[1]}
    if wrong:
        own, other = (", ".join(f"{name} {pair[i]}" for name, pair in wrong.items()) for i in (0, 1))
        change = " ".join(f"--model.net.{name} {pair[1]}" for name, pair in wrong.items())
        raise UsageError(f"{type(net).__name__} has {own}, but {facts.name} has {other}: change {change}")
