"""Random augmentation of training images, in batches, with a different change for every image.

Custom because torchvision's transforms change all images of a batch alike. Each class draws the (size, K) random
numbers of a whole epoch at once, so that they depend on seed and epoch alone, and applies (B, K) of them to a batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, pad


@dataclass(frozen=True)
class FlipAndShift:
    """Flips half of the images left to right and shifts each of them; pixels shifted in are black."""

    flip: bool  # whether to flip
    shift: int  # largest shift in pixels, up, down, left and right

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw (size, 3) int64: flipped or not, first row and first column of the window."""
        flipped = rng.integers(0, 1 + self.flip, (size, 1))
        starts = rng.integers(0, 1 + 2 * self.shift, (size, 2))
        return torch.from_numpy(np.concatenate([flipped, starts], axis=1))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Apply (B, 3) drawn numbers to (B, C, H, W) images. Keeps shape and dtype."""
        batch, channels, height, width = (torch.arange(size, device=images.device) for size in images.shape)
        flipped, top, left = draws.T[..., None]
        rows, columns = top + height, left + width
        columns = torch.where(flipped.bool(), columns.flip(1), columns)
        index = batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        return pad(images, [self.shift] * 4)[index]


@dataclass(frozen=True)
class Warp:
    """Rotates, scales, shears and distorts each image about its centre, in one bicubic interpolation.

    The elastic distortion displaces a coarse 4×4 grid at random and interpolates the displacements between its points
    (Ronneberger, Fischer and Brox 2015, arXiv 1505.04597; for digits Simard, Steinkraus and Platt 2003). Pixels from
    outside of the image are black.
    """

    rotate: float = 0.0  # largest angle in degrees, in both directions
    scale: float = 0.0  # largest relative change of size: 0.1 scales by 0.9 to 1.1
    shear: float = 0.0  # largest angle in degrees by which vertical lines are slanted, in both directions
    elastic: float = 0.0  # standard deviation in pixels of the grid's displacements, vertically and horizontally
    GRID = 4

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw (size, 3 or 35) float32: angle, size and slant in [-1, 1]; with ``elastic`` 32 displacements."""
        affine = rng.uniform(-1, 1, (size, 3)).astype(np.float32)
        moves = rng.standard_normal((size, 2 * self.GRID**2 if self.elastic else 0), dtype=np.float32)
        return torch.from_numpy(np.concatenate([affine, moves], axis=1))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Apply (B, K) drawn numbers to (B, C, H, W) uint8 or float32 images. Returns float32 of the same shape."""
        angle, size, slant = draws[:, :3].T
        angle, size = angle * math.radians(self.rotate), 1 + size * self.scale
        slant = (slant * math.radians(self.shear)).tan()
        cos, sin, zero = angle.cos() / size, angle.sin() / size, torch.zeros_like(angle)
        # Where each output pixel is read, in coordinates from -1 to 1.
        matrix = torch.stack([cos, sin + slant * cos, zero, -sin, cos - slant * sin, zero], dim=1).view(-1, 2, 3)
        places = affine_grid(matrix, list(images.shape), align_corners=False)
        if self.elastic:
            moves = draws[:, 3:].view(-1, 2, self.GRID, self.GRID)
            moves = interpolate(moves, images.shape[2:], mode="bicubic", align_corners=True)
            places = places + moves.permute(0, 2, 3, 1) * (2 * self.elastic / images.shape[3])
        # Bilinear blurs: networks trained on blurred images did worse on sharp ones, the more the longer they trained.
        warped = grid_sample(images.float(), places, mode="bicubic", align_corners=False)
        return warped.clamp(0, 255)  # bicubic overshoots at edges


@dataclass(frozen=True)
class Erase:
    """Covers a random rectangle of some images with one random grey.

    After random erasing (Zhong et al. 2017, arXiv 1708.04896): 2 to 40 % of the image, or less, with an aspect ratio of
    at most 3.3. Unlike there, the rectangle has one brightness, and is cut off at the edge of the image.
    """

    probability: float  # share of the images, in [0, 1]
    area: float = 0.4  # largest share of the image that is covered, LEAST to 1
    LEAST = 0.02
    RATIO = 10 / 3

    def draw(self, size: int, rng: np.random.Generator) -> Tensor:
        """Draw (size, 6) float32: covered or not, centre row and column, height, width, brightness; all relative."""
        whether = rng.random(size) < self.probability
        down, across, brightness = rng.random((3, size))
        area = rng.uniform(self.LEAST, self.area, size)
        ratio = np.exp(rng.uniform(-1, 1, size) * np.log(self.RATIO))
        draws = [whether, down, across, np.sqrt(area * ratio), np.sqrt(area / ratio), brightness]
        return torch.from_numpy(np.stack(draws, axis=1).astype(np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Apply (B, 6) drawn numbers to (B, C, H, W) images. Keeps shape and dtype."""
        height, width = images.shape[2:]
        rows, columns = ((torch.arange(side, device=images.device) + 0.5) / side for side in (height, width))
        whether, down, across, tall, wide, brightness = draws.T[..., None]
        inside = ((rows - down).abs() < tall / 2)[:, :, None] & ((columns - across).abs() < wide / 2)[:, None]
        covered = (inside & whether[..., None].bool())[:, None]
        return torch.where(covered, (brightness * 255).to(images.dtype)[..., None, None], images)


Change = FlipAndShift | Warp | Erase
