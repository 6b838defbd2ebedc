"""Article 002: a network with dropout after every block."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, linear_block, side_after


class DropoutCNN(ConvNet):
    """Three convolutions and a hidden layer, each followed by dropout of 0.3.

    Layers and their outputs for an image of 1 × 28 × 28::

        conv 3×3 pad 1                   32 × 28 × 28
        max-pool 2, ReLU, dropout        32 × 14 × 14
        conv 3×3 pad 1                   64 × 14 × 14
        max-pool 2, ReLU, dropout        64 × 7 × 7
        conv 3×3 pad 1                   128 × 7 × 7
        max-pool 2 pad 1, ReLU, dropout  128 × 4 × 4
        flatten                          2,048
        linear, ReLU, dropout            625
        linear                           10

    1,379,557 parameters; image_size at least 4.
    Source: article 002, "Convolutional Neural Network for image classification with implementation on Python using
    PyTorch" (Deep Learning on Medium).
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *_block(in_channels, 32, nn.MaxPool2d(2)),
            *_block(32, 64, nn.MaxPool2d(2)),
            *_block(64, 128, nn.MaxPool2d(2, padding=1)),
        )
        flat = 128 * side_after(self.features, image_size) ** 2
        self.head = nn.Sequential(*linear_block(flat, 625, dropout=0.3), nn.Linear(625, num_classes))


def _block(in_channels: int, out_channels: int, pool: nn.MaxPool2d) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), pool, nn.ReLU(), nn.Dropout(0.3)]
