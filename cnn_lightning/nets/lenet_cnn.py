"""Article 003: a network in the style of LeNet-5."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_positive, conv_block, linear_block, side_after


class LeNetCNN(ConvNet):
    """A network in the style of LeNet-5: two convolutions and three linear layers.

    The article names only the kinds of layers (Conv2d, ReLU). Their order is that of LeNet-5 (LeCun et al. 1998,
    "Gradient-based learning applied to document recognition"), with ReLU and max-pooling instead of tanh and
    subsampling. Layers and their outputs for an image of 1 × 28 × 28::

        conv 5×5          6 × 24 × 24
        max-pool 2, ReLU  6 × 12 × 12
        conv 5×5          12 × 8 × 8
        max-pool 2, ReLU  12 × 4 × 4
        flatten           192
        linear, ReLU      120
        linear, ReLU      60
        linear            10

    32,998 parameters; 33,034 with batch normalisation; 44,710 with 3×3 kernels. image_size at least 16 for 5×5 kernels.
    Source: article 003, "Image Classification using PyTorch" (Digital Tesseract).

    Args:
        kernel_size: Side of the kernels of both convolutions in pixels.
        batch_norm: Apply batch normalisation after both convolutions.
        dropout: Probability of dropout after both hidden linear layers, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        kernel_size: int = 5,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(kernel_size=kernel_size)
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, kernel_size, batch_norm=batch_norm),
            *conv_block(6, 12, kernel_size, batch_norm=batch_norm),
        )
        flat = 12 * side_after(self.features, image_size) ** 2
        self.head = nn.Sequential(
            *linear_block(flat, 120, dropout), *linear_block(120, 60, dropout), nn.Linear(60, num_classes)
        )
