"""The network of article 004."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_dropout, conv_block, side_after


class TwoLayerCNN(ConvNet):
    """Two convolutions and one linear layer.

    From article 004, "CNNs with PyTorch: a 2-layer convolutional neural network with Fashion MNIST dataset", by
    Augusto de Nevrezé (2021), which proposes smaller kernels and batch normalisation as next steps.

    ================  ============
    layer             output
    ================  ============
    image             1 × 28 × 28
    conv 5×5 pad 2    16 × 28 × 28
    max-pool 2, ReLU  16 × 14 × 14
    conv 5×5 pad 2    32 × 14 × 14
    max-pool 2, ReLU  32 × 7 × 7
    flatten           1,568
    linear            10
    ================  ============

    28,938 weights; 29,054 with batch normalisation; 20,490 with kernels of 3×3.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels, at least 4.
        kernel_size: Side of both convolutions' kernels in pixels, odd, so that padding keeps the size of the image.
        batch_norm: Normalise each batch after both convolutions and after the linear layer. Training then needs
            batches of at least 2 images.
        dropout: Share of the 1,568 features that is dropped in training, in [0, 1).

    Raises:
        ValueError: ``kernel_size`` is not a positive odd number, or ``dropout`` is not possible.
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
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number: change --model.net.kernel_size")
        check_dropout(dropout)
        self.features = nn.Sequential(
            *conv_block(in_channels, 16, kernel_size, padding=kernel_size // 2, batch_norm=batch_norm),
            *conv_block(16, 32, kernel_size, padding=kernel_size // 2, batch_norm=batch_norm),
        )
        linear = nn.Linear(32 * side_after(self.features, image_size) ** 2, num_classes)
        self.head = nn.Sequential(*([nn.Dropout(dropout)] if dropout else []), linear)
        if batch_norm:
            self.head.append(nn.BatchNorm1d(num_classes))
