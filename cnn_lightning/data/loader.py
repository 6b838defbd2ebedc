"""Batches of a dataset that is held in memory."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.data.augment import FlipAndShift


class EpochSampler:
    """The order of the images in an epoch, a function of the seed and the epoch alone.

    So a resumed run sees the same images in the same order, and every process knows the order of all.

    Args:
        size: Number of images.
        seed: Seed of the order; None keeps the order of the dataset in every epoch.
    """

    def __init__(self, size: int, seed: int | None = None) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """(size,) int64: the indices of all images, each once."""
        if self.seed is None:
            return torch.arange(self.size)
        # numpy mixes the two numbers; seeding torch with their sum would give seed 1 the orders of seed 0 again.
        return torch.from_numpy(np.random.default_rng((self.seed, self.epoch)).permutation(self.size))

    def draws(self, augment: FlipAndShift) -> Tensor:
        """(size, 3) int64: what becomes of each image of the order. Needs a seed."""
        return augment.draw(self.size, np.random.default_rng((self.seed, self.epoch, 1)))


class TensorLoader:
    """Cuts images and labels into batches, each by one indexing operation, on the device where they lie.

    Our own, because torch's DataLoader fetches image by image, which takes longer than training on them.

    Several processes share the images, each taking every ``world_size``-th of the order, so that together their
    batches are those of one process with batches of ``batch_size * world_size``.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: Images in a batch of one process.
        transform: From (B, C, H, W) uint8 to what the network takes.
        shuffle_seed: Seed of the order, which changes every epoch; None keeps the order of the dataset.
        augment: Changes the images at random, anew every epoch; None leaves them as they are. Needs a shuffle_seed.
        drop_last: Leave out the last batch of an epoch if it is not full.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        sampler: The order of the images. Lightning sets its epoch.
        batch_sampler: None; Lightning asks for it where there is a sampler.
    """

    batch_sampler = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        transform: Callable[[Tensor], Tensor],
        shuffle_seed: int | None = None,
        augment: FlipAndShift | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.transform = transform
        self.augment = augment
        self.sampler = EpochSampler(len(labels), shuffle_seed)
        self.share = slice(rank, None, world_size)
        if shuffle_seed is None:
            available = len(range(rank, len(labels), world_size))
        else:
            # Training steps wait for each other, so all processes take as many as the one with the smallest share.
            available = len(labels) // world_size
        full, rest = divmod(available, batch_size)
        self.num_batches = full + (rest > 0 and not drop_last)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, C, H, W) float images and (B,) int64 labels."""
        order = self.sampler.order()[self.share].to(self.images.device)
        draws = self.sampler.draws(self.augment)[self.share].to(order.device) if self.augment else None
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            # Several times as fast as self.images[order[part]].
            images, labels = (tensor.index_select(0, order[part]) for tensor in (self.images, self.labels))
            if draws is not None:
                images = self.augment(images, draws[part])
            yield self.transform(images), labels
