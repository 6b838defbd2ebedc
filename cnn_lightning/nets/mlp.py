"""The baseline without convolutions."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_positive


class MLP(ConvNet):
    """A fully connected network: the baseline that the CNNs are measured against.

    Articles 000 and 001 set their networks against it: every pixel has its own weights, so that it has to learn a
    shape anew at every place of the image, and needs many more weights for it.

    ============  ===========
    layer         output
    ============  ===========
    image         1 × 28 × 28
    flatten       784
    linear, ReLU  128
    linear        10
    ============  ===========

    101,770 weights.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels.
        width: Units of the hidden layer.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, width: int = 128) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(width=width)
        self.features = nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(in_channels * image_size**2, width),
            nn.ReLU(),
            nn.Linear(width, num_classes),
        )
