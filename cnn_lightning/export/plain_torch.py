"""A network as a few lines of plain PyTorch, if it is a sequence of PyTorch's own layers."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

INDENT = "    "


def code_of(net: nn.Module, examples: Tensor) -> str | None:
    """Write the expression that builds a network, whose parameters have the same names as in the network itself.

    Args:
        net: The network; in evaluation mode, on the CPU.
        examples: (B, C, H, W) float32: images for which the result must be the same, since a network's own ``forward``
            may do anything.

    Returns:
        Python code that needs ``nn`` and ``OrderedDict``; None if the network is no sequence of layers.
    """
    code = _code(net) or _features_and_head(net)
    if code is None:
        return None
    try:
        # The code has nothing but calls of torch.nn, with plain values.
        rebuilt = eval(code, {"nn": nn, "OrderedDict": OrderedDict}).eval()
        rebuilt.load_state_dict(net.state_dict())
        with torch.inference_mode():
            is_same = torch.allclose(rebuilt(examples), net(examples), rtol=1e-4, atol=1e-5)
    except Exception:  # a layer whose description is no call, or other names of parameters
        return None
    return code if is_same else None


def _features_and_head(net: nn.Module) -> str | None:
    """The network that ``ConvNet`` describes: features, flatten, head."""
    children = dict(net.named_children())
    if list(children) != ["features", "head"]:
        return None
    features, head = (_code(child) for child in children.values())
    return features and head and _sequence({"features": features, "flatten": "nn.Flatten()", "head": head})


def _code(layer: nn.Module) -> str | None:
    """The call that builds a layer: PyTorch's description of it."""
    if type(layer).forward is nn.Sequential.forward:
        parts = {name: _code(part) for name, part in layer.named_children()}
        return None if None in parts.values() else _sequence(parts)
    is_plain = type(layer).__module__.startswith("torch.nn.modules.") and not list(layer.children())
    return f"nn.{layer!r}" if is_plain else None


def _sequence(parts: dict[str, str | None]) -> str:
    inner = {name: str(code).replace("\n", f"\n{INDENT}") for name, code in parts.items()}
    if list(inner) == [str(number) for number in range(len(inner))]:
        lines = [f"{INDENT}{code},\n" for code in inner.values()]
        return f"nn.Sequential(\n{''.join(lines)})"
    lines = [f"{INDENT}{name}={code},\n" for name, code in inner.items()]
    return f"nn.Sequential(OrderedDict(\n{''.join(lines)}))"
