"""Corruptions of test images in five strengths.

The kinds are those of MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337) and ImageNet-C (Hendrycks and Dietterich 2019,
arXiv 1903.12261) that mean something at 28×28, and occlusion (Zeiler and Fergus 2014, arXiv 1311.2901).

Custom because both datasets must be downloaded, hold only their own images, and were made image by image. Here, a
function changes a batch on its device. Sizes are relative to the side of an image, so that they mean the same for
other sizes. Random numbers come from a stream of their own for each kind, an image after the other. They depend on
neither batch size nor device, and are the same in all five strengths.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

STRENGTHS = (1, 2, 3, 4, 5)
VALUES = 2**20  # of the images that are changed at a time
GRID = 4  # side of the coarse grid of an elastic distortion
BLOBS = 8  # side of the coarse grid of spatter


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        apply: Called with (B, C, H, W) float32 images in [0, 1], (B, draws) float32 random numbers in [0, 1) and a
            level. Returns images of the same shape, which may exceed [0, 1].
        levels: The level of each strength.
        draws: Random numbers of an image; None for as many as it has values.
    """

    apply: Callable[[Tensor, Tensor, float], Tensor]
    levels: tuple[float, float, float, float, float]
    draws: int | None = 0


def corrupt(images: Tensor, name: str, strength: int, seed: int = 0) -> Tensor:
    """Corrupt images; the result follows from the arguments alone.

    Args:
        images: (N, C, H, W) uint8.
        name: A key of ``CORRUPTIONS``.
        strength: 1 to 5.
        seed: Of the random numbers.

    Returns:
        (N, C, H, W) uint8 on the same device.

    Raises:
        ValueError: There is no such corruption or strength.
    """
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(f"corruption {name}, strength {strength}: expected one of {[*CORRUPTIONS]}, 1 to 5")
    corruption = CORRUPTIONS[name]
    size = math.prod(images.shape[1:])
    draws = size if corruption.draws is None else corruption.draws
    rng, level = np.random.default_rng((seed, [*CORRUPTIONS].index(name))), corruption.levels[strength - 1]
    corrupted = []
    for batch in images.split(max(1, VALUES // size)):
        drawn = torch.from_numpy(rng.random((len(batch), draws), dtype=np.float32)).to(images.device)
        changed = corruption.apply(batch.float() / 255, drawn, level)
        corrupted.append((changed.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(corrupted)


def gaussian_noise(images: Tensor, draws: Tensor, deviation: float) -> Tensor:
    """Add noise to each value."""
    return images + deviation * _normal(draws).view_as(images)


def gaussian_blur(images: Tensor, draws: Tensor, deviation: float) -> Tensor:
    """Blur with a Gaussian kernel, of a standard deviation relative to the side; edges are repeated."""
    deviation *= min(images.shape[2:])
    radius = math.ceil(3 * deviation)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=images.device) ** 2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    planes = pad(images, [radius] * 4, mode="replicate").flatten(0, 1)[:, None]
    return conv2d(conv2d(planes, kernel), kernel.mT).view_as(images)


def motion_blur(images: Tensor, draws: Tensor, length: float) -> Tensor:
    """Average the images moved along a line of random direction, a pixel at a time."""
    angle = math.pi * draws[:, 0]
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    steps = torch.linspace(-length / 2, length / 2, round(length * min(images.shape[2:])) + 1).tolist()
    return torch.stack([_warp(images, move=direction * step, mode="bilinear") for step in steps]).mean(dim=0)


def rotation(images: Tensor, draws: Tensor, degrees: float) -> Tensor:
    """Rotate to the left or to the right."""
    angle = _sign(draws[:, 0]) * math.radians(degrees)
    return _warp(images, torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1))


def scale(images: Tensor, draws: Tensor, factor: float) -> Tensor:
    """Scale about the centre."""
    return _warp(images, torch.tensor([1 / factor, 0, 0, 1 / factor], device=images.device).expand(len(images), 4))


def shear(images: Tensor, draws: Tensor, slope: float) -> Tensor:
    """Slant vertical lines to the left or to the right."""
    slopes = _sign(draws[:, 0]) * slope
    one, zero = torch.ones_like(slopes), torch.zeros_like(slopes)
    return _warp(images, torch.stack([one, slopes, zero, one], dim=1))


def translation(images: Tensor, draws: Tensor, distance: float) -> Tensor:
    """Move in a random direction."""
    angle = 2 * math.pi * draws[:, 0]
    return _warp(images, move=distance * torch.stack([angle.cos(), angle.sin()], dim=1))


def stripe(images: Tensor, draws: Tensor, width: float) -> Tensor:
    """Invert a vertical stripe."""
    x, _ = _points(images).unbind(-1)
    inside = (x - _near_centre(draws[:, 0])).abs() < width / 2
    return torch.where(inside[:, None], 1 - images, images)


def spatter(images: Tensor, draws: Tensor, threshold: float) -> Tensor:
    """Cover the images with blobs: where coarse noise, interpolated, is above a threshold."""
    field = interpolate(draws.view(-1, 1, BLOBS, BLOBS), images.shape[2:], mode="bicubic", align_corners=True)
    return torch.lerp(images, _ink(images), ((field - threshold) * 6).clamp(0, 1))


def dotted_line(images: Tensor, draws: Tensor, lines: float) -> Tensor:
    """Draw straight dotted lines."""
    for drawn in draws.split(2, dim=1)[: int(lines)]:
        along, across = _along_and_across(images, drawn)
        images = _drawn(images, (along.remainder(0.14) - 0.07).hypot(across), 0.03)
    return images


def zigzag(images: Tensor, draws: Tensor, radius: float) -> Tensor:
    """Draw a zigzag line."""
    along, across = _along_and_across(images, draws)
    wave = (along.remainder(0.4) - 0.2).abs() - 0.1  # slopes of 45 degrees
    return _drawn(images, (across - wave).abs() / math.sqrt(2), radius)


def brightness(images: Tensor, draws: Tensor, more: float) -> Tensor:
    """Make all pixels brighter."""
    return images + more


def inverted_contrast(images: Tensor, draws: Tensor, share: float) -> Tensor:
    """Mix each image with its negative: up to a share of 0.5 contrast falls, then the image is inverted."""
    return torch.lerp(images, 1 - images, share)


def occlusion(images: Tensor, draws: Tensor, side: float) -> Tensor:
    """Cover a grey square near the centre."""
    inside = (_points(images) - _near_centre(draws)).abs().amax(dim=-1) < side / 2
    return torch.where(inside[:, None], 0.5, images)


def elastic(images: Tensor, draws: Tensor, deviation: float) -> Tensor:
    """Displace a coarse grid of points at random, and all pixels between them smoothly.

    Source: Simard, Steinkraus and Platt 2003, Best Practices for Convolutional Neural Networks.
    """
    moves = _normal(draws).view(-1, 2, GRID, GRID) * deviation
    moves = interpolate(moves, images.shape[2:], mode="bicubic", align_corners=True)
    return _warp(images, move=moves.permute(0, 2, 3, 1))


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.1, 0.2, 0.3, 0.4, 0.5), draws=None),
    "gaussian_blur": Corruption(gaussian_blur, (0.03, 0.045, 0.06, 0.075, 0.09)),
    "motion_blur": Corruption(motion_blur, (0.1, 0.18, 0.25, 0.32, 0.4), draws=1),
    "rotation": Corruption(rotation, (10, 20, 30, 40, 50), draws=1),
    "scale": Corruption(scale, (0.85, 0.75, 0.65, 0.55, 0.45)),
    "shear": Corruption(shear, (0.2, 0.4, 0.6, 0.8, 1.0), draws=1),
    "translation": Corruption(translation, (0.04, 0.08, 0.12, 0.16, 0.2), draws=1),
    "stripe": Corruption(stripe, (0.04, 0.08, 0.14, 0.2, 0.28), draws=1),
    "spatter": Corruption(spatter, (0.85, 0.75, 0.65, 0.6, 0.55), draws=BLOBS**2),
    "dotted_line": Corruption(dotted_line, (1, 2, 3, 4, 5), draws=10),
    "zigzag": Corruption(zigzag, (0.01, 0.02, 0.03, 0.045, 0.06), draws=2),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.45, 0.6)),
    "inverted_contrast": Corruption(inverted_contrast, (0.2, 0.3, 0.4, 0.7, 1.0)),
    "occlusion": Corruption(occlusion, (0.15, 0.2, 0.25, 0.3, 0.35), draws=2),
    "elastic": Corruption(elastic, (0.02, 0.035, 0.05, 0.065, 0.08), draws=2 * GRID**2),
}


