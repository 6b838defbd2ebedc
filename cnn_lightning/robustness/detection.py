"""Detection of images that show something else, from the network's own confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Detection:
    """How well a score tells the images of the dataset from others; a perfect one has an AUROC of 1, chance 0.5.

    Args:
        auroc: Probability that an image of the dataset has a higher score than another one, ties counted half.
        fpr95: Share of the other images with a score as high as those of 95 % of the images of the dataset.
        answered: Share of the other images with a score of at least the threshold.

    Source: Hendrycks and Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples,
        arXiv 1610.02136.
    """

    auroc: float
    fpr95: float
    answered: float


def detect(scores: Tensor, other_scores: Tensor, threshold: float) -> Detection:
    """Measure how well a score tells images of the dataset from others.

    Args:
        scores: (N,) float64, of images of the dataset.
        other_scores: (M,) float64, of other images.
        threshold: An image is answered if its score is at least as high.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # imported here because it is slow to import

    is_known = np.repeat([1, 0], [len(scores), len(other_scores)])
    both = torch.cat([scores, other_scores]).numpy()
    false, true, _ = roc_curve(is_known, both, drop_intermediate=False)
    fpr95 = float(false[np.argmax(true >= 0.95)])
    return Detection(float(roc_auc_score(is_known, both)), fpr95, (other_scores >= threshold).double().mean().item())


def noise(count: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Draw (count, C, H, W) uint8 images whose values are uniform and independent."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8))
