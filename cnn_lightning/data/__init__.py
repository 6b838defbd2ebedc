"""The datasets as LightningDataModules: whole in memory, cut into batches by indexing."""

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.digits import Digits
from cnn_lightning.data.fashion_mnist import FashionMNIST
from cnn_lightning.data.mnist import MNIST

__all__ = ["MNIST", "Digits", "FashionMNIST", "ImageDataModule"]