def _normal(draws: Tensor) -> Tensor:
    """Turn uniform random numbers into normal ones."""
    return torch.special.ndtri(draws.clamp(1e-6, 1 - 1e-6))


def _sign(draw: Tensor) -> Tensor:
    return torch.where(draw < 0.5, -1.0, 1.0)


def _near_centre(draws: Tensor) -> Tensor:
    """Turn (B, ...) random numbers into places near the centre, (B, 1, 1, ...)."""
    return (0.3 * draws - 0.15)[:, None, None]


def _points(images: Tensor) -> Tensor:
    """Return (H, W, 2) x and y of the pixels, relative to the side; the centre is 0."""
    height, width = images.shape[2:]
    y, x = (
        (torch.arange(size, device=images.device) + 0.5 - size / 2) / min(height, width) for size in (height, width)
    )
    return torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)


def _warp(images: Tensor, matrix: Tensor | None = None, move: Tensor | None = None, mode: str = "bicubic") -> Tensor:
    """Read each pixel elsewhere, in one interpolation; pixels from outside of the image are black.

    Args:
        images: (B, C, H, W) float.
        matrix: (B, 4): turns the place of a pixel into the place where it is read. Defaults to the same place.
        move: (B, 2) or (B, H, W, 2): added to that place, relative to the side.
        mode: Of the interpolation.
    """
    places = _points(images).expand(len(images), -1, -1, -1)
    if matrix is not None:
        places = (places.flatten(1, 2) @ matrix.view(-1, 2, 2).mT).view_as(places)
    if move is not None:
        places = places + (move if move.ndim == 4 else move[:, None, None])
    height, width = images.shape[2:]
    to_grid = 2 * min(height, width) / torch.tensor([width, height], device=images.device)
    return grid_sample(images, places * to_grid, mode=mode, align_corners=False).clamp(0, 1)  # bicubic overshoots


def _along_and_across(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (B, H, W) places of the pixels along and across a line: its angle and distance to the centre drawn."""
    x, y = _points(images).unbind(-1)
    angle, offset = (math.pi * draws[:, 0])[:, None, None], 2 * _near_centre(draws[:, 1])
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin() - offset


def _ink(images: Tensor) -> Tensor:
    """Return (B, 1, 1, 1): white for dark images, black for bright ones."""
    return (images.mean(dim=(1, 2, 3), keepdim=True) < 0.5).to(images.dtype)


def _drawn(images: Tensor, distance: Tensor, radius: float) -> Tensor:
    """Draw a line on (B, C, H, W) images, by the (B, H, W) distance of each pixel from its middle."""
    cover = ((radius - distance) * min(images.shape[2:]) + 0.5).clamp(0, 1)  # soft over a pixel
    return torch.lerp(images, _ink(images), cover[:, None])
