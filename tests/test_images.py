import numpy as np
import pytest
import torch
from PIL import ImageColor
from torch import nn
from torch.nn import functional

from cnn_lightning import FastCNN, TwoLayerCNN
from cnn_lightning.reporting import images as drawings
from cnn_lightning.reporting import palette
from cnn_lightning.reporting.images import (
    MAX_CHANNELS,
    MAX_LAYERS,
    WIDTH,
    confusion_matrix,
    feature_maps,
    filters,
    grid,
    misclassified,
    pixels,
)  # fmt: skip
from cnn_lightning.reporting.lettering import LINE, length, shorten
from tests.test_nets import NETS

BLUE = ImageColor.getrgb(palette.BLUE)


class TestGrid:
    def test_shows_every_image_enlarged_and_sharp(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
        picture = np.asarray(grid(images, ["", "", ""], columns=2))
        assert picture.shape == (2 * 340, 2 * 352, 3)  # 12 × 28 pixels and a margin of 4, in half of the width
        for index, image in enumerate(images):
            top, left = 340 * (index // 2) + 2, 352 * (index % 2) + 2
            shown = picture[top : top + 336, left : left + 336]
            assert np.array_equal(shown, image.repeat(12, axis=0).repeat(12, axis=1)[..., None].repeat(3, axis=2))

    def test_captions_are_below_their_images(self):
        images = np.zeros((2, 28, 28), np.uint8)
        picture = np.asarray(grid(images, ["", "Ankle boot (98%)\nis Sandal"]))
        tile = WIDTH // 4  # the caption is too long for more columns
        below = picture[168 + 4 :]  # 6 × 28 pixels
        assert (below[:, :tile] == 255).all()
        assert (below[:LINE, tile:] < 100).any()
        assert (below[LINE:, tile:] < 100).any()
        assert (below[:, 2 * tile :] == 255).all()

    @pytest.mark.parametrize(("caption", "columns"), [("4 (98%)", 8), ("4 (100%)", 8), ("Pullover (98%)", 4)])
    def test_as_many_columns_as_the_captions_allow(self, caption, columns):
        images = np.full((9, 28, 28), 100, np.uint8)
        picture = np.asarray(grid(images, [caption] * 9))
        assert (picture[50, :: WIDTH // columns][1:-1] == 255).all()  # the margins between the images
        assert (picture[50, WIDTH // columns // 2 :: WIDTH // columns][:columns] == 100).all()
        assert len(picture) == -(-9 // columns) * (28 * ((WIDTH // columns - 4) // 28) + 4 + LINE)

    def test_images_larger_than_the_tile(self):
        picture = grid(np.full((3, 100, 200), 70, np.uint8), [""] * 3)  # made smaller by 3
        assert picture.size == (WIDTH, 34 + 4)
        assert [picture.getpixel((WIDTH // 8 * index + 40, 20))[0] for index in range(4)] == [70, 70, 70, 255]

    def test_colour(self):
        red = np.zeros((1, 10, 10, 3), np.uint8)
        red[..., 0] = 255
        assert grid(red, [""]).getpixel((20, 20)) == (255, 0, 0)
        large = np.zeros((1, 300, 300, 3), np.uint8)
        large[..., 0] = 255
        assert grid(large, [""]).getpixel((20, 20)) == (255, 0, 0)


def test_long_lines_are_cut_before_the_confidence():
    assert shorten("4 (98%)", 84) == "4 (98%)"
    cut = shorten("Staffordshire Bull Terrier (98%)", 172)
    assert cut.startswith("Staff")
    assert cut.endswith(".. (98%)")
    assert length(cut) <= 172 < length("Staffordshire Bull Terrier (98%)")
    assert length(shorten("Staffordshire Bull Terrier", 100)) <= 100


def test_letters_outside_of_ascii():
    caption = "\N{LATIN CAPITAL LETTER A WITH DIAERESIS}pfel"
    one, other = (np.asarray(grid(np.zeros((1, 28, 28), np.uint8), [text])) for text in (caption, "Bpfel"))
    box = np.asarray(grid(np.zeros((1, 28, 28), np.uint8), ["\N{CJK UNIFIED IDEOGRAPH-4E00}pfel"]))  # no font has it
    assert (one[88:] < 100).any()
    assert not np.array_equal(one, box)
    assert not np.array_equal(one, other)


def test_confusion_matrix_is_dark_where_most_images_are():
    counts = np.diag([90, 90, 100]) + np.array([[0, 10, 0], [0, 0, 10], [0, 0, 0]])
    picture = confusion_matrix(counts, ["a", "b", "c"])
    # The corner of a cell of 96 pixels, where no number is written.
    edge = picture.height - 1 - 3 * 96
    colours = {(i, j): picture.getpixel((edge + 96 * j + 3, edge + 96 * i + 3)) for i in range(3) for j in range(3)}
    assert colours[2, 2] == BLUE
    assert colours[0, 0] != colours[2, 2]
    assert colours[2, 0] == colours[2, 1] == colours[1, 0] == (255, 255, 255)
    red, _, blue = colours[0, 1]
    assert colours[0, 1] == colours[1, 2]
    assert red > blue


def test_confusion_matrix_has_room_for_long_names():
    counts = np.ones((2, 2), int)
    long, short = (confusion_matrix(counts, names).size for names in (["Ankle boot", "T-shirt/top"], ["0", "1"]))
    assert long[1] > short[1]
    assert long[0] == short[0] == WIDTH
    assert confusion_matrix(counts, ["Staffordshire Bull Terrier" * 3, "1"]).width == WIDTH
    assert confusion_matrix(np.zeros((2, 2), int), ["0", "1"]).size == short  # nothing to divide by


@pytest.mark.parametrize("classes", [1, 3, 10, 47, 120])
def test_confusion_matrix_of_many_classes(classes):
    counts = np.full((classes, classes), 5)
    counts[-1] = 0  # a class without images
    picture = np.asarray(confusion_matrix(counts, [f"class {number}" for number in range(classes)]))
    assert picture.shape[1] >= WIDTH
    assert picture.shape[1] <= WIDTH or classes > 60
    cell = min(96, max(8, (WIDTH - 1 - (picture.shape[0] - 1) % 8) // classes))
    row = picture[-3, -classes * cell // 2 :]  # of the last class, without a colour
    assert ((row == 255).all(axis=1) | (row == 220).all(axis=1)).all()


def test_filters_are_blue_for_negative_weights_and_orange_for_positive_ones():
    net = TwoLayerCNN()
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].weight[0, 0, 0, 0] = -2
        net.features[0].weight[1, 0, 0, 1] = 1
    picture = filters(net, torch.zeros(1, 28, 28))
    side = 84 // 5
    assert picture.getpixel((4, 4)) == BLUE
    assert picture.getpixel((4, 4 + side)) == (255, 255, 255)
    red, green, blue = picture.getpixel((88 + 4 + side, 4))
    assert red > green > blue > 20  # half of the way to orange


def test_filters_of_a_layer_on_pixels_have_the_shape_of_the_image():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight[3, 8 + 2] = -1  # first channel, second row, third column
    picture = filters(net.eval(), torch.rand(3, 8, 8))
    blue = (np.asarray(picture) == BLUE).all(axis=2).nonzero()
    assert (blue[0].min(), blue[1].min()) == (2 + 10, 3 * 88 + 2 + 20)
    assert len(blue[0]) == 10 * 10


def leaves(net):
    return (layer for layer in net.features.modules() if not list(layer.children()))


@pytest.mark.parametrize("net", NETS)
def test_every_network_can_be_looked_into(net):
    network = net().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(1, 28, 28)
    assert filters(network, image).width == WIDTH
    picture = feature_maps(network, image)
    assert picture.width == WIDTH
    assert picture.height >= (60 + LINE) * (1 + min(MAX_LAYERS, len(list(leaves(network)))))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_feature_maps_are_those_of_the_layers():
    net = FastCNN().eval()
    image = torch.rand(1, 28, 28)
    picture = np.asarray(feature_maps(net, image))
    # First row: the image itself, black to white.
    top = LINE + 2
    shown = picture[top : top + 84 : 3, 2 : 2 + 84 : 3, 0]
    expected = (image[0] - image.min()) / (image.max() - image.min()) * 255
    assert np.abs(shown - expected.numpy()).max() <= 1
    # Second row: the image without its edge, a title further down, in whole pixels of its own.
    top += 88 + LINE
    shown = picture[top : top + 72 : 3, 2 : 2 + 72 : 3, 0]
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
        assert [picture.getpixel((88 * i + 10, 10))[0] for i in range(3)] == [120, 20, 255]

    def test_no_more_than_the_limit(self):
        picture = self.of([0, 0, 0], [[0.0, 1.0, 0.0]] * 3, limit=2)
        assert [picture.getpixel((88 * i + 10, 10))[0] for i in range(3)] == [20, 70, 255]

    def test_captions(self, monkeypatch):
        drawn = []
        monkeypatch.setattr(drawings, "grid", lambda images, captions, columns: drawn.extend(captions))
        self.of([1, 2], [[0.02, 0.0, 0.98], [0.6, 0.3, 0.1]])
        assert drawn == ["c (98%)\nis b", "a (60%)\nis c"]

    def test_fewer_where_names_are_long(self, monkeypatch):
        monkeypatch.setattr(self, "names", ("Staffordshire Bull Terrier", "b", "c"), raising=False)
        picture = self.of([1] * 40, [[0.9, 0.1, 0.0]] * 40, limit=40)
        assert picture.height == 6 * (8 * 28 + 4 + 2 * LINE)

    def test_none(self):
        assert self.of([0], [[1.0, 0.0, 0.0]]).height == 2 * LINE


def test_pixels_stretches_floats_and_leaves_bytes():
    bytes_ = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert np.array_equal(pixels(bytes_), bytes_[:, 0].numpy())
    assert pixels(torch.tensor([-1.0, 0, 1, 3]).view(1, 1, 2, 2)).ravel().tolist() == [0, 64, 128, 255]
    assert pixels(torch.zeros(1, 3, 4, 5)).shape == (1, 4, 5, 3)
    assert pixels(torch.tensor([-1.0, 3]).view(1, 1, 1, 2).bfloat16()).ravel().tolist() == [0, 255]
    assert pixels(torch.zeros(2, 2, 4, 5)).shape == (2, 4, 5)  # of two channels, the first


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.same(functional.relu(self.same(x)))  # the same layer twice


class Split(nn.Module):
    """Returns its logits and its maps."""

    def forward(self, x):
        return x.mean(dim=(2, 3)), x


class OwnNet(nn.Module):
    """Neither features nor head, a head that is made first, a layer that does not run, and maps in a tuple."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(4, 10)
        self.unused = nn.Conv2d(9, 9, 9)
        self.block = Residual()
        self.stem = nn.Conv2d(1, 4, 5, bias=False)
        self.split = Split()

    def forward(self, images):
        logits, _ = self.split(self.block(self.stem(images)))
        return self.classify(logits)


class TestOwnNetwork:
    def titles(self, monkeypatch, net, image):
        seen = []
        monkeypatch.setattr(drawings, "write", lambda picture, where, text, **more: seen.append(text))
        feature_maps(net.eval(), image)
        return [title for title in seen if title]

    def test_feature_maps_in_the_order_in_which_layers_run(self, monkeypatch):
        assert self.titles(monkeypatch, OwnNet(), torch.rand(1, 28, 28)) == [
            "image: 1 x 28 x 28",
            "stem Conv2d: 4 x 24 x 24",
            "block.same Conv2d: 4 x 24 x 24",
            "block.same Conv2d: 4 x 24 x 24",
            "split Split: 4 x 24 x 24",
        ]

    def test_filters_are_those_of_the_layer_that_runs_first(self):
        net = OwnNet().eval()
        with torch.no_grad():
            net.stem.weight.zero_()
            net.stem.weight[2, 0, 0, 0] = -1
        picture = filters(net, torch.rand(1, 28, 28))
        assert picture.getpixel((2 * 88 + 4, 4)) == BLUE
        assert picture.size == (WIDTH, 84 // 5 * 5 + 4)

    def test_sequential(self, monkeypatch):
        net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert self.titles(monkeypatch, net, torch.rand(3, 16, 16))[1:] == [
            "0 Conv2d: 12 x 14 x 14", "1 ReLU: 12 x 14 x 14", "2 AdaptiveAvgPool2d: 12 x 1 x 1",
        ]  # fmt: skip

    @pytest.mark.parametrize("net", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))])
    def test_what_a_network_has_not(self, net):
        assert feature_maps(net.eval(), torch.rand(1, 4, 4)) is None
        assert (filters(net, torch.rand(1, 4, 4)) is None) == isinstance(net, nn.Flatten)

    def test_only_so_many_layers(self, monkeypatch):
        net = nn.Sequential(*[nn.ReLU() for _ in range(MAX_LAYERS + 5)])
        titles = self.titles(monkeypatch, net, torch.rand(1, 28, 28))
        assert len(titles) == 1 + MAX_LAYERS + 1
        assert titles[-1] == "and 5 more layers"

    def test_only_so_many_channels(self):
        net = nn.Sequential(nn.Conv2d(1, MAX_CHANNELS + 1, 1)).eval()
        picture = np.asarray(feature_maps(net, torch.rand(1, 28, 28)))
        assert picture.shape == (2 * (88 + LINE), WIDTH, 3)
