"""The networks, one per file: plain PyTorch and torchvision, each a subclass of ``ConvNet``."""

from cnn_lightning.nets.base import ConvNet as ConvNet
from cnn_lightning.nets.deep_cnn import DeepCNN as DeepCNN
from cnn_lightning.nets.dropout_cnn import DropoutCNN as DropoutCNN
from cnn_lightning.nets.fast_cnn import FastCNN as FastCNN
from cnn_lightning.nets.lenet_cnn import LeNetCNN as LeNetCNN
from cnn_lightning.nets.mlp import MLP as MLP
from cnn_lightning.nets.resnet_cnn import ResNetCNN as ResNetCNN
from cnn_lightning.nets.sigmoid_cnn import SigmoidCNN as SigmoidCNN
from cnn_lightning.nets.torchvision_net import TorchvisionNet as TorchvisionNet
from cnn_lightning.nets.two_layer_cnn import TwoLayerCNN as TwoLayerCNN
from cnn_lightning.nets.vgg_cnn import VGGCNN as VGGCNN
from cnn_lightning.nets.wide_cnn import WideCNN as WideCNN
