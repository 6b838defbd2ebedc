"""Loss and accuracy, measured in every step at next to no cost."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images: to the bit what MeanMetric and MulticlassAccuracy give.

    Our own, because those two take 0.2 ms for a batch, as long as some layers of a small network. This one only
    notes what a batch gave, and computes where a value is wanted: nothing waits for the device before.
    """

    def __init__(self) -> None:
        super().__init__()
        for state in ("losses", "scores", "labels"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Note a batch, or several.

        Args:
            loss: () float: loss of the batch, summed over its images; (M,) float: that of M batches.
            scores: (B, num_classes) float: one score per class, the highest for the predicted one.
            labels: (B,) int64; negative where an image counts for nothing.
        """
        self.losses.append(loss.detach().float())
        self.scores.append(scores.detach().clone())  # CUDA graphs write the next scores in the same place
        self.labels.append(labels)

    @property
    def images(self) -> int:
        """Number of images noted by this process."""
        return sum(map(len, self.labels))

    def noted(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that was noted, of the first process before the next.

        Returns:
            What ``update`` takes: (M,) losses of the batches, (N, num_classes) scores and (N,) labels.
        """
        with self.sync_context():
            return dim_zero_cat(self.losses), dim_zero_cat(self.scores), dim_zero_cat(self.labels)

    def compute(self) -> dict[str, Tensor]:
        """Compute the means over all images noted, of all processes.

        Returns:
            ``loss`` and ``acc``, () float32, the second in [0, 1], and ``images``, their number. The loss is NaN if
            that of a batch was.
        """
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        correct, images = (scores.argmax(dim=1) == labels).sum(), (labels >= 0).sum()
        return {"loss": sum(dim_zero_cat(self.losses)) / images, "acc": correct / images, "images": images}
