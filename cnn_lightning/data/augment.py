"""Random changes of training images, a batch at a time and every image in its own way.

Our own, because torchvision's transforms change all images of a batch in the same way. What happens to an image is
drawn beforehand for a whole epoch, so that it follows from seed and epoch alone, whatever the batches are.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, pad


class Change(Protocol):
    """A kind of change."""

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw for ``size`` images: (size, K) numbers that say what happens to each."""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change (B, C, H, W) images as (B, K) numbers from ``draw`` say; the result has their shape."""


class Augment:
    """Several changes, one after the other.

    Args:
        changes: In the order in which they are made.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes

    def draw(self, size: int, rng: np.random.Generator) -> list[Tensor]:
        """Draw for ``size`` images: (size, K) numbers for each change."""
        return [change.draw(size, rng) for change in self.changes]

    def __call__(self, images: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Change (B, C, H, W) uint8 images as (B, K) numbers for each change say: the same shape, uint8 or float32."""
        for change, drawn in zip(self.changes, draws, strict=True):
            images = change(images, drawn)
        return images


class FlipAndShift:
    """Mirrors half of the images left to right, and moves each by some pixels; what comes in at the edge is black.

    Args:
        flip: Mirror.
        shift: Greatest move in pixels, up, down, left and right; 0 for none.
    """

    def __init__(self, flip: bool, shift: int) -> None:
        self.flip = flip
        self.shift = shift

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw for ``size`` images: (size, 3) int64, whether to mirror, and where to begin in rows and columns."""
        mirrored = rng.integers(0, 1 + self.flip, (size, 1))
        starts = rng.integers(0, 1 + 2 * self.shift, (size, 2))
        return torch.from_numpy(np.concatenate([mirrored, starts], axis=1))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change (B, C, H, W) images as (B, 3) numbers from ``draw`` say; the result has their shape and dtype."""
        batch, channels, height, width = (torch.arange(size, device=images.device) for size in images.shape)
        mirrored, top, left = draws.T[..., None]
        rows, columns = top + height, left + width
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
        padded = pad(images, [self.shift] * 4)
        return padded[
            batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]


class Warp:
    """Rotates, scales, shears and distorts each image about its middle, in one bicubic interpolation.

    The elastic distortion moves the 4×4 points of a coarse grid at random, and all pixels between smoothly with them
    (Ronneberger, Fischer and Brox 2015, arXiv 1505.04597; for digits Simard, Steinkraus and Platt 2003). What comes in
    at the edge is black.

    Args:
        rotate: Greatest angle in degrees, in both directions.
        scale: Greatest change of size: 0.1 makes them 0.9 to 1.1 times as large.
        shear: Greatest angle in degrees by which upright lines are slanted, in both directions.
        elastic: Standard deviation in pixels of the moves of the coarse grid, up and down and left and right.
    """

    GRID = 4

    def __init__(self, rotate: float = 0.0, scale: float = 0.0, shear: float = 0.0, elastic: float = 0.0) -> None:
        self.rotate = rotate
        self.scale = scale
        self.shear = shear
        self.elastic = elastic

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw for ``size`` images: (size, K) float32, angle, size and slant in [-1, 1], and moves of the grid.

        K is 3, and with ``elastic`` 35.
        """
        affine = rng.uniform(-1, 1, (size, 3)).astype(np.float32)
        moves = rng.standard_normal((size, 2 * self.GRID**2 if self.elastic else 0), dtype=np.float32)
        return torch.from_numpy(np.concatenate([affine, moves], axis=1))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change (B, C, H, W) uint8 or float32 images as (B, K) numbers from ``draw`` say; float32."""
        angle, size, slant = draws[:, :3].T
        angle, size = angle * math.radians(self.rotate), 1 + size * self.scale
        slant = (slant * math.radians(self.shear)).tan()
        cos, sin, zero = angle.cos() / size, angle.sin() / size, torch.zeros_like(angle)
        # From where in the image, whose sides are 2, each pixel comes.
        matrix = torch.stack([cos, sin + slant * cos, zero, -sin, cos - slant * sin, zero], dim=1).view(-1, 2, 3)
        places = affine_grid(matrix, list(images.shape), align_corners=False)
        if self.elastic:
            moves = draws[:, 3:].view(-1, 2, self.GRID, self.GRID)
            moves = interpolate(moves, images.shape[2:], mode="bicubic", align_corners=True)
            places = places + moves.permute(0, 2, 3, 1) * (2 * self.elastic / images.shape[3])
        # Not bilinear, which blurs: networks that had learnt from blurred images did worse on sharp ones, the more the
        # longer they learnt.
        warped = grid_sample(images.float(), places, mode="bicubic", align_corners=False)
        return warped.clamp(0, 255)  # it overshoots at edges


class Erase:
    """Covers a rectangle of some of the images with grey of random brightness.

    After random erasing (Zhong et al. 2017, arXiv 1708.04896): it takes 2 to 40 % of the image and is up to 3.3 times
    as high as wide, or as wide as high. Other than there, it is all of one brightness, and where it reaches over the
    edge it is cut.

    Args:
        probability: Share of the images, in [0, 1].
    """

    AREA = (0.02, 0.4)
    RATIO = 10 / 3

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw for ``size`` images: (size, 6) float32, whether, middle, height, width, and brightness.

        All are shares, of the sides of the image and of white; height and width may be above 1.
        """
        whether = rng.random(size) < self.probability
        down, across, brightness = rng.random((3, size))
        area = rng.uniform(*self.AREA, size)
        ratio = np.exp(rng.uniform(-1, 1, size) * np.log(self.RATIO))
        draws = [whether, down, across, np.sqrt(area * ratio), np.sqrt(area / ratio), brightness]
        return torch.from_numpy(np.stack(draws, axis=1).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change (B, C, H, W) images as (B, 6) numbers from ``draw`` say; the result has their shape and dtype."""
        height, width = images.shape[2:]
        rows, columns = ((torch.arange(side, device=images.device) + 0.5) / side for side in (height, width))
        whether, down, across, tall, wide, brightness = draws.T[..., None]
        inside = ((rows - down).abs() < tall / 2)[:, :, None] & ((columns - across).abs() < wide / 2)[:, None]
        covered = (inside & whether[..., None].bool())[:, None]
        return torch.where(covered, (brightness * 255).to(images.dtype)[..., None, None], images)
