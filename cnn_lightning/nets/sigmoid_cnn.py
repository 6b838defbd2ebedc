"""Article 000: a network with a sigmoid on its scores."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, linear_block, side_after


class SigmoidCNN(ConvNet):
    """Two convolutions without activation, and a sigmoid on the scores.

    The sigmoid keeps every score between 0 and 1, so softmax never assigns a class more than e / (e + 9) = 23 %, and
    the cross-entropy cannot fall below 1.46. Layers and their outputs for an image of 1 × 28 × 28::

        conv 5×5         6 × 24 × 24
        max-pool 2       6 × 12 × 12
        conv 5×5         10 × 8 × 8
        max-pool 2       10 × 4 × 4
        flatten          160
        linear, ReLU     56
        linear, sigmoid  10

    11,252 parameters; image_size at least 16.
    Source: article 000, "A Hands-on Guide to Build Your First Convolutional Neural Network Model" by Adwait Dathan R
    (Analytics Vidhya, 2021).
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5), nn.MaxPool2d(2), nn.Conv2d(6, 10, kernel_size=5), nn.MaxPool2d(2)
        )
        flat = 10 * side_after(self.features, image_size) ** 2
        self.head = nn.Sequential(*linear_block(flat, 56), nn.Linear(56, num_classes), nn.Sigmoid())
