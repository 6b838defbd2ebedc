import re

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, interpolate, max_pool2d, pixel_unshuffle
from torch.nn.functional import linear as functional_linear
from torchvision import models
from torchvision.models import resnet18

from cnn_lightning import nets
from cnn_lightning.nets.base import ConvNet, side_after

NETS = sorted(
    (net for net in vars(nets).values() if isinstance(net, type) and net is not ConvNet), key=lambda net: net.__name__
)
# These take any image that torchvision's own networks take, and their sides are no simple formula.
PLAIN = [net for net in NETS if net not in (nets.MLP, nets.ResNetCNN, nets.TorchvisionNet)]
WEIGHTS = {
    "DeepCNN": 421_906,
    "DropoutCNN": 1_379_557,
    "FastCNN": 72_218,
    "LeNetCNN": 32_998,
    "MLP": 101_770,
    "ResNetCNN": 77_562,
    "SigmoidCNN": 11_252,
    "TorchvisionNet": 11_175_370,
    "TwoLayerCNN": 28_938,
    "VGGCNN": 9_406,
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


def res_net_cnn(w, x):
    x = conv(w, 0, x, padding=1)
    for block, stride in ((1, 1), (2, 2), (3, 2)):
        activated = norm(w, f"{block}.before.0", x).relu()
        within = conv2d(activated, w[f"features.{block}.convs.0.weight"], stride=stride, padding=1)
        within = conv(w, f"{block}.convs.3", norm(w, f"{block}.convs.1", within).relu(), padding=1)
        if block > 1:
            x = conv2d(activated, w[f"features.{block}.shortcut.weight"], stride=stride)
        x = x + within
    x = norm(w, 4, x).relu().mean((2, 3), keepdim=True)
    return functional_linear(x.flatten(1), w["head.weight"], w["head.bias"])


def vgg_cnn(w, x):
    for number, pools in ((0, True), (4, False), (7, True), (11, False), (14, False), (17, False)):
        x = conv(w, number, x, padding=1)
        x = max_pool2d(x, 2) if pools else x
        x = norm(w, number + 1 + pools, x).relu()
    return functional_linear(x.mean((2, 3), keepdim=True).flatten(1), w["head.weight"], w["head.bias"])


def torchvision_net(w, x):
    """That of torchvision itself, which sees the image three times as large channels of a third."""
    net = resnet18(num_classes=10)
    state = {key.removeprefix("features.1."): value for key, value in w.items() if key.startswith("features.1.")}
    state["conv1.weight"] = state["conv1.weight"].expand(-1, 3, -1, -1) / 3
    net.load_state_dict(state | {"fc.weight": w["head.weight"], "fc.bias": w["head.bias"]})
    return net.eval()(interpolate(x, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1))


def mlp(w, x):
    return linear(w, 2, linear(w, 0, x.reshape(-1, 784)).relu())


FORWARD = {
    "DeepCNN": deep_cnn,
    "DropoutCNN": dropout_cnn,
    "FastCNN": fast_cnn,
    "LeNetCNN": le_net_cnn,
    "MLP": mlp,
    "ResNetCNN": res_net_cnn,
    "SigmoidCNN": sigmoid_cnn,
    "TorchvisionNet": torchvision_net,
    "TwoLayerCNN": two_layer_cnn,
    "VGGCNN": vgg_cnn,
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
        expected = FORWARD[net.__name__](network.state_dict(), images)
        if net is nets.TorchvisionNet:  # another sum of the same terms
            torch.testing.assert_close(network(images), expected)
        else:
            assert torch.equal(network(images), expected)

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


@pytest.mark.parametrize("net", PLAIN)
def test_refuses_images_that_shrink_to_nothing(net):
    with pytest.raises(ValueError, match=r"image of 3×3 pixels shrinks to nothing in .*--model.net.image_size"):
        net(image_size=3)


@pytest.mark.parametrize("net", PLAIN)
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


@pytest.mark.parametrize(
    ("settings", "weights"), [({}, 32_998), ({"batch_norm": True}, 33_034), ({"kernel_size": 3}, 44_710)]
)
def test_le_net_cnn_has_as_many_weights_as_its_docstring_says(settings, weights):
    assert sum(parameter.numel() for parameter in nets.LeNetCNN(**settings).parameters()) == weights
    assert f"{weights:,}" in nets.LeNetCNN.__doc__


@pytest.mark.parametrize(("net", "drops"), [(nets.LeNetCNN, 2), (nets.TwoLayerCNN, 1), (nets.ResNetCNN, 3)])
def test_dropout_is_random_in_training_only(net, drops, images):
    network = net(dropout=0.5)
    assert sum(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in network.modules()) == drops
    scores = [network(images) for _ in range(2)]
    assert not torch.equal(*scores)
    network.eval()
    assert torch.equal(network(images), network(images))
    with pytest.raises(ValueError, match=r"dropout is 1, .*--model.net.dropout"):
        net(dropout=1)


@pytest.mark.parametrize(("depth", "width", "weights"), [(28, 10, 36_478_906), (16, 2, 691_386)])
def test_res_net_cnn_grows_to_wide_resnets(depth, width, weights):
    """Zagoruyko and Komodakis count 36.5 million weights for WRN-28-10 and 0.7 million for WRN-16-2."""
    network = nets.ResNetCNN(depth=depth, width=width)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(kernels) == depth - 3  # not counted: two shortcuts, and the linear layer


@pytest.mark.parametrize("depth", [4, 11, -2])
def test_res_net_cnn_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=rf"depth is {depth}, expected 10, 16.*--model.net.depth"):
        nets.ResNetCNN(depth=depth)


def test_vgg_cnn_takes_any_groups(images):
    network = nets.VGGCNN(groups=[[4, 6], [8]])
    convs = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert convs == [4, 6, 8]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network.modules()) == 1
    assert network(images).shape == (6, 10)


