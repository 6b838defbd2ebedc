"""What the nodes of an exported graph say."""

from collections.abc import Sequence
from typing import Any

from torch import fx


def operator_of(node: fx.Node) -> str:
    """Name of the function that a node calls: "conv2d" for aten.conv2d.default."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def result_of(node: fx.Node) -> Any:
    """What a node returns, as a tensor without values; the first if there are several."""
    value = node.meta["val"]
    return value[0] if isinstance(value, tuple | list) else value


def module_of(node: fx.Node) -> str:
    """Name of the module whose forward calls the operator; "" for that of the network itself."""
    return [("", ""), *node.meta.get("nn_module_stack", {}).values()][-1][0]


def pair_of(size: Sequence[int] | int) -> list[int]:
    """Sizes along height and width, from one for both or two."""
    values = [size] if isinstance(size, int) else list(size)
    return values * 2 if len(values) == 1 else values
