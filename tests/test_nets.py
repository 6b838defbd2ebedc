import inspect
import re
from contextlib import contextmanager
from http.client import IncompleteRead
from random import Random
from urllib.error import URLError

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, interpolate, max_pool2d, pixel_unshuffle
from torch.nn.functional import linear as functional_linear
from torchvision import models
from torchvision.models import resnet18

from cnn_lightning import nets
from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import ConvNet, side_after

NETS = sorted(
    (net for net in vars(nets).values() if isinstance(net, type) and net is not ConvNet), key=lambda net: net.__name__
)
# The sides of the other three do not follow from the formula.
PLAIN = [net for net in NETS if net not in (nets.MLP, nets.ResNetCNN, nets.TorchvisionNet)]
PARAMETERS = {
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


@contextmanager
def raises_usage_error(argument, message):
    """Expect an error that names the argument, and no option of a command."""
    with pytest.raises(UsageError, match=message) as error:
        yield
    assert error.value.argument == argument
    assert "--" not in str(error.value)


def conv(w, name, x, padding=0):
    return conv2d(x, w[f"features.{name}.weight"], w.get(f"features.{name}.bias"), padding=padding)


def linear(w, name, x):
    return functional_linear(x, w[f"head.{name}.weight"], w[f"head.{name}.bias"])


# The articles' forward passes in functional PyTorch, in eval mode, without dropout. The articles pool after ReLU; the
# networks apply ReLU after pooling.
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
    """Torchvision's own, on the enlarged image as three channels with a third of the weights each."""
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
    def test_number_of_parameters_is_that_of_the_docstring(self, net):
        parameters = sum(parameter.numel() for parameter in net().parameters())
        assert parameters == PARAMETERS[net.__name__]
        assert f"{parameters:,} parameters" in net.__doc__
        assert len(re.findall(r"[\d,]+ parameters", net.__doc__)) == 1

    def test_help_describes_every_argument(self, net):
        parser = ArgumentParser()
        parser.add_class_arguments(net, "net")
        text = " ".join(parser.format_help().split())
        assert net.__doc__.split("\n")[0].rstrip(".") in text
        docs = f"{inspect.getdoc(ConvNet)}\n{inspect.getdoc(net)}"  # Python 3.13 removes the indentation itself
        described = dict(re.findall(r"^    (\w+): (.+)$", docs, re.MULTILINE))
        for name in inspect.signature(net).parameters:  # those of every network are described in ConvNet alone
            assert f" {described[name]} " in text, name

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_logits_are_bit_identical_to_those_of_the_article(self, net, images, memory_format):
        torch.manual_seed(0)
        network = net().eval().to(memory_format=memory_format)
        expected = FORWARD[net.__name__](network.state_dict(), images)
        if net is nets.TorchvisionNet:  # the terms are summed in another order
            torch.testing.assert_close(network(images), expected)
        else:
            assert torch.equal(network(images), expected)

    def test_takes_other_channels_classes_and_sizes(self, net):
        network = net(in_channels=2, num_classes=7, image_size=33)
        assert network(torch.rand(3, 2, 33, 33)).shape == (3, 7)
        assert (network.in_channels, network.num_classes, network.image_size) == (2, 7, 33)

    def test_every_parameter_has_a_gradient(self, net, images):
        network = net()
        cross_entropy(network(images), torch.arange(6)).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())

    def test_scores_one_image_as_in_a_batch(self, net, images):
        network = net().eval()
        torch.testing.assert_close(network(images[:1]), network(images)[:1])

    def test_records_its_arguments(self, net):
        assert net(1, num_classes=7).init_args == {"in_channels": 1, "num_classes": 7}


@pytest.mark.parametrize("net", PLAIN)
def test_images_that_shrink_to_nothing_are_usage_errors(net):
    with raises_usage_error(
        "image_size", r"image of 3×3 pixels shrinks to nothing in .*, expected a larger image_size"
    ):
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


@pytest.mark.parametrize(("kernel_size", "parameters"), [(3, 20_490), (7, 41_610)])
def test_two_layer_cnn_takes_other_kernels(kernel_size, parameters, images):
    network = nets.TwoLayerCNN(kernel_size=kernel_size)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network(images).shape == (6, 10)


@pytest.mark.parametrize("kernel_size", [4, 0, -1])
def test_two_layer_cnn_takes_only_odd_kernels(kernel_size):
    with raises_usage_error("kernel_size", f"kernel_size is {kernel_size}, expected a positive odd number"):
        nets.TwoLayerCNN(kernel_size=kernel_size)


@pytest.mark.parametrize(
    ("settings", "parameters"), [({}, 32_998), ({"batch_norm": True}, 33_034), ({"kernel_size": 3}, 44_710)]
)
def test_le_net_cnn_has_as_many_parameters_as_its_docstring_says(settings, parameters):
    assert sum(parameter.numel() for parameter in nets.LeNetCNN(**settings).parameters()) == parameters
    assert f"{parameters:,}" in nets.LeNetCNN.__doc__


@pytest.mark.parametrize(("net", "drops"), [(nets.LeNetCNN, 2), (nets.TwoLayerCNN, 1), (nets.ResNetCNN, 3)])
def test_dropout_is_random_in_training_only(net, drops, images):
    network = net(dropout=0.5)
    assert sum(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in network.modules()) == drops
    scores = [network(images) for _ in range(2)]
    assert not torch.equal(*scores)
    network.eval()
    assert torch.equal(network(images), network(images))
    for wrong in (1, -0.1):
        with raises_usage_error("dropout", f"dropout is {wrong}, expected 0 or more and less than 1"):
            net(dropout=wrong)


