"""Networks from torchvision, with or without weights from ImageNet."""

import re
import struct
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torchvision import models

from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet, check_positive

# The first two return several outputs in training, the last has no linear layer.
_UNSUITABLE = ("googlenet", "inception", "squeezenet")
_MISSING = (OSError, HTTPException)  # no such file, no network
# What torch.load raises for files that are damaged, or are not weights; RuntimeError also stands for a wrong hash.
_BROKEN = (EOFError, UnpicklingError, struct.error, LookupError, TypeError, AttributeError, AssertionError)


class TorchvisionNet(ConvNet):
    """A torchvision network, made for colour photos, adapted to these images and classes.

    The first convolution is replaced by one for the channels of the images: for a grey image, its pre-trained weights
    give what torchvision's give for that image in colour. The last linear layer is new. 11,175,370 parameters with
    resnet18.

    Args:
        name: Name of a classification network in torchvision: resnet18, mobilenet_v3_small, efficientnet_b0, ...
        weights: A file with the weights that torchvision publishes for this network, such as resnet18-f37072fd.pth,
            or "download" for its default weights; read by ``load_pretrained``. Default: random weights.
        enlarge: Factor by which the side of an image is enlarged first, because these networks expect larger ones.
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
        names = [name for name in models.list_models(module=models) if not name.startswith(_UNSUITABLE)]
        if name not in names:
            raise UsageError(f"name is {name}, expected one of {', '.join(names)}", "name")
        self.name, self.weights = name, weights
        net = models.get_model(name, weights=None)
        self.first = next(name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
        *_, self.last = (name for name, layer in net.named_modules() if isinstance(layer, nn.Linear))
        conv = net.get_submodule(self.first)
        bias = conv.bias is not None
        adapted = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)
        net.set_submodule(self.first, adapted)
        inputs = net.get_submodule(self.last).in_features
        net.set_submodule(self.last, nn.Identity())
        upsample = [nn.Upsample(scale_factor=enlarge, mode="bilinear")] if enlarge > 1 else []
        self.features = nn.Sequential(*upsample, net).eval()
        try:
            with torch.no_grad():
                self.features(torch.zeros(1, in_channels, image_size, image_size))
        except (RuntimeError, AssertionError) as error:
            side = image_size * enlarge
            raise UsageError(f"{name} rejects images of {side}×{side}, expected another size", "enlarge") from error
        self.features.train()
        self.head = nn.Linear(inputs, num_classes)

    def load_pretrained(self) -> None:
        """Load ``weights``, if given, except those of the last layer.

        Raises:
            UsageError: They cannot be read, or belong to another network.
        """
        if self.weights is None:
            return
        state = self._read_weights(self.weights)
        for key in [key for key in state if key.startswith(f"{self.last}.")]:
            del state[key]  # in place, because mnasnet needs the version, an attribute of state
        for key in [key for key in state if "denselayer" in key]:
            # Published weights of densenet have outdated names: norm.1.weight is norm1.weight.
            state[re.sub(r"\b(norm|conv)\.(\d)\.", r"\1\2.", key)] = state.pop(key)
        kernels = state.get(f"{self.first}.weight")
        if kernels is not None:
            shared = kernels.sum(dim=1, keepdim=True) / self.in_channels
            state[f"{self.first}.weight"] = shared.expand(-1, self.in_channels, -1, -1)
        *_, net = self.features.children()
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"{self.weights} does not hold weights of {self.name}", "weights") from error

    def _read_weights(self, weights: str) -> dict[str, Tensor]:
        try:
            if weights == "download":
                return models.get_model_weights(self.name).DEFAULT.get_state_dict(progress=False, check_hash=True)
            state = torch.load(Path(weights), map_location="cpu", weights_only=True)
        except (*_MISSING, *_BROKEN, RuntimeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(f"cannot read the weights {weights} ({reason})", "weights") from error
        if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
            raise UsageError(f"{weights} holds no weights, expected a dictionary of tensors", "weights")
        return state
