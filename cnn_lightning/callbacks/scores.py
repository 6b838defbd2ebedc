"""The scores of a test, for figures beyond loss and accuracy."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class KeepScores(Callback):
    """Keeps what a network gives for the test images.

    Attributes:
        scores: (N, num_classes) float, after a test.
        labels: (N,) int64.
    """

    scores: Tensor
    labels: Tensor

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them before they are computed to loss and accuracy."""
        _, self.scores, self.labels = (noted.cpu() for noted in pl_module.test_metrics.noted())
