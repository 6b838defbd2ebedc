"""The dataset of a command that names none."""

from typing import Any

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.digits import Digits
from cnn_lightning.data.mnist import MNIST
from cnn_lightning.errors import UsageError


class MNISTOrDigits(MNIST):
    """MNIST if it is on disk or can be downloaded, otherwise Digits: the default where no dataset is named.

    The commands replace it by the dataset that ``choose`` returns.
    """

    @staticmethod
    def choose(**settings: Any) -> tuple[type[ImageDataModule], str]:
        """Return MNIST, downloaded if necessary, and "", or Digits and why it is not MNIST.

        Args:
            settings: Arguments of ImageDataModule.
        """
        mnist = MNIST(**settings)
        try:
            mnist.prepare_data()
        except UsageError as reason:
            return Digits, str(reason)
        return MNIST, ""
