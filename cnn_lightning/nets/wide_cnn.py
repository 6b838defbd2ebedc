"""Article 001: a wide network."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_positive, conv_block, side_after


class WideCNN(ConvNet):
    """Two wide convolutions, dropout and two linear layers.

    Without an activation between them, the two linear layers are one linear map of rank at most 10. Layers and their
    outputs for an image of 1 × 28 × 28::

        conv 5×5 pad 2    32 × 28 × 28
        max-pool 2, ReLU  32 × 14 × 14
        conv 5×5 pad 2    64 × 14 × 14
        max-pool 2, ReLU  64 × 7 × 7
        flatten           3,136
        dropout 0.5       3,136
        linear            1,000
        linear            10

    3,199,106 parameters; image_size at least 4.
    Source: article 001, "Implementing Convolutional Neural Network (CNN) using Python" (Another Techs).

    Args:
        width: Feature maps of the first convolution; the second has twice as many.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, width: int = 32) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(width=width)
        self.features = nn.Sequential(
            *conv_block(in_channels, width, kernel_size=5, padding=2),
            *conv_block(width, 2 * width, kernel_size=5, padding=2),
        )
        flat = 2 * width * side_after(self.features, image_size) ** 2
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(flat, 1000), nn.Linear(1000, num_classes))
