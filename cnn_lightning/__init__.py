"""CNNs for MNIST and Fashion-MNIST, trained with PyTorch Lightning."""

from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.data import MNIST, Digits, FashionMNIST
from cnn_lightning.nets import MLP, DropoutCNN, FastCNN, LeNetCNN, SigmoidCNN, TwoLayerCNN, WideCNN

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "MNIST",
    "Digits",
    "DropoutCNN",
    "FashionMNIST",
    "FastCNN",
    "ImageClassifier",
    "LeNetCNN",
    "SigmoidCNN",
    "TwoLayerCNN",
    "WideCNN",
]
