"""Article 004: a network of two convolutions and one linear layer."""

from torch import nn

from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet, conv_block, dropout_layer, side_after


class TwoLayerCNN(ConvNet):
    """Two convolutions and one linear layer.

    The article proposes smaller kernels and batch normalisation as next steps. Layers and their outputs for an image
    of 1 × 28 × 28::

        conv 5×5 pad 2    16 × 28 × 28
        max-pool 2, ReLU  16 × 14 × 14
        conv 5×5 pad 2    32 × 14 × 14
        max-pool 2, ReLU  32 × 7 × 7
        flatten           1,568
        linear            10

    28,938 parameters; 29,054 with batch normalisation; 20,490 with 3×3 kernels; image_size at least 4.
    Source: article 004, "CNNs with PyTorch: A 2-Layer Convolutional Neural Network with Fashion MNIST dataset" by
    Augusto de Nevrezé (2021).

    Args:
        kernel_size: Side of the kernels of both convolutions in pixels, odd, so that padding keeps the image size.
        batch_norm: Apply batch normalisation after both convolutions and after the linear layer. Training then needs
            batches of at least 2 images.
        dropout: Probability of dropout before the linear layer, in [0, 1).
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
            raise UsageError(f"kernel_size is {kernel_size}, expected a positive odd number", "kernel_size")
        self.features = nn.Sequential(
            *conv_block(in_channels, 16, kernel_size, kernel_size // 2, batch_norm),
            *conv_block(16, 32, kernel_size, kernel_size // 2, batch_norm),
        )
        flat = 32 * side_after(self.features, image_size) ** 2
        self.head = nn.Sequential(*dropout_layer(dropout), nn.Linear(flat, num_classes))
        if batch_norm:
            self.head.append(nn.BatchNorm1d(num_classes))
