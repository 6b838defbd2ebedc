"""Batch normalisation becomes part of the layer before it."""

from typing import Any

from torch import Tensor

FOLDABLE = ("conv2d", "linear")


def folded(layers: list[dict[str, Any]], tensors: list[Tensor]) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Fold batch normalisation into the convolution or linear layer before it, if nothing else uses the output of that.

    Args:
        layers: As in ``Program``; batch normalisation has a scale as "weight" and a shift as "bias", (C,) each.
        tensors: Those that the layers name by index, float.

    Returns:
        Both, without what was folded; a layer that something was folded into has the name of that as "folded".
    """
    users = [0] * (len(layers) + 1)
    for layer in layers:
        for number in layer["inputs"]:
            users[number] += 1
    kept: list[dict[str, Any]] = []
    stored: list[Tensor] = []
    number_of = {0: 0}  # of values, before -> after folding
    for number, layer in enumerate(layers, start=1):
        before = layers[layer["inputs"][0] - 1] if layer["inputs"][0] else {}
        own = {name: tensors[layer[name]] for name in ("weight", "bias") if layer.get(name) is not None}
        if layer["kind"] == "batch_norm" and before.get("kind") in FOLDABLE and users[layer["inputs"][0]] == 1:
            target, scale, shift = kept[number_of[layer["inputs"][0]] - 1], own["weight"], own["bias"]
            kernels = stored[target["weight"]]
            stored[target["weight"]] = kernels * scale.view(-1, *[1] * (kernels.ndim - 1))
            if target["bias"] is None:
                target["bias"] = len(stored)
                stored.append(shift)
            else:
                stored[target["bias"]] = stored[target["bias"]] * scale + shift
            target["folded"] = layer["name"]
            number_of[number] = number_of[layer["inputs"][0]]
            continue
        places = {name: len(stored) + place for place, name in enumerate(own)}
        stored += own.values()
        kept.append({**layer, **places, "inputs": [number_of[value] for value in layer["inputs"]]})
        number_of[number] = len(kept)
    return kept, stored
