"""CNNs for MNIST and Fashion-MNIST, trained with PyTorch Lightning.

Importing the package imports every class that one of its checkpoints may name.
"""

from cnn_lightning import cores as cores  # before anything that imports PyTorch
from cnn_lightning import optimizers as optimizers
from cnn_lightning import schedules as schedules
from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.data import EMNIST, KMNIST, MNIST, QMNIST, Digits, FashionMNIST, ImageFolder
from cnn_lightning.nets import (
    MLP,
    VGGCNN,
    DeepCNN,
    DropoutCNN,
    FastCNN,
    LeNetCNN,
    ResNetCNN,
    SigmoidCNN,
    TorchvisionNet,
    TwoLayerCNN,
    WideCNN,
)
from cnn_lightning.optim import ConvMuon, Cosine, OneCycle

__version__ = "0.2.0.dev0"
__all__ = [
    "EMNIST",
    "KMNIST",
    "MLP",
    "MNIST",
    "QMNIST",
    "VGGCNN",
    "ConvMuon",
    "Cosine",
    "DeepCNN",
    "Digits",
    "DropoutCNN",
    "FashionMNIST",
    "FastCNN",
    "ImageClassifier",
    "ImageFolder",
    "LeNetCNN",
    "OneCycle",
    "ResNetCNN",
    "SigmoidCNN",
    "TorchvisionNet",
    "TwoLayerCNN",
    "WideCNN",
]
