"""``evaluate.py --shift``: accuracy on test images that are shifted."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.data import ImageDataModule
from cnn_lightning.data.augment import FlipAndShift
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.evaluation import Evaluation

# "up to" and "corner" -> (pixels, accuracy).
AccuracyByShift = Mapping[str, Sequence[tuple[int, float]]]


def check_room(data: ImageDataModule, most: int) -> None:
    """Make sure that test images shifted by so many pixels are not cut at the edge.

    Raises:
        UsageError: They would be.
    """
    drawn = data.part("test")[0].amax(dim=(0, 1)) > 0
    rows, columns = drawn.any(dim=1), drawn.any(dim=0)
    room = min(int(line.nonzero().min()) for line in (rows, rows.flip(0), columns, columns.flip(0)))
    if most > room:
        pad = getattr(data, "pad", 0) + most - room
        raise UsageError(
            f"--shift {most} would cut the test images at the edge, {room} pixels away: use a network that was trained "
            f"with --data.pad {pad}"
        )


def accuracy_by_shift(
    data: ImageDataModule, test_on: Callable[[Tensor], Evaluation], unshifted: float, most: int
) -> AccuracyByShift:
    """Measure accuracy on test images shifted by up to n pixels at random, and by n pixels into each corner.

    Args:
        data: The dataset.
        test_on: Tests the network on (N, C, H, W) images.
        unshifted: Accuracy on the images as they are.
        most: The greatest n in pixels.
    """
    images, _ = data.part("test")
    up_to, corner = [(0, unshifted)], [(0, unshifted)]
    for pixels in range(1, most + 1):
        shift = FlipAndShift(flip=False, shift=pixels)
        anywhere = shift.draw(len(images), np.random.default_rng((0, pixels)))
        corners = [torch.tensor([0, *start]) for start in itertools.product((0, 2 * pixels), repeat=2)]
        up_to.append((pixels, test_on(shift(images, anywhere)).accuracy))
        accuracies = [test_on(shift(images, start.expand(len(images), 3))).accuracy for start in corners]
        corner.append((pixels, float(np.mean(accuracies))))
    return {"up to": up_to, "corner": corner}


def shift_table(shifts: Mapping[str, AccuracyByShift]) -> str:
    """Format the results of several networks, by name, as lines of text."""
    lines = ["", "Accuracy on test images shifted by n pixels"]
    for name, by_shift in shifts.items():
        lines += [name, f"{'n':<12}" + "".join(f"{pixels:>8}" for pixels, _ in by_shift["up to"])]
        for kind, points in by_shift.items():
            lines.append(f"{kind:<12}" + "".join(f"{accuracy:>8.2%}" for _, accuracy in points))
    return "\n".join(lines)
