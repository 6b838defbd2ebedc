"""The networks: plain PyTorch and torchvision, one per file, all under the contract of ``ConvNet``."""

from cnn_lightning.nets.base import ConvNet
from cnn_lightning.nets.deep_cnn import DeepCNN
from cnn_lightning.nets.dropout_cnn import DropoutCNN
from cnn_lightning.nets.fast_cnn import FastCNN
from cnn_lightning.nets.lenet_cnn import LeNetCNN
from cnn_lightning.nets.mlp import MLP
from cnn_lightning.nets.resnet_cnn import ResNetCNN
from cnn_lightning.nets.sigmoid_cnn import SigmoidCNN
from cnn_lightning.nets.torchvision_net import TorchvisionNet
from cnn_lightning.nets.two_layer_cnn import TwoLayerCNN
from cnn_lightning.nets.vgg_cnn import VGGCNN
from cnn_lightning.nets.wide_cnn import WideCNN

__all__ = [
    "MLP",
    "VGGCNN",
    "ConvNet",
    "DeepCNN",
    "DropoutCNN",
    "FastCNN",
    "LeNetCNN",
    "ResNetCNN",
    "SigmoidCNN",
    "TorchvisionNet",
    "TwoLayerCNN",
    "WideCNN",
]
