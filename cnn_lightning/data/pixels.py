"""Pixels of a dataset: the check of what is read, mean and standard deviation, and normalisation."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.errors import UsageError

Figure = float | list[float]  # a mean or a standard deviation: for all channels, or one for each


def checked_figure(value: Any, name: str, channels: int) -> Figure | None:
    """Return a mean or a standard deviation as one number, or as a list with one for each channel.

    Args:
        value: A number, or a sequence of one or ``channels`` numbers; None, which is returned, where it is unknown.
        name: "mean" or "std".
        channels: Number of channels.

    Raises:
        UsageError: The value is not finite, ``std`` is not above 0, or the numbers are not one for each channel.
    """
    if value is None:
        return None
    figures = [float(each) for each in value] if hasattr(value, "__iter__") else [float(value)]
    above_0 = name != "std" or min(figures, default=1) > 0
    if len(figures) not in (1, channels) or not above_0 or not all(map(math.isfinite, figures)):
        kind = "a number above 0" if name == "std" else "a finite number"
        several = f", or {channels} of them, one for each channel" if channels > 1 else ""
        raise UsageError(f"{name} is {value}, expected {kind}{several}", name)
    return figures[0] if len(figures) == 1 else figures


def mean_and_std(images: Tensor) -> tuple[Figure, Figure]:
    """Compute mean and standard deviation of the pixels of (N, C, H, W) uint8 images, in [0, 1].

    Both are numbers for one channel, and lists with one number for each of several. A channel in which all pixels are
    equal has the standard deviation 1, so that it can be divided by.
    """
    # Pixels are counted by value, which is exact whatever their number, and needs no copy of the images in float.
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for some in images.split(1000):
        for channel, count in enumerate(counts):
            count += some[:, channel].flatten().bincount(minlength=256)
    shares, values = counts.double() / counts.sum(dim=1, keepdim=True), torch.arange(256).double() / 255
    means = shares @ values
    deviations = (shares * (values - means[:, None]).square()).sum(dim=1).sqrt()
    deviations[deviations == 0] = 1
    mean, std = means.tolist(), deviations.tolist()
    return (mean[0], std[0]) if len(mean) == 1 else (mean, std)


def normalized(images: Tensor, mean: Figure, std: Figure) -> Tensor:
    """Turn (B, C, H, W) pixels from 0 to 255 into float32 pixels ``(pixel / 255 - mean) / std``."""
    # Takes half the time of the formula as written, and differs from it in the last bit.
    if isinstance(mean, list) or isinstance(std, list):
        factors, offsets = _by_channel(_several(mean), _several(std), images.device)
        return images.float().mul_(factors).sub_(offsets)
    return images.float().mul_(1 / (255 * std)).sub_(mean / std)


@lru_cache(maxsize=8)  # copying to a GPU waits for it, at every batch
def _by_channel(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors and offsets of the channels, (C, 1, 1) float32."""
    with torch.inference_mode(mode=False):  # validation may ask first, and training may need gradients
        means, deviations = (torch.tensor(figures, dtype=torch.float64)[:, None, None] for figures in (mean, std))
        return (1 / (255 * deviations)).float().to(device), (means / deviations).float().to(device)


def _several(figure: Figure) -> tuple[float, ...]:
    return tuple(figure) if isinstance(figure, list) else (figure,)


def checked_images(result: Any, source: str, shape: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    """Return the images and labels that a dataset has read, if they are as expected.

    Args:
        result: What it returned: images and labels.
        source: Who returned it, for messages, such as "Shapes.read(train=True)".
        shape: (C, H, W) of an image.
        classes: Number of classes.

    Raises:
        UsageError: They are not (N, C, H, W) uint8 images and (N,) int64 labels in [0, classes).
    """
    sizes = ", ".join(map(str, shape))
    expected = f"expected (N, {sizes}) uint8 images and (N,) int64 labels from 0 to {classes - 1}, N at least 1"
    if not isinstance(result, tuple | list) or [isinstance(each, Tensor) for each in result] != [True, True]:
        several = isinstance(result, tuple | list)
        kinds = ", ".join(type(each).__name__ for each in result) if several else type(result).__name__
        raise UsageError(f"{source} returned {f'({kinds})' if several else kinds}, {expected}, two tensors")
    images, labels = result
    count = labels.numel()
    fits = (images.dtype, labels.dtype, labels.ndim) == (torch.uint8, torch.int64, 1) and count
    if not fits or images.shape != (count, *shape):
        shown = [f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in (images, labels)]
        raise UsageError(f"{source} returned {shown[0]} images and {shown[1]} labels, {expected}")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise UsageError(f"{source} returned labels from {least} to {most}, {expected}")
    return images, labels
