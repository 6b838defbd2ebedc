"""CNNs for MNIST and Fashion-MNIST, trained with PyTorch Lightning."""

from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.data import MNIST, Digits, FashionMNIST
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

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "MNIST",
    "VGGCNN",
    "DeepCNN",
    "Digits",
    "DropoutCNN",
    "FashionMNIST",
    "FastCNN",
    "ImageClassifier",
    "LeNetCNN",
    "ResNetCNN",
    "SigmoidCNN",
    "TorchvisionNet",
    "TwoLayerCNN",
    "WideCNN",
]
