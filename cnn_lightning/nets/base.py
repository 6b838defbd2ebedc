"""The contract that every network keeps, the block that several share, and the formula for the size of feature maps."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class ConvNet(nn.Module, ABC):
    """A network for square images: layers that find features, then a head that scores the classes.

    Subclasses build ``features`` and ``head`` in ``__init__``; with them the network is complete. Where an article
    pools what ReLU gives, they let ReLU have what pooling gives: the same to the bit, from a quarter of the values.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes, and so of scores.
        image_size: Side of an image in pixels.

    Attributes:
        features: (B, in_channels, image_size, image_size) -> (B, channels, side, side), or flat as the head wants it
        head: (B, channels * side * side) -> (B, num_classes)
        init_args: The arguments that the network was built with, so that a checkpoint can build it again.

    Raises:
        ValueError: A number is not positive.
    """

    features: nn.Module
    head: nn.Module
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "ConvNet":  # noqa: D102
        net = super().__new__(cls)
        arguments = inspect.signature(cls.__init__).bind_partial(net, *args, **kwargs).arguments
        # Past nn.Module, which takes attributes only after its __init__.
        net.__dict__["init_args"] = {name: value for name, value in arguments.items() if value is not net}
        return net

    @abstractmethod
    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        """Score every class for every image.

        Args:
            images: (B, in_channels, image_size, image_size) float, normalised as in training.

        Returns:
            (B, num_classes) float: one score per class, the highest for the predicted one. Cross-entropy and
            softmax take them as they are.
        """
        return self.head(self.features(images).flatten(1))

    def load_pretrained(self) -> None:
        """Read weights to begin a new training with, where a network has any.

        ``scripts/fit.py`` calls it, unless a run goes on. A checkpoint has the weights of all networks.

        Raises:
            ValueError: They cannot be read.
        """


def conv_block(
    in_channels: int, out_channels: int, kernel_size: int, *, padding: int = 0, batch_norm: bool = False
) -> list[nn.Module]:
    """A convolution, batch normalisation where it is asked for, max-pooling and ReLU.

    Args:
        in_channels: Channels of what comes in.
        out_channels: Channels of what goes out, at half the side.
        kernel_size: Side of the convolution's kernels in pixels.
        padding: Pixels of zeros on every side.
        batch_norm: Normalise each batch after the convolution.
    """
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding),
        *([nn.BatchNorm2d(out_channels)] if batch_norm else []),
        nn.MaxPool2d(2),
        nn.ReLU(),
    ]


def check_positive(**settings: int) -> None:
    """Refuse numbers below 1 as channels, classes, sizes or widths.

    Raises:
        ValueError: One is.
    """
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1: change --model.net.{name}")


def check_dropout(dropout: float) -> None:
    """Refuse a share of dropped values that is none.

    Raises:
        ValueError: It is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected 0 or more and less than 1: change --model.net.dropout")


def side_after(layers: nn.Module, image_size: int) -> int:
    """Side of the feature maps when an image has gone through all convolutions and poolings of ``layers``.

    Each of them turns a side of I pixels into ``O = (I - K + 2P) / S + 1``, rounded down, with kernel K,
    padding P and stride S (articles 001 and 004). Cropping takes pixels off, pixel-unshuffle divides, and
    adaptive pooling gives the side that it is told.

    Args:
        layers: Layers in the order in which an image passes them.
        image_size: Side of the image in pixels.

    Returns:
        Side of the feature maps in pixels, at least 1.

    Raises:
        ValueError: The image shrinks to nothing on its way.
    """
    side = image_size
    for layer in layers.modules():
        match layer:
            case nn.Conv2d() | nn.MaxPool2d():
                kernel, padding, stride = (_side(size) for size in (layer.kernel_size, layer.padding, layer.stride))
                side = (side - kernel + 2 * padding) // stride + 1
            case nn.ZeroPad2d():
                side += sum(layer.padding[:2])
            case nn.PixelUnshuffle():
                side //= layer.downscale_factor
            case nn.AdaptiveMaxPool2d() | nn.AdaptiveAvgPool2d():
                side = layer.output_size
        if side < 1:
            raise ValueError(
                f"an image of {image_size}×{image_size} pixels shrinks to nothing in {layer}: "
                "choose a larger --model.net.image_size"
            )
    return side


def _side(size: int | tuple[int, int]) -> int:
    """Convolutions keep their sizes as pairs, poolings as given."""
    return size[0] if isinstance(size, tuple) else size
