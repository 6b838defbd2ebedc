"""The network of article 000."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, side_after


class SigmoidCNN(ConvNet):
    """Two convolutions without activation, and a sigmoid on the scores.

    From article 000, by Adwait Dathan R (Analytics Vidhya, 2021). The sigmoid keeps every score between 0 and 1,
    so that softmax never gives a class more than e / (e + 9) = 23 %: the cross-entropy cannot fall below 1.46.

    ======================  ============
    layer                   output
    ======================  ============
    image                   1 × 28 × 28
    conv 5×5                6 × 24 × 24
    max-pool 2              6 × 12 × 12
    conv 5×5                10 × 8 × 8
    max-pool 2              10 × 4 × 4
    flatten                 160
    linear, ReLU            56
    linear, sigmoid         10
    ======================  ============

    11,252 weights.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels, at least 16.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 10, kernel_size=5),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(10 * side_after(self.features, image_size) ** 2, 56),
            nn.ReLU(),
            nn.Linear(56, num_classes),
            nn.Sigmoid(),
        )
