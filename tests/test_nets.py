import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, cross_entropy, max_pool2d, pixel_unshuffle
from torch.nn.functional import linear as functional_linear

from cnn_lightning import nets
from cnn_lightning.nets.base import ConvNet, side_after

NETS = sorted(
    (net for net in vars(nets).values() if isinstance(net, type) and net is not ConvNet), key=lambda net: net.__name__
)
WEIGHTS = {
    "DeepCNN": 421_906,
    "DropoutCNN": 1_379_557,
    "FastCNN": 72_218,
    "LeNetCNN": 32_998,
    "MLP": 101_770,
    "SigmoidCNN": 11_252,
    "TwoLayerCNN": 28_938,
    "WideCNN": 3_199_106,
}


def conv(w, name, x, padding=0):
    return conv2d(x, w[f"features.{name}.weight"], w.get(f"features.{name}.bias"), padding=padding)


def linear(w, name, x):
    return functional_linear(x, w[f"head.{name}.weight"], w[f"head.{name}.bias"])


# The articles' forward passes in a few lines of functional PyTorch, in evaluation, where dropout does nothing. The
# articles pool what ReLU gives; the networks do it the other way round.
def sigmoid_cnn(w, x):
    x = max_pool2d(conv(w, 0, x), 2)
    x = max_pool2d(conv(w, 2, x), 2)
    return linear(w, 2, linear(w, 0, x.reshape(-1, 160)).relu()).sigmoid()


def wide_cnn(w, x):
    x = max_pool2d(conv(w, 0, x, padding=2).relu(), 2)
    x = max_pool2d(conv(w, 3, x, padding=2).relu(), 2)
    return linear(w, 2, linear(w, 1, x.reshape(-1, 3136)))


def dropout_cnn(w, x):
    x = max_pool2d(conv(w, 0, x, padding=1).relu(), 2)
    x = max_pool2d(conv(w, 4, x, padding=1).relu(), 2)
    x = max_pool2d(conv(w, 8, x, padding=1).relu(), 2, padding=1)
    return linear(w, 3, linear(w, 0, x.reshape(-1, 2048)).relu())


