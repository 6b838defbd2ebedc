"""The network of article 002."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, side_after


class DropoutCNN(ConvNet):
    """Three convolutions with dropout after each, and after the hidden layer.

    From article 002, "Convolutional Neural Network for image classification with implementation on Python using
    PyTorch" (Deep Learning on Medium).

    ======================  ============
    layer                   output
    ======================  ============
    image                   1 × 28 × 28
    conv 3×3 pad 1          32 × 28 × 28
    max-pool 2, ReLU        32 × 14 × 14
    conv 3×3 pad 1          64 × 14 × 14
    max-pool 2, ReLU        64 × 7 × 7
    conv 3×3 pad 1          128 × 7 × 7
    max-pool 2 pad 1, ReLU  128 × 4 × 4
    flatten                 2,048
    linear, ReLU            625
    linear                  10
    ======================  ============

    Dropout 0.3 follows each of the three poolings and the first linear layer. 1,379,557 weights.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels, at least 4.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *_block(in_channels, 32, nn.MaxPool2d(2)),
            *_block(32, 64, nn.MaxPool2d(2)),
            *_block(64, 128, nn.MaxPool2d(2, padding=1)),
        )
        self.head = nn.Sequential(
            nn.Linear(128 * side_after(self.features, image_size) ** 2, 625),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(625, num_classes),
        )


def _block(in_channels: int, out_channels: int, pool: nn.MaxPool2d) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), pool, nn.ReLU(), nn.Dropout(0.3)]
