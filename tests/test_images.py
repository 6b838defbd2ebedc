import numpy as np
import pytest
import torch
from PIL import ImageColor
from torch import nn

from cnn_lightning import FastCNN, TwoLayerCNN
from cnn_lightning.reporting import palette
from cnn_lightning.reporting.images import confusion_matrix, feature_maps, filters, grid, misclassified, pixels
from tests.test_nets import NETS

BLUE = ImageColor.getrgb(palette.BLUE)


class TestGrid:
    def test_shows_every_image_enlarged_and_sharp(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
        picture = np.asarray(grid(images, ["", "", ""], columns=2, tile=60))
        assert picture.shape == (2 * 60, 2 * 60, 3)  # 2 × 28 pixels and a margin of 4
        for index, image in enumerate(images):
            top, left = 60 * (index // 2) + 2, 60 * (index % 2) + 2
            shown = picture[top : top + 56, left : left + 56]
            assert np.array_equal(shown, image.repeat(2, axis=0).repeat(2, axis=1)[..., None].repeat(3, axis=2))

    def test_captions_are_below_their_images(self):
        images = np.zeros((2, 28, 28), np.uint8)
        picture = np.asarray(grid(images, ["", "Sneaker 98 %\nis Sandal"]))
        below = picture[88:]
        assert (below[:, :92] == 255).all()
        assert (below[:14, 92:] < 100).any()
        assert (below[14:, 92:] < 100).any()

    def test_images_larger_than_the_tile(self):
        assert grid(np.zeros((3, 100, 100), np.uint8), [""] * 3, tile=60).width == 3 * 104

    def test_colour(self):
        red = np.zeros((1, 10, 10, 3), np.uint8)
        red[..., 0] = 255
        assert grid(red, [""]).getpixel((20, 20)) == (255, 0, 0)


def test_confusion_matrix_is_dark_where_most_images_are():
    counts = np.diag([90, 90, 100]) + np.array([[0, 10, 0], [0, 0, 10], [0, 0, 0]])
    picture = confusion_matrix(counts, ["a", "b", "c"])
    # The corner of a cell, where no number is written.
    colours = {(i, j): picture.getpixel((picture.width - 44 * (3 - j) + 3, picture.height - 44 * (3 - i) + 3)) for i in range(3) for j in range(3)}  # fmt: skip  # noqa: E501
    assert colours[2, 2] == BLUE
    assert colours[0, 0] != colours[2, 2]
    assert colours[2, 0] == colours[2, 1] == colours[1, 0] == (255, 255, 255)
    red, _, blue = colours[0, 1]
    assert colours[0, 1] == colours[1, 2]
    assert red > blue


def test_confusion_matrix_has_room_for_long_names():
    counts = np.ones((2, 2), int)
    long, short = (confusion_matrix(counts, names).size for names in (["Ankle boot", "T-shirt/top"], ["0", "1"]))
    assert long[0] > short[0]
    assert confusion_matrix(np.zeros((2, 2), int), ["0", "1"]).size == short  # nothing to divide by


def test_filters_are_blue_for_negative_weights_and_orange_for_positive_ones():
    net = TwoLayerCNN()
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].weight[0, 0, 0, 0] = -2
        net.features[0].weight[1, 0, 0, 1] = 1
    picture = filters(net)
    side = 48 // 5
    assert picture.getpixel((4, 4)) == BLUE
    assert picture.getpixel((4, 4 + side)) == (255, 255, 255)
    red, green, blue = picture.getpixel((52 + 4 + side, 4))
    assert red > green > blue > 20  # half of the way to orange


def leaves(net):
    return (layer for layer in net.features.modules() if not list(layer.children()))


@pytest.mark.parametrize("net", NETS)
def test_every_network_can_be_looked_into(net):
    network = net().eval()
    assert filters(network).width > 40
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(1, 28, 28)
    picture = feature_maps(network, image)
    assert picture.height >= 40 * (1 + len(list(leaves(network))))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_feature_maps_are_those_of_the_layers():
    net = FastCNN().eval()
    image = torch.rand(1, 28, 28)
    picture = np.asarray(feature_maps(net, image))
    # First row: the image itself, black to white.
    shown = picture[16 : 16 + 56 : 2, 2 : 2 + 56 : 2, 0]
    expected = (image[0] - image.min()) / (image.max() - image.min()) * 255
    assert np.abs(shown - expected.numpy()).max() <= 1
    # Second row: the image without its edge, a title further down, in whole pixels of its own.
    shown = picture[74 + 16 : 74 + 16 + 48 : 2, 2 : 2 + 48 : 2, 0]
    inner = image[0, 2:-2, 2:-2]
    expected = (inner - inner.min()) / (inner.max() - inner.min()) * 255
    assert np.abs(shown - expected.numpy()).max() <= 1


def test_feature_maps_before_a_layer_that_works_in_place():
    net = TwoLayerCNN().eval()
    image = torch.rand(1, 28, 28)
    expected = np.asarray(feature_maps(net, image))
    for layer in leaves(net):
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    assert np.array_equal(np.asarray(feature_maps(net, image)), expected)


class TestMisclassified:
    names = ("a", "b", "c")

    def of(self, labels, probabilities, limit=32):
        images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28) * 50 + 20
        return misclassified(images, torch.tensor(labels), torch.tensor(probabilities), self.names, limit)

    def test_the_most_confident_come_first(self):
        picture = self.of([0, 0, 1, 2], [[0.4, 0.6, 0.0], [0.9, 0.1, 0], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
        assert picture.width == 2 * 92
        assert [picture.getpixel((92 * i + 10, 10))[0] for i in range(2)] == [120, 20]

    def test_no_more_than_the_limit(self):
        assert self.of([0, 0, 0], [[0.0, 1.0, 0.0]] * 3, limit=2).width == 2 * 92

    def test_none(self):
        assert self.of([0], [[1.0, 0.0, 0.0]]).height < 50


def test_pixels_stretches_floats_and_leaves_bytes():
    bytes_ = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert np.array_equal(pixels(bytes_), bytes_[:, 0].numpy())
    assert pixels(torch.tensor([-1.0, 0, 1, 3]).view(1, 1, 2, 2)).ravel().tolist() == [0, 64, 128, 255]
    assert pixels(torch.zeros(1, 3, 4, 5)).shape == (1, 4, 5, 3)
    assert pixels(torch.tensor([-1.0, 3]).view(1, 1, 1, 2).bfloat16()).ravel().tolist() == [0, 255]
