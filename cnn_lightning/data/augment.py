"""Random changes of training images, a batch at a time and every image in its own way.

Our own, because torchvision's transforms change all images of a batch in the same way.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


class FlipAndShift:
    """Mirrors half of the images left to right, and moves each by some pixels; what comes in at the edge is black.

    What happens to an image is drawn beforehand for a whole epoch, so that it follows from seed and epoch alone.

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
