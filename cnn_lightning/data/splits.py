"""Stratified splits of a dataset."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.errors import UsageError


def split_off(
    labels: Tensor, size: int | float | None, seed: int, argument: str, class_names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Split validation or test images off the training images at random, stratified.

    Args:
        labels: (N,) int64 labels of the training images.
        size: A count, or a fraction of the training images.
        seed: Chooses the images.
        argument: Name of ``size``, for messages: "val_size" or "test_size".
        class_names: The classes, by label.

    Returns:
        Indices of the remaining training images, and of those split off, int64.

    Raises:
        UsageError: The size, or a class, leaves too few images for one of the two.
    """
    total, least = len(labels), len(class_names)
    purpose = {"val_size": "validation", "test_size": "the test"}[argument]
    count = round(size * total) if isinstance(size, float) and math.isfinite(size) else size
    if count is None or not least <= count <= total - least:
        left = f"at least {least} of the {total:,} training images for {purpose} and for training"
        raise UsageError(f"{argument} is {size}, expected a count or a fraction that leaves {left}", argument)
    counts = labels.bincount(minlength=least)
    too_few = counts == 1  # scikit-learn refuses these
    if not too_few.any():
        rest, part = stratified_split(labels, int(count), seed)
        left_empty = [labels[indices].bincount(minlength=least) == 0 for indices in (rest, part)]
        too_few = (counts > 0) & (left_empty[0] | left_empty[1])
    if too_few.any():
        label = int(too_few.nonzero()[0])
        raise UsageError(
            f"class {class_names[label]} has too few images ({counts[label]}) to have some for {purpose} and some for "
            f"training where {argument} is {size}: add images of it, or enlarge {argument}",
            argument,
        )
    return rest, part


def stratified_split(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``count`` of (N,) labels off at random, stratified; return the indices of the rest and of those."""
    from sklearn.model_selection import train_test_split  # imported here because it is slow to import

    split = train_test_split(np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels.numpy())
    rest, part = (torch.from_numpy(indices) for indices in split)
    return rest, part
