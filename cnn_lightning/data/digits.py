"""Digits: handwritten digits that come with scikit-learn."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.photos import Preparation
from cnn_lightning.data.splits import stratified_split


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8×8 pixels, enlarged to 28×28; nothing is downloaded.

    The test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine Learning
    Repository), which scikit-learn ships as ``load_digits``. It has no official split: the test set is a fixed,
    stratified choice of 360 images.
    """

    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    # Strokes of 4.4 pixels become as wide by the cells as those of the dataset, 5.6; a test measures both.
    preparation = Preparation(box=28, centre_by_mass=False, strokes=True, cells=8, stroke_width=4.4)
    MEAN, STD = 0.3054, 0.3247  # of the 1,437 training images; a test recomputes them

    def prepare_data(self) -> None:
        """Do nothing: ``root`` is of no use."""

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the 1,437 training images or the 360 test images."""
        from sklearn.datasets import load_digits  # imported here because it is slow to import

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        images = interpolate(images, size=self.SIDE, mode="bilinear").round().to(torch.uint8)
        rest, test = stratified_split(labels, count=360, seed=0)
        indices = rest if train else test
        return images[indices], labels[indices]
