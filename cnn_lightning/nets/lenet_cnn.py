"""The network of article 003."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_dropout, check_positive, conv_block, side_after


class LeNetCNN(ConvNet):
    """A network in the style of LeNet-5: two convolutions and three linear layers.

    For article 003, a MNIST tutorial whose text names only the kinds of layers (Conv2d, ReLU); their order is that
    of LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with ReLU and
    max-pooling instead of tanh and subsampling.

    ================  ============
    layer             output
    ================  ============
    image             1 × 28 × 28
    conv 5×5          6 × 24 × 24
    max-pool 2, ReLU  6 × 12 × 12
    conv 5×5          12 × 8 × 8
    max-pool 2, ReLU  12 × 4 × 4
    flatten           192
    linear, ReLU      120
    linear, ReLU      60
    linear            10
    ================  ============

    32,998 weights; 33,034 with batch normalisation; 44,710 with kernels of 3×3.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels, at least 16 with kernels of 5×5.
        kernel_size: Side of both convolutions' kernels in pixels.
        batch_norm: Normalise each batch after both convolutions.
        dropout: Share of the 120 and of the 60 values that is dropped in training, in [0, 1).

    Raises:
        ValueError: ``kernel_size`` or ``dropout`` is not possible.
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
        check_dropout(dropout)
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, kernel_size, batch_norm=batch_norm),
            *conv_block(6, 12, kernel_size, batch_norm=batch_norm),
        )
        self.head = nn.Sequential(
            nn.Linear(12 * side_after(self.features, image_size) ** 2, 120),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(120, 60),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(60, num_classes),
        )