@pytest.mark.parametrize("groups", [[], [[8], []], [[0]]])
def test_vgg_cnn_refuses_empty_groups(groups):
    with pytest.raises(ValueError, match=r"groups is .*--model.net.groups"):
        nets.VGGCNN(groups=groups)


class TestTorchvisionNet:
    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "mnasnet0_5"])
    def test_starts_with_the_weights_of_a_file(self, name, images, tmp_path):
        """A grey image gives the features that it gives torchvision's network in colour."""
        torch.manual_seed(0)
        whole = models.get_model(name).eval()
        state = whole.state_dict()
        if name == "densenet121":  # published with names that PyTorch takes no more
            for key in [key for key in state if "denselayer" in key]:
                state[re.sub(r"(norm|conv)(\d)", r"\1.\2", key)] = state.pop(key)
        torch.save(state, tmp_path / "weights.pth")
        network = nets.TorchvisionNet(name=name, weights=str(tmp_path / "weights.pth"), enlarge=2).eval()
        head = {key: value.clone() for key, value in network.head.state_dict().items()}
        network.load_pretrained()
        last = [layer for layer, module in whole.named_modules() if isinstance(module, nn.Linear)][-1]
        whole.set_submodule(last, nn.Identity())
        colour = interpolate(images, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
        torch.testing.assert_close(network.features(images), whole(colour), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(value, head[key]) for key, value in network.head.state_dict().items())

    def test_without_weights_stays_as_it_is(self):
        network = nets.TorchvisionNet()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_pretrained()
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read"),
            (b"", "cannot read"),
            (b"text", "cannot read"),
            ([1], "holds no weights"),
            ({"a": 1}, "holds no weights"),
            ({"a": torch.ones(1)}, "does not"),
        ],
    )
    def test_refuses_other_files(self, content, message, tmp_path):
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ValueError, match=rf"{message}.*--model.net.weights"):
            nets.TorchvisionNet(weights=str(path)).load_pretrained()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": "resnet19"}, r"expected one of .*resnet18.*--model.net.name"),
            ({"name": "squeezenet1_0"}, r"--model.net.name"),
            ({"name": "alexnet"}, r"alexnet does not take images of 56×56 pixels: change --model.net.enlarge"),
            ({"enlarge": 0}, r"enlarge is 0.*--model.net.enlarge"),
        ],
    )
    def test_refuses_what_there_is_not(self, settings, message):
        with pytest.raises(ValueError, match=message):
            nets.TorchvisionNet(**settings)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "image_size", "width"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_are_positive(name, value):
    for net in (nets.WideCNN, nets.MLP):
        with pytest.raises(ValueError, match=rf"{name} is {value}, expected at least 1: change --model.net.{name}"):
            net(**{name: value})


def test_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ConvNet(1, 10, 28)
