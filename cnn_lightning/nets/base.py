"""The contract of every network, the blocks that several share, and the size of feature maps."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cnn_lightning.errors import UsageError


class Network(nn.Module, ABC):
    """Any network that maps (B, C, H, W) float images to (B, num_classes) float logits.

    Every ``nn.Module`` counts as a subclass. The type exists because command line and checkpoints look short names up
    among its real subclasses, where ``nn.Module`` would offer each layer of PyTorch.
    """

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        """Let every ``nn.Module`` pass ``issubclass`` and ``isinstance``."""
        return issubclass(other, nn.Module) if cls is Network else NotImplemented

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Compute logits."""


class ConvNet(Network):
    """A network for square images that knows its sizes and describes itself in checkpoints.

    Subclasses build ``features``, the layers that extract features, and ``head``, which scores the classes, in
    ``__init__``; or they write their own ``forward``. Where an article pools the output of ReLU, these networks apply
    ReLU after pooling: bit-identical, and a quarter of the work.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels, large enough for the layers.

    Attributes:
        features: (B, in_channels, image_size, image_size) -> (B, channels, side, side) or flat.
        head: (B, channels * side * side) -> (B, num_classes)
        init_args: Arguments of ``__init__`` as given; a checkpoint stores them to build the network again.

    Raises:
        UsageError: An argument is out of range.
    """

    if TYPE_CHECKING:  # torch.jit.script would take them for attributes of every subclass
        features: nn.Module
        head: nn.Module
        init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "ConvNet":  # noqa: D102
        net = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        arguments = signature.bind_partial(net, *args, **kwargs).arguments
        for parameter in signature.parameters.values():
            if parameter.kind == parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        # Through __dict__, because nn.Module accepts attributes only after its own __init__.
        net.__dict__["init_args"] = {name: value for name, value in arguments.items() if value is not net}
        return net

    @abstractmethod
    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: (B, in_channels, image_size, image_size) float, normalised -> (B, num_classes) float."""
        return self.head(self.features(images).flatten(1))

    def load_pretrained(self) -> None:
        """Load pre-trained weights, if the network has any; called when a new training starts, not on resume.

        Raises:
            UsageError: The weights cannot be loaded.
        """


def conv_block(
    in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, batch_norm: bool = False
) -> list[nn.Module]:
    """Layers of a convolution, optional batch normalisation, 2×2 max-pooling and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
    return [conv, *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.MaxPool2d(2), nn.ReLU()]


def linear_block(in_features: int, out_features: int, dropout: float = 0.0) -> list[nn.Module]:
    """Layers of a linear map, ReLU and optional dropout."""
    return [nn.Linear(in_features, out_features), nn.ReLU(), *dropout_layer(dropout)]


def conv_groups(
    in_channels: int, groups: Sequence[Sequence[int]], momentum: float = 0.1, separable: bool = False
) -> list[nn.Module]:
    """Groups of 3×3 convolutions with batch normalisation and ReLU, and 2×2 max-pooling between the groups.

    Args:
        in_channels: Channels of the image.
        groups: For each group, the output channels of its convolutions.
        momentum: Of batch normalisation.
        separable: Replace all convolutions but the first by depthwise separable ones.
    """
    layers: list[nn.Module] = []
    for number, group in enumerate(groups, start=1):
        for position, channels in enumerate(group, start=1):
            if separable and layers:  # the first sees the image, whose few channels are not worth it
                layers.append(nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False))
                layers.append(nn.Conv2d(in_channels, channels, kernel_size=1, bias=False))
            else:
                layers.append(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False))
            if position == len(group) and number < len(groups):
                layers.append(nn.MaxPool2d(2))  # before the other two layers, which then do a quarter of the work
            layers += [nn.BatchNorm2d(channels, momentum=momentum), nn.ReLU()]
            in_channels = channels
    return layers


def check_positive(**arguments: int) -> None:
    """Raise a UsageError for channels, classes, sizes or widths below 1."""
    for name, value in arguments.items():
        if value < 1:
            raise UsageError(f"{name} is {value}, expected at least 1", name)


def check_initialized(net: nn.Module) -> None:
    """Raise a UsageError for lazy layers that have seen no image, and so have no weights yet."""
    lazy = [
        name
        for name, layer in net.named_modules()
        if any(map(is_lazy, [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]))
    ]
    if lazy:
        call = "self(torch.zeros(1, in_channels, image_size, image_size))"
        problem = f"the lazy layers {', '.join(lazy)} of {type(net).__name__} have no weights yet"
        raise UsageError(f"{problem}: end its __init__ with {call}")


def dropout_layer(dropout: float, kind: type[nn.Module] = nn.Dropout) -> list[nn.Module]:
    """An optional layer of dropout. Raises a UsageError for a probability outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout is {dropout}, expected 0 or more and less than 1", "dropout")
    return [kind(dropout)] if dropout else []


def side_after(layers: nn.Module, image_size: int) -> int:
    """Side of the feature maps in pixels after all convolutions and poolings of ``layers``, in their order.

    Each of them maps a side I to ``O = (I - K + 2P) / S + 1``, rounded down, with kernel K, padding P and stride S.

    Raises:
        UsageError: The image is too small for the layers.
    """
    side = image_size
    for layer in layers.modules():
        match layer:
            case nn.Conv2d() | nn.MaxPool2d():
                kernel, padding, stride = map(_side, (layer.kernel_size, layer.padding, layer.stride))
                side = (side - kernel + 2 * padding) // stride + 1
            case nn.ZeroPad2d():
                side += sum(layer.padding[:2])
            case nn.PixelUnshuffle():
                side //= layer.downscale_factor
            case nn.AdaptiveMaxPool2d() | nn.AdaptiveAvgPool2d():
                side = _side(layer.output_size)
        if side < 1:
            problem = f"an image of {image_size}×{image_size} pixels shrinks to nothing in {layer}"
            raise UsageError(f"{problem}, expected a larger image_size", "image_size")
    return side


def _side(size: Any) -> int:
    """Convolutions store sizes as pairs, poolings as given."""
    return size[0] if isinstance(size, tuple) else size
