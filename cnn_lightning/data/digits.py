"""Digits: handwritten digits that come with scikit-learn."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnn_lightning.data.base import ImageDataModule, stratified_split
from cnn_lightning.data.photos import Preparation


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8×8 pixels, enlarged to 28×28: there is nothing to download.

    They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine
    Learning Repository), which scikit-learn ships as ``load_digits``. It has no official split: here 360 images,
    always the same ones and of every class the same share, are the test set.
    """

    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    preparation = Preparation(box=28, centre_by_mass=False, strokes=True, cells=8)
    # Computed from the 1,437 training images as read() gives them; a test computes them again.
    MEAN, STD = 0.3054, 0.3247

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the 1,437 training images or the 360 test images."""
        # Here, not above, so that only who uses the digits waits for scikit-learn.
        from sklearn.datasets import load_digits

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        images = interpolate(images, size=self.SIDE, mode="bilinear").round().to(torch.uint8)
        train_indices, test_indices = stratified_split(labels, count=360, seed=0)
        indices = train_indices if train else test_indices
        return images[indices], labels[indices]
