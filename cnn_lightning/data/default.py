"""The dataset of a command that names none."""

from typing import Any

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.digits import Digits
from cnn_lightning.data.mnist import MNIST
from cnn_lightning.errors import UsageError


class MNISTOrDigits(MNIST):
    """MNIST if it is on disk or can be downloaded, otherwise Digits: what is used where no dataset is named.

    The commands replace it by the one it stands for, see ``choose``.
    """

    @staticmethod
    def choose(**settings: Any) -> tuple[type[ImageDataModule], str]:
        """Choose the dataset, and download it if need be.

        Args:
            settings: The arguments of ImageDataModule.

        Returns:
            MNIST or Digits, and why it is not MNIST ("" if it is).
        """
        mnist = MNIST(**settings)
        try:
            mnist.prepare_data()
        except UsageError as reason:
            return Digits, str(reason)
        return MNIST, ""
