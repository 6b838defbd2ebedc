"""Normalisation as a scale and a shift of each channel, for what runs a network without its data module."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cnn_lightning.errors import UsageError


def scale_and_shift(normalize: Callable[[Tensor], Tensor], shape: Sequence[int]) -> tuple[list[float], list[float]]:
    """Measure what ``normalize`` does to each channel of uint8 images: pixel * scale + shift.

    Args:
        normalize: Turns (B, C, H, W) uint8 images into the input of a network.
        shape: (C, H, W) of an image.

    Returns:
        Scale and shift, C numbers each.

    Raises:
        UsageError: It does something else.
    """
    black, white = (torch.full((1, *shape), value, dtype=torch.uint8) for value in (0, 255))
    shift = normalize(black).double().mean((0, 2, 3))
    scale = (normalize(white).double().mean((0, 2, 3)) - shift) / 255
    some = torch.randint(256, (8, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result, by_channel = normalize(some), (len(shift), 1, 1)
    if result.shape != some.shape or not torch.allclose(
        result.double(), some * scale.view(by_channel) + shift.view(by_channel), atol=1e-4, rtol=1e-4
    ):
        raise UsageError("normalize does more than scale and shift the pixels of each channel")
    return scale.tolist(), shift.tolist()
