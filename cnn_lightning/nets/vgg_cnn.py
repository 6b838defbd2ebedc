"""A plain network of small convolutions, for high accuracy with few parameters."""

from collections.abc import Sequence

from torch import nn

from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet, check_positive, conv_groups, side_after


class VGGCNN(ConvNet):
    """Groups of 3×3 convolutions with max-pooling in between, in the style of VGG (Simonyan and Zisserman 2014).

    The mean of each feature map over the image replaces VGG's large linear layers (Lin, Chen and Yan 2013, arXiv
    1312.4400), so nearly all parameters are in the convolutions. Batch normalisation and ReLU follow every
    convolution, or its pooling. Layers and their outputs for an image of 1 × 28 × 28::

        conv 3×3 pad 1               8 × 28 × 28
        max-pool 2                   8 × 14 × 14
        conv 3×3 pad 1               12 × 14 × 14
        conv 3×3 pad 1               14 × 14 × 14
        max-pool 2                   14 × 7 × 7
        conv 3×3 pad 1, three times  16 × 7 × 7
        mean over the image          16 × 1 × 1
        linear                       10

    9,406 parameters; image_size at least 4 with three groups.

    Args:
        groups: For each group, the output channels of its convolutions.
        separable: Replace all convolutions but the first by depthwise separable ones (Howard et al. 2017, arXiv
            1704.04861): 3×3 for each channel, then 1×1 over the channels. C channels to D need 9 C + C D parameters
            instead of 9 C D.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        groups: Sequence[Sequence[int]] = ((8,), (12, 14), (16, 16, 16)),
        separable: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes, image_size)
        if not groups or not all(groups):
            raise UsageError(f"groups is {groups}, expected channels in every group", "groups")
        check_positive(groups=min(map(min, groups)))
        self.features = nn.Sequential(*conv_groups(in_channels, groups, separable=separable), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(groups[-1][-1] * side_after(self.features, image_size) ** 2, num_classes)
