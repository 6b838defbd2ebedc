"""The datasets as LightningDataModules: whole in memory, cut into batches by indexing."""

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.digits import Digits
from cnn_lightning.data.emnist import EMNIST
from cnn_lightning.data.fashion_mnist import FashionMNIST
from cnn_lightning.data.image_folder import ImageFolder
from cnn_lightning.data.kmnist import KMNIST
from cnn_lightning.data.mnist import MNIST
from cnn_lightning.data.qmnist import QMNIST

__all__ = ["EMNIST", "KMNIST", "MNIST", "QMNIST", "Digits", "FashionMNIST", "ImageDataModule", "ImageFolder"]
