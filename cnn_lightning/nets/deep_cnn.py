"""A network of six convolutions for Fashion-MNIST."""

from torch import nn

from cnn_lightning.nets.base import ConvNet, conv_groups, side_after


class DeepCNN(ConvNet):
    """Six convolutions with batch normalisation.

    In the style of airbench (Jordan 2024, arXiv 2404.00498): pooling follows the convolution that doubles the
    channels directly, so the other layers process a quarter of the pixels. Batch normalisation and ReLU follow every
    convolution, or its pooling. Layers and their outputs for an image of 1 × 28 × 28::

        conv 3×3 pad 1           24 × 28 × 28
        conv 3×3 pad 1           64 × 28 × 28
        max-pool 2               64 × 14 × 14
        conv 3×3 pad 1           64 × 14 × 14
        conv 3×3 pad 1           128 × 14 × 14
        max-pool 2               128 × 7 × 7
        conv 3×3 pad 1, twice    128 × 7 × 7
        max-pool over the image  128 × 1 × 1
        linear                   10

    421,906 parameters; image_size at least 4.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        blocks = conv_groups(in_channels, ((24, 64), (64, 128), (128, 128)), momentum=0.3)
        self.features = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1))
        self.head = nn.Linear(128 * side_after(self.features, image_size) ** 2, num_classes)
