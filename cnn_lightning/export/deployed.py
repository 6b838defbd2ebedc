"""The network as other programs see it: from pixels to scores and probabilities."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Deployed(nn.Module):
    """A network with padding and normalisation before it, and calibrated probabilities after it.

    Args:
        net: Maps (B, C, H, W) float32 images to (B, num_classes) float32 scores; in evaluation mode, on the CPU.
        scale: Factor of the pixels, one number a channel.
        shift: Added to the pixels after that, one number a channel.
        pad: Black pixels that are added on every side of an image first.
        temperature: Divides the scores before the softmax.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, net: nn.Module, scale: Sequence[float], shift: Sequence[float], pad: int = 0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.net, self.pad, self.temperature = net, pad, temperature
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and probabilities: (B, C, H, W) uint8 -> (B, num_classes) float32, both; rows sum to 1."""
        scores = self.net(self.prepare(images))
        return scores, (scores / self.temperature).softmax(dim=1)

    def prepare(self, images: Tensor) -> Tensor:
        """Pad and normalise (B, C, H, W) uint8 images for the network."""
        pixels = functional.pad(images.float(), [self.pad] * 4) if self.pad else images.float()
        return pixels * self.scale + self.shift


def pool_last(net: nn.Module) -> nn.Module:
    """Return a copy of a network in which max-pooling follows batch normalisation and ReLU instead of preceding them.

    The result is the same, because neither changes which of several values is the largest; batch normalisation only
    where all its factors are positive. Both then follow a convolution directly and become part of it.
    """
    net = copy.deepcopy(net)
    for block in net.modules():
        if isinstance(block, nn.Sequential) and type(block).forward is nn.Sequential.forward:
            layers = list(block)
            for place in range(len(layers) - 1):
                if isinstance(layers[place], nn.MaxPool2d) and _keeps_order(layers[place + 1]):
                    layers[place : place + 2] = layers[place + 1], layers[place]
            for place, layer in enumerate(layers):
                block[place] = layer
    return net


def _keeps_order(layer: nn.Module) -> bool:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.weight is not None and bool((layer.weight >= 0).all())
    return isinstance(layer, nn.ReLU)
