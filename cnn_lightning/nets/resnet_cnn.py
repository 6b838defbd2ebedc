"""A residual network of any width and depth."""

from torch import Tensor, nn

from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet, check_positive, dropout_layer


class ResNetCNN(ConvNet):
    """A Wide ResNet for small images, WRN-depth-width (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

    Three groups of n = (depth - 4) / 6 pre-activation residual blocks (He et al. 2016, arXiv 1603.05027); the second
    and third group start with stride 2. Layers and their outputs for an image of 1 × 28 × 28 and width k::

        conv 3×3 pad 1            16 × 28 × 28
        n blocks                  16k × 28 × 28
        n blocks, first stride 2  32k × 14 × 14
        n blocks, first stride 2  64k × 7 × 7
        batch norm, ReLU          64k × 7 × 7
        mean over the image       64k × 1 × 1
        linear                    10

    77,562 parameters with depth 10 and width 1, the defaults; 36,478,906 with depth 28 and width 10.

    Args:
        depth: Number of layers: 10, 16, 22, 28, ...
        width: Factor for the channels of all blocks.
        dropout: Probability of dropping a channel between the two convolutions of a block, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        depth: int = 10,
        width: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(width=width)
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise UsageError(f"depth is {depth}, expected 10, 16, 22, 28, ...", "depth")
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)]
        before = 16
        for channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for number in range(blocks):
                layers.append(_Block(before, channels, 1 if number else stride, dropout))
                before = channels
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(before, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # as in the code of the paper
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            *dropout_layer(dropout, nn.Dropout2d),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        )
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.before(x)
        # Where the shape changes, the shortcut starts from the activated input, as the convolutions do.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.convs(activated)