@pytest.mark.parametrize(("depth", "width", "parameters"), [(28, 10, 36_478_906), (16, 2, 691_386)])
def test_res_net_cnn_grows_to_wide_resnets(depth, width, parameters):
    """Zagoruyko and Komodakis count 36.5 million parameters for WRN-28-10 and 0.7 million for WRN-16-2."""
    network = nets.ResNetCNN(depth=depth, width=width)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(kernels) == depth - 3  # two shortcuts and the linear layer are not counted


@pytest.mark.parametrize("depth", [4, 11, -2])
def test_res_net_cnn_raises_for_other_depths(depth):
    with raises_usage_error("depth", f"depth is {depth}, expected 10, 16"):
        nets.ResNetCNN(depth=depth)


def test_vgg_cnn_takes_any_groups(images):
    network = nets.VGGCNN(groups=[[4, 6], [8]])
    convs = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert convs == [4, 6, 8]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network.modules()) == 1
    assert network(images).shape == (6, 10)


def test_vgg_cnn_separates_all_convolutions_but_the_first(images):
    network = nets.VGGCNN(groups=[[4, 6], [8]], separable=True)
    shapes = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert shapes == [(4, 1, 3, 3), (4, 1, 3, 3), (6, 4, 1, 1), (6, 1, 3, 3), (8, 6, 1, 1)]
    _, depthwise, pointwise = (layer for layer in network.features[:5] if isinstance(layer, nn.Conv2d))
    middle = network.features[:3](images)
    whole = nn.functional.conv2d(middle, pointwise.weight * depthwise.weight.transpose(0, 1), padding=1)
    torch.testing.assert_close(pointwise(depthwise(middle)), whole)
    assert network(images).shape == (6, 10)


@pytest.mark.parametrize("groups", [[], [[8], []], [[0]]])
def test_vgg_cnn_raises_for_empty_groups(groups):
    with raises_usage_error("groups", "groups is "):
        nets.VGGCNN(groups=groups)


class TestTorchvisionNet:
    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "mnasnet0_5"])
    def test_loads_weights_from_a_file(self, name, images, tmp_path):
        """A grey image has the features that torchvision's network computes for it in colour."""
        torch.manual_seed(0)
        whole = models.get_model(name).eval()
        state = whole.state_dict()
        if name == "densenet121":  # published with names that PyTorch no longer loads
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

    def test_without_weights_does_not_change(self):
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
    def test_other_files_are_usage_errors(self, content, message, tmp_path):
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with raises_usage_error("weights", message):
            nets.TorchvisionNet(weights=str(path)).load_pretrained()

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("zipped", [True, False])
    def test_damaged_files_are_usage_errors(self, zipped, tmp_path):
        """Cut or changed at any place, whatever the error with which PyTorch's unpickler stops."""
        path, random = tmp_path / "weights.pth", Random(0)
        network = nets.TorchvisionNet(name="mobilenet_v3_small", weights=str(path))
        torch.save({"conv1.weight": torch.ones(4, 1, 3, 3)}, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(content[: random.choice((len(content), random.randrange(len(content))))])
            for place in random.choices(range(len(damaged)), k=3) if damaged else ():
                damaged[place] = random.randrange(256)
            path.write_bytes(damaged)
            with raises_usage_error("weights", "cannot read|holds no weights|does not hold"):
                network.load_pretrained()

    @pytest.mark.parametrize(
        "error",
        [
            URLError("no network"),
            TimeoutError(),
            IncompleteRead(b""),
            RuntimeError("invalid hash value"),
            OSError(28, "full"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_failed_downloads_are_usage_errors(self, error, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        network = nets.TorchvisionNet(weights="download")
        with raises_usage_error("weights", r"cannot read the weights download \(.+\)"):
            network.load_pretrained()

    def test_default_weights_exist_for_every_name(self):
        with pytest.raises(UsageError) as error:
            nets.TorchvisionNet(name="?")
        names = str(error.value).split("expected one of ")[1].split(", ")
        assert len(names) > 60
        assert all(models.get_model_weights(name).DEFAULT for name in names)

    @pytest.mark.parametrize(
        ("settings", "argument", "message"),
        [
            ({"name": "resnet19"}, "name", r"name is resnet19, expected one of .*resnet18"),
            ({"name": "squeezenet1_0"}, "name", r"name is squeezenet1_0, expected one of"),
            ({"name": "alexnet"}, "enlarge", r"alexnet rejects images of 56×56, expected another size"),
            ({"enlarge": 0}, "enlarge", r"enlarge is 0, expected at least 1"),
        ],
    )
    def test_invalid_arguments_are_usage_errors(self, settings, argument, message):
        with raises_usage_error(argument, message):
            nets.TorchvisionNet(**settings)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "image_size", "width"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_are_positive(name, value):
    for net in (nets.WideCNN, nets.MLP):
        with raises_usage_error(name, f"^{name} is {value}, expected at least 1$"):
            net(**{name: value})


class OwnNet(ConvNet):
    """A network of a user.

    Args:
        units: Units of the hidden layer.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int, *, units: int = 5) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Conv2d(in_channels, units, kernel_size=3)
        self.head = nn.Linear(units * side_after(self.features, image_size) ** 2, num_classes)


def test_own_network_needs_features_and_head_only():
    network = OwnNet(2, 7, image_size=9, units=3)
    assert network.init_args == {"in_channels": 2, "num_classes": 7, "image_size": 9, "units": 3}
    assert network(torch.rand(4, 2, 9, 9)).shape == (4, 7)
    assert network.load_pretrained() is None
    with raises_usage_error("in_channels", "in_channels is 0, expected at least 1"):
        OwnNet(0, 7, 9)
    with pytest.raises(TypeError, match="width"):
        OwnNet(2, 7, 9, width=3)


def test_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ConvNet(1, 10, 28)
