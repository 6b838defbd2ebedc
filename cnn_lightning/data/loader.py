"""Batches of a dataset that is held in memory."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.data.augment import Augment
from cnn_lightning.errors import UsageError

# The label of an image that counts for nothing; cross-entropy leaves it out.
IGNORED = -100


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

    def draws(self, augment: Augment) -> list[Tensor]:
        """(size, K) numbers for each change: what becomes of each image of the order. Needs a seed."""
        return augment.draw(self.size, np.random.default_rng((self.seed, self.epoch, 1)))


class TensorLoader:
    """Cuts images and labels into batches, each by one indexing operation, on the device where they lie.

    Our own, because torch's DataLoader fetches image by image, which takes longer than training on them, and cannot
    go on in the middle of an epoch.

    Several processes share the images, each taking every ``world_size``-th of the order, so that together their
    batches are those of one process with batches of ``batch_size * world_size``.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batch_size: Images in a batch of one process.
        transform: From (B, C, H, W) uint8 to what the network takes.
        shuffle_seed: Seed of the order, which changes every epoch; None keeps the order of the dataset.
        augment: Changes the images at random, anew every epoch; None leaves them as they are. Needs a shuffle_seed.
        drop_last: Leave out the last batch of an epoch if it is not full, in all processes together.
        even: Give all processes equally many images, because training steps wait for each other: where one is
            missing, the last image of a process is one that counts for nothing, with the label IGNORED.
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
        augment: Augment | None = None,
        drop_last: bool = False,
        even: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.transform = transform
        self.augment = augment
        self.sampler = EpochSampler(len(labels), shuffle_seed)
        self.world_size = world_size
        self.share = slice(rank, None, world_size)
        self.missing = -len(labels) % world_size if even else 0
        self.is_padded = rank >= world_size - self.missing
        share = len(range(rank, len(labels) + self.missing, world_size))
        if drop_last:
            self.num_batches = len(labels) // (batch_size * world_size)
        else:
            self.num_batches = math.ceil(share / batch_size)
        self._given = (0, 0)  # the epoch, and how many of its batches were given out
        self._begun: dict[str, int | None] = {}  # the state of the run that goes on

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (B, C, H, W) float images and (B,) int64 labels.

        Raises:
            UsageError: The epoch was begun by another number of processes.
        """
        order = self._own(self.sampler.order())
        draws = [self._own(drawn) for drawn in self.sampler.draws(self.augment)] if self.augment else []
        for number in range(self._first_batch(), len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            # Several times as fast as self.images[order[part]].
            images, labels = (tensor.index_select(0, order[part]) for tensor in (self.images, self.labels))
            if self.is_padded and part.stop >= len(order):
                labels[-1] = IGNORED
            if self.augment:
                images = self.augment(images, [drawn[part] for drawn in draws])
            self._given = (self.sampler.epoch, number + 1)
            yield self.transform(images), labels

    def state_dict(self) -> dict[str, int | None]:
        """Where it is, for checkpoints."""
        epoch, given = self._given
        return {"seed": self.sampler.seed, "epoch": epoch, "batches": given, "world_size": self.world_size}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Go on in the middle of an epoch, if it is that epoch which comes next."""
        self._begun = state

    def _first_batch(self) -> int:
        begun, self._begun = self._begun, {}
        if begun.get("epoch") != self.sampler.epoch:
            return 0
        if begun["world_size"] != self.world_size:
            raise UsageError(
                f"the epoch was begun by {begun['world_size']} processes, here there are {self.world_size}: change "
                "--trainer.devices or --trainer.num_nodes"
            )
        return begun["batches"]

    def _own(self, of_all: Tensor) -> Tensor:
        """What of an epoch's order, or of what belongs to it, is for this process."""
        return torch.cat([of_all, of_all[: self.missing]])[self.share].to(self.images.device)
