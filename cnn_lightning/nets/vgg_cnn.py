"""A plain network of small convolutions, for the most accuracy from few weights."""

from collections.abc import Sequence

from torch import nn

from cnn_lightning.nets.base import ConvNet, check_positive, side_after


class VGGCNN(ConvNet):
    """Groups of 3×3 convolutions with max-pooling in between, in the manner of VGG (Simonyan and Zisserman 2014).

    Instead of VGG's large linear layers, the mean of every feature map over the image is what the classes are scored
    from (Lin, Chen and Yan 2013, arXiv 1312.4400), so that nearly all weights are in the convolutions.

    ======================  ============
    layer                   output
    ======================  ============
    image                   1 × 28 × 28
    conv 3×3 pad 1          8 × 28 × 28
    max-pool 2              8 × 14 × 14
    conv 3×3 pad 1          12 × 14 × 14
    conv 3×3 pad 1          14 × 14 × 14
    max-pool 2              14 × 7 × 7
    conv 3×3 pad 1, thrice  16 × 7 × 7
    mean over the image     16 × 1 × 1
    linear                  10
    ======================  ============

    Batch normalisation and ReLU follow every convolution, or the pooling after it. 9,406 weights.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels; with three groups at least 4.
        groups: For every group, the output channels of its convolutions.

    Raises:
        ValueError: A group is empty, or a number of channels is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        groups: Sequence[Sequence[int]] = ((8,), (12, 14), (16, 16, 16)),
    ) -> None:
        super().__init__(in_channels, num_classes, image_size)
        if not groups or not all(groups):
            raise ValueError(f"groups is {groups}, expected channels in every group: change --model.net.groups")
        check_positive(groups=min(map(min, groups)))
        layers: list[nn.Module] = []
        before = in_channels
        for number, group in enumerate(groups):
            for place, channels in enumerate(group, start=1):
                layers.append(nn.Conv2d(before, channels, kernel_size=3, padding=1, bias=False))
                if place == len(group) and number < len(groups) - 1:
                    layers.append(nn.MaxPool2d(2))  # before the rest, which then has a quarter of the values
                layers += [nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(before * side_after(self.features, image_size) ** 2, num_classes)
