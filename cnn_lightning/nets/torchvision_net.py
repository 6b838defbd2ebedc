"""Networks of torchvision, with weights learnt on ImageNet or without."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from cnn_lightning.nets.base import ConvNet, check_positive

# The first two give several scores in training, the last has no linear layer.
UNFIT = ("googlenet", "inception", "squeezenet")


class TorchvisionNet(ConvNet):
    """A network of torchvision for colour photos, made to take these images and to score these classes.

    Its first convolution sees as many channels as an image has, with weights that give for a grey image what those of
    torchvision give for that image in colour; its last linear layer is a new one. 11,175,370 weights with resnet18.

    Args:
        in_channels: Channels of an image, 1 for grey.
        num_classes: Number of classes.
        image_size: Side of an image in pixels.
        name: Name of a classification network in torchvision: resnet18, mobilenet_v3_small, efficientnet_b0, ...
        weights: A file of weights as torchvision publishes it for this network, such as resnet18-f37072fd.pth, or
            "download" for those that torchvision thinks best; ``load_pretrained`` reads it. Default: the weights are
            random.
        enlarge: Factor by which the side of an image is enlarged first, for these networks are made for larger ones.

    Raises:
        ValueError: There is no such network, or it wants larger images.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        name: str = "resnet18",
        weights: str | None = None,
        enlarge: int = 2,
    ) -> None:
        super().__init__(in_channels, num_classes, image_size)
        check_positive(enlarge=enlarge)
        names = [name for name in models.list_models(module=models) if not name.startswith(UNFIT)]
        if name not in names:
            raise ValueError(f"name is {name}, expected one of {', '.join(names)}: change --model.net.name")
        self.name = name
        self.weights = weights
        net = models.get_model(name, weights=None)
        first, last = _first_and_last(net)
        conv = net.get_submodule(first)
        adapted = nn.Conv2d(
            in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
        )
        net.set_submodule(first, adapted)
        inputs = net.get_submodule(last).in_features
        net.set_submodule(last, nn.Identity())
        grow = [nn.Upsample(scale_factor=enlarge, mode="bilinear")] if enlarge > 1 else []
        self.features = nn.Sequential(*grow, net).eval()
        try:
            with torch.no_grad():
                self.features(torch.zeros(1, in_channels, image_size, image_size))
        except (RuntimeError, AssertionError) as error:
            side = image_size * enlarge
            raise ValueError(
                f"{name} does not take images of {side}×{side} pixels: change --model.net.enlarge"
            ) from error
        self.features.train()
        self.head = nn.Linear(inputs, num_classes)

    def load_pretrained(self) -> None:
        """Read the weights of ``weights``, if there are any, but for those of the last layer.

        Raises:
            ValueError: They cannot be read, or are of another network.
        """
        if self.weights is None:
            return
        state, net = self._read_weights(), self.features[-1]
        first, last = _first_and_last(models.get_model(self.name, weights=None))
        for key in [key for key in state if key.startswith(f"{last}.")]:
            del state[key]  # in place, because mnasnet wants to know the version, which is an attribute of state
        for key in [key for key in state if "denselayer" in key]:
            # Published weights of densenet have names that PyTorch takes no more: norm.1.weight is norm1.weight.
            state[re.sub(r"\b(norm|conv)\.(\d)\.", r"\1\2.", key)] = state.pop(key)
        kernels = state.get(f"{first}.weight")
        if kernels is not None:
            shared = kernels.sum(dim=1, keepdim=True) / self.in_channels
            state[f"{first}.weight"] = shared.expand(-1, self.in_channels, -1, -1)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{self.weights} does not hold weights of {self.name}: change --model.net.weights"
            ) from error

    def _read_weights(self) -> dict[str, Tensor]:
        try:
            if self.weights == "download":
                return models.get_model_weights(self.name).DEFAULT.get_state_dict(progress=False, check_hash=True)
            state = torch.load(Path(self.weights), map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds: no file, no server, no checkpoint
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"cannot read the weights {self.weights} ({reason}): change --model.net.weights"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
            raise ValueError(f"{self.weights} holds no weights by name: change --model.net.weights")
        return state


def _first_and_last(net: nn.Module) -> tuple[str, str]:
    """Names of the first convolution and of the last linear layer."""
    convs = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    linears = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    return convs[0], linears[-1]
