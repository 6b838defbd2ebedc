"""What training in several processes needs besides DistributedDataParallel."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.nn.functional import cross_entropy

from cnn_lightning.lightning_fixes import sync_buffers_in_training_only


class DistributedCorrections(Callback):
    """Keeps the batch statistics of several ranks equal where it matters: in validation, and in what is saved."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch off DistributedDataParallel's own synchronisation, which could hang in validation."""
        sync_buffers_in_training_only(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Broadcast rank 0's buffers so that all ranks validate the saved weights."""
        for buffer in pl_module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def loss_over_ranks(
    logits: Tensor, labels: Tensor, label_smoothing: float, strategy: Strategy
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of a batch where the ranks have different numbers of images.

    DistributedDataParallel averages the gradients of the ranks, so that the mean over each rank's images would weight
    an image of a small batch more.

    Args:
        logits: (B, num_classes) float.
        labels: (B,) int64; negative labels are padding and ignored.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).
        strategy: The Trainer's.

    Returns:
        () float: the loss whose mean over the ranks is the mean over all images, and () float: the sum over the images
        of this rank.
    """
    total = cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
    images = strategy.reduce((labels >= 0).sum(), reduce_op="sum")
    return total * torch.distributed.get_world_size() / images, total
