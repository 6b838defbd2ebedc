"""The logits of a validation or a test, for metrics besides loss and accuracy."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cnn_lightning.metrics import metrics_of


class KeepLogits(Callback):
    """Keeps what a network computed in the last validation or test.

    Attributes:
        logits: (N, num_classes) float.
        labels: (N,) int64.
        example: (C, H, W) float: the first test image, as the network sees it.
    """

    logits: Tensor
    labels: Tensor
    example: Tensor

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first image."""
        if not batch_idx:
            self.example = batch[0][0].cpu()

    # Both before the model resets its metrics.
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy them."""
        self._keep(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy them."""
        self._keep(pl_module, "test")

    def _keep(self, pl_module: LightningModule, stage: str) -> None:
        _, logits, labels = (part.cpu() for part in metrics_of(pl_module, stage).gathered())
        self.logits, self.labels = logits[labels >= 0], labels[labels >= 0]
