"""The baseline without convolutions."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_positive, linear_block


class MLP(ConvNet):
    """A fully connected network, the baseline for the CNNs.

    The articles of ``SigmoidCNN`` and ``WideCNN`` compare theirs with it: each pixel has weights of its own, so it has
    to learn a shape anew at every position, and needs many more parameters. Layers and their outputs for an image of
    1 × 28 × 28::

        flatten       784
        linear, ReLU  128
        linear        10

    101,770 parameters.

    Args:
        width: Units of the hidden layer.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, width: int = 128) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(width=width)
        self.features = nn.Identity()
        flat = in_channels * image_size**2
        self.head = nn.Sequential(*linear_block(flat, width), nn.Linear(width, num_classes))
