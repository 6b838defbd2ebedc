"""The layer in which shapes do not fit is named, and the error stays what it is."""

import traceback

import pytest
import torch
from torch import nn

from cnn_lightning.callbacks.layer_errors import naming_layer
from cnn_lightning.errors import UsageError


class OwnNet(nn.Module):
    def __init__(self, features=7, view=None, add=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.classify = nn.Linear(features, 10)
        self.view, self.add = view, add

    def forward(self, images):
        maps = self.stem(images)
        if self.view:
            return maps.view(-1, self.view)
        if self.add:
            return maps + images.flatten()
        return self.classify(maps.mean(dim=(2, 3)))


def message_of(net, image, kind=RuntimeError):
    with pytest.raises(kind) as caught, naming_layer(net):
        net(image)
    return str(caught.value)


IMAGE = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("net", "image", "where"),
    [
        (OwnNet(), IMAGE, "in layer classify (Linear(in_features=7, out_features=10, bias=True)): input (2, 4)"),
        (OwnNet(), torch.zeros(2, 3, 8, 8), f"in layer stem.0 ({nn.Conv2d(1, 4, 3)}): input (2, 3, 8, 8)"),
        (OwnNet(view=7), IMAGE, "in OwnNet: images (2, 1, 8, 8), maps (2, 4, 6, 6)"),
        (nn.Sequential(OwnNet(add=True)), IMAGE, "in layer 0 (OwnNet): images (2, 1, 8, 8), maps (2, 4, 6, 6)"),
    ],
)  # fmt: skip
def test_layer_and_shapes(net, image, where):
    with pytest.raises(RuntimeError) as before:
        net(image)
    assert message_of(net, image) == f"{before.value}, {where}"


def test_batch_norm():
    message = message_of(nn.Sequential(nn.BatchNorm2d(4)), torch.zeros(1, 4), ValueError)
    assert message == (f"expected 4D input (got 2D input), in layer 0 ({nn.BatchNorm2d(4)}): input (1, 4)")


def test_traceback_ends_where_it_did():
    with pytest.raises(RuntimeError) as caught, naming_layer(net := OwnNet(view=7)):
        net(IMAGE)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "return maps.view(-1, self.view)"


def test_it_is_named_once():
    net = OwnNet()
    with pytest.raises(RuntimeError) as caught, naming_layer(net), naming_layer(net):
        net(IMAGE)
    assert str(caught.value).count("in layer") == 1


@pytest.mark.parametrize("error", [RuntimeError("other"), UsageError("message", "argument"), KeyError("key")])
def test_other_errors_stay(error):
    """Those outside of the network, and user-facing ones."""

    class Raises(nn.Module):
        def forward(self, images):
            raise error

    net, before = Raises(), error.args
    other = nn.ReLU() if isinstance(error, RuntimeError) else net
    with pytest.raises(type(error)), naming_layer(other):
        net(IMAGE)
    assert error.args == before
