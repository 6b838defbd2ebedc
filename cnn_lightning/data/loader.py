"""Batches of a dataset that is held in memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.data.augment import Change
from cnn_lightning.errors import UsageError

IGNORED = -100  # label of an image that does not count; cross-entropy skips it


@dataclass
class EpochSampler:
    """Order of the images in an epoch, which depends on seed and epoch alone.

    A resumed run therefore sees the same order, and every process knows the order of all.
    """

    size: int
    seed: int | None = None  # None keeps the order of the dataset
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Lightning calls this before each one."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the (size,) int64 indices of all images."""
        if self.seed is None:
            return torch.arange(self.size)
        # numpy mixes the two numbers; seeding torch with their sum would give seed 1 the orders of seed 0 again.
        return torch.from_numpy(np.random.default_rng((self.seed, self.epoch)).permutation(self.size))

    def draws(self, changes: Sequence[Change]) -> list[Tensor]:
        """Return the (size, K) random numbers of each change, in the order of the epoch."""
        assert self.seed is not None, "augmentation needs a seed"
        rng = np.random.default_rng((self.seed, self.epoch, 1))
        return [change.draw(self.size, rng) for change in changes]


@dataclass(eq=False)
class TensorLoader:
    """Indexes batches out of images and labels, on their device.

    Custom because torch's DataLoader collects image by image, which takes longer than training on them, and cannot
    resume in the middle of an epoch.

    With several processes, each takes every ``world_size``-th image of the order. Together, their batches are those of
    one process with batches of ``batch_size * world_size``.
    """

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    batch_size: int  # of one process
    transform: Callable[[Tensor], Tensor]  # maps (B, C, H, W) uint8 to the network's input
    shuffle_seed: int | None = None  # of the order, new in every epoch; None keeps the order of the dataset
    augment: Sequence[Change] = ()  # random changes, new in every epoch; they need a shuffle_seed
    drop_last: bool = False  # skip the last batch of an epoch if it is not full, in all processes together
    # Training steps wait for each other: give all processes the same number of images. Where one is missing, the last
    # image of a process gets the label IGNORED.
    even: bool = False
    rank: int = 0
    world_size: int = 1
    batch_sampler = None  # Lightning reads it, and sets the epoch of the sampler

    def __post_init__(self) -> None:
        self.sampler = EpochSampler(len(self.labels), self.shuffle_seed)
        missing = -len(self.labels) % self.world_size if self.even else 0
        self.is_padded = self.rank >= self.world_size - missing
        # Places in the order, which starts again at its end.
        self.share = torch.arange(self.rank, len(self.labels) + missing, self.world_size) % len(self.labels)
        self._yielded = {"epoch": 0, "batches": 0}
        self._resume_position: dict[str, Any] = {}

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.labels) // (self.batch_size * self.world_size)
        return math.ceil(len(self.share) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, C, H, W) float images and (B,) int64 labels.

        Raises:
            UsageError: The epoch to resume was started with another number of processes.
        """
        device = self.images.device
        order = self.sampler.order()[self.share].to(device)
        draws = self.sampler.draws(self.augment) if self.augment else []
        draws = [drawn[self.share].to(device) for drawn in draws]
        for number in range(self._first_batch(), len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            # Several times as fast as self.images[order[part]].
            images, labels = (tensor.index_select(0, order[part]) for tensor in (self.images, self.labels))
            if self.is_padded and part.stop >= len(order):
                labels[-1] = IGNORED
            for change, drawn in zip(self.augment, draws, strict=True):
                images = change(images, drawn[part])
            self._yielded = {"epoch": self.sampler.epoch, "batches": number + 1}
            yield self.transform(images), labels

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, for checkpoints: "seed", "epoch", "batches" and "world_size"."""
        return {"seed": self.sampler.seed, **self._yielded, "world_size": self.world_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next epoch at a saved position, if it is in that epoch, and shuffle as the saved run does."""
        self._resume_position = state
        if self.sampler.seed is not None and state.get("seed") is not None:
            self.sampler.seed = state["seed"]

    def _first_batch(self) -> int:
        position, self._resume_position = self._resume_position, {}
        if position.get("epoch") != self.sampler.epoch:
            return 0
        if (started := position["world_size"]) != self.world_size:
            message = f"the epoch was started with {started} processes, now there are {self.world_size}"
            raise UsageError(message, "devices")
        return position["batches"]
