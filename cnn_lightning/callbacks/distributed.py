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
    logits: Tensor, labels: Tensor, strategy: Strategy, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of a batch where the ranks have different numbers of images.

    DistributedDataParallel averages the gradients of the ranks, so that the mean over each rank's images would weight
    an image of a small batch more.

    Args:
        logits: (B, num_classes) float.
        labels: (B,) int64; negative labels are padding and ignored.
        strategy: The Trainer's.
        weight: (num_classes,) float: weights of the classes. Defaults to equal weights.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1).

    Returns:
        () float: the loss whose mean over the ranks is the mean over all images, and () float: the sum over the images
        of this rank.
    """
    total = cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="sum")
    valid = labels[labels >= 0]
    share = (labels >= 0).sum() if weight is None else weight[valid].sum()
    images = strategy.reduce(share.clone(), reduce_op="sum")
    # As one process measures it: the (weighted) mean times the number of images.
    measured = total if weight is None else total / share * len(valid)
    return total * torch.distributed.get_world_size() / images, measured