def norm(w, name, x):
    statistics = (w[f"features.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return batch_norm(x, *statistics)


def deep_cnn(w, x):
    x = norm(w, 1, conv(w, 0, x, padding=1)).relu()
    x = norm(w, 5, max_pool2d(conv(w, 3, x, padding=1), 2)).relu()
    x = norm(w, 8, conv(w, 7, x, padding=1)).relu()
    x = norm(w, 12, max_pool2d(conv(w, 10, x, padding=1), 2)).relu()
    x = norm(w, 15, conv(w, 14, x, padding=1)).relu()
    x = norm(w, 18, conv(w, 17, x, padding=1)).relu()
    return functional_linear(x.amax((2, 3)), w["head.weight"], w["head.bias"])


def fast_cnn(w, x):
    x = pixel_unshuffle(x[:, :, 2:-2, 2:-2], 2)
    x = norm(w, 6, max_pool2d(conv(w, 4, conv(w, 2, x).relu()), 2)).relu()
    return linear(w, 2, linear(w, 0, x.reshape(-1, 512)).relu())


def le_net_cnn(w, x):
    x = max_pool2d(conv(w, 0, x).relu(), 2)
    x = max_pool2d(conv(w, 3, x).relu(), 2)
    return linear(w, 4, linear(w, 2, linear(w, 0, x.reshape(-1, 192)).relu()).relu())


def two_layer_cnn(w, x):
    x = max_pool2d(conv(w, 0, x, padding=2).relu(), 2)
    x = max_pool2d(conv(w, 3, x, padding=2).relu(), 2)
    return linear(w, 0, x.reshape(-1, 1568))


def mlp(w, x):
    return linear(w, 2, linear(w, 0, x.reshape(-1, 784)).relu())


FORWARD = {
    "DeepCNN": deep_cnn,
    "DropoutCNN": dropout_cnn,
    "FastCNN": fast_cnn,
    "LeNetCNN": le_net_cnn,
    "MLP": mlp,
    "SigmoidCNN": sigmoid_cnn,
    "TwoLayerCNN": two_layer_cnn,
    "WideCNN": wide_cnn,
}


@pytest.mark.parametrize("net", NETS)
class TestEveryNetwork:
    def test_has_the_number_of_weights_that_its_docstring_says(self, net):
        weights = sum(parameter.numel() for parameter in net().parameters())
        assert weights == WEIGHTS[net.__name__]
        assert f"{weights:,} weights" in net.__doc__

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_scores_are_those_of_the_article_to_the_bit(self, net, images, memory_format):
        torch.manual_seed(0)
        network = net().eval().to(memory_format=memory_format)
        assert torch.equal(network(images), FORWARD[net.__name__](network.state_dict(), images))

    def test_takes_other_channels_classes_and_sizes(self, net):
        network = net(in_channels=2, num_classes=7, image_size=33)
        assert network(torch.rand(3, 2, 33, 33)).shape == (3, 7)
        assert (network.in_channels, network.num_classes, network.image_size) == (2, 7, 33)

    def test_every_weight_gets_a_gradient(self, net, images):
        network = net()
        cross_entropy(network(images), torch.arange(6)).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())

    def test_scores_one_image_as_in_a_batch(self, net, images):
        network = net().eval()
        torch.testing.assert_close(network(images[:1]), network(images)[:1])

    def test_remembers_its_arguments(self, net):
        assert net(1, num_classes=7).init_args == {"in_channels": 1, "num_classes": 7}


@pytest.mark.parametrize("net", [net for net in NETS if net is not nets.MLP])
def test_refuses_images_that_shrink_to_nothing(net):
    with pytest.raises(ValueError, match=r"image of 3×3 pixels shrinks to nothing in .*--model.net.image_size"):
        net(image_size=3)


@pytest.mark.parametrize("net", [net for net in NETS if net is not nets.MLP])
def test_formula_gives_the_side_that_the_layers_give(net):
    for size in range(16, 34):
        features = net(image_size=size).features.eval()
        assert side_after(features, size) == features(torch.zeros(1, 1, size, size)).shape[-1]


def test_formula_against_numbers_of_the_articles():
    sides = {nets.SigmoidCNN: 4, nets.WideCNN: 7, nets.DropoutCNN: 4, nets.LeNetCNN: 4, nets.TwoLayerCNN: 7}
    assert {net: side_after(net().features, 28) for net in sides} == sides


def test_two_layer_cnn_with_batch_norm_normalises_every_batch(images):
    network = nets.TwoLayerCNN(batch_norm=True)
    scores = network(images)
    torch.testing.assert_close(scores.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    kinds = [type(layer).__name__ for layer in network.modules()]
    assert (kinds.count("BatchNorm2d"), kinds.count("BatchNorm1d")) == (2, 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == 29_054


@pytest.mark.parametrize(("kernel_size", "weights"), [(3, 20_490), (7, 41_610)])
def test_two_layer_cnn_takes_other_kernels(kernel_size, weights, images):
    network = nets.TwoLayerCNN(kernel_size=kernel_size)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    assert network(images).shape == (6, 10)


def test_two_layer_cnn_refuses_kernels_without_a_middle():
    with pytest.raises(ValueError, match=r"kernel_size is 4.*--model.net.kernel_size"):
        nets.TwoLayerCNN(kernel_size=4)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "image_size", "width"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_are_positive(name, value):
    for net in (nets.WideCNN, nets.MLP):
        with pytest.raises(ValueError, match=rf"{name} is {value}, expected at least 1: change --model.net.{name}"):
            net(**{name: value})


def test_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ConvNet(1, 10, 28)
