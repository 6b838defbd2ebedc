"""The program of a network, its JavaScript, and the page around it; what a browser shows is in test_draw_page.py."""

import base64
import functools
import hashlib
import re
import zlib

import pytest
import torch
from torch import nn
from torch.nn import functional

from cnn_lightning import ImageClassifier, nets
from cnn_lightning.cli.draw import draw
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.data import Digits
from cnn_lightning.data.scale_shift import scale_and_shift
from cnn_lightning.draw.page import choose_images, model_of, packed_images, render_page
from cnn_lightning.draw.program import program_of
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.calibration import Calibration, save_calibration
from tests import docs_page
from tests.docs_page import models_in
from tests.javascript import needs_node, run_node

RUN = """
const network = await Network.load(data.model), length = data.model.input.reduce((a, b) => a * b);
const images = Uint8Array.from(data.images.flat(9)), scores = [];
for (let i = 0; i < images.length; i += length) {
  scores.push([...network.run(normalise(data.model, images.subarray(i, i + length))).at(-1)]);
}
return scores;
"""


def some_images(*shape, count=20):
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, *shape, generator=generator)
    return (255 * functional.avg_pool2d(noise, 3, 1, 1).mul(2).sub(0.5).clamp(0, 1)).to(torch.uint8)


def normalize(images):
    return (images.float() / 255 - 0.13) / 0.31


def scale_shift(channels):
    """What normalize does, as model_of takes it."""
    return [1 / 255 / 0.31] * channels, [-0.13 / 0.31] * channels


def trained(net):
    """Give batch normalisation statistics that differ from those it starts with, as training does."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return net.eval()


@functools.cache
def case(name):
    """One of CASES: the network, the shape of its images, and what the page holds of it."""
    make, shape = CASES[name]
    net = trained(make())
    return net, shape, model_of(net, *scale_shift(shape[0]), shape, half=False)


def both_scores(net, shape, model):
    """Logits of JavaScript and of PyTorch for the same images."""
    images = some_images(*shape)
    with torch.no_grad():
        expected = net(normalize(images))
    return torch.tensor(run_node(RUN, ["network"], {"model": model, "images": images.tolist()})), expected


class OwnNet(nn.Module):
    """Operators that no network of nets/ uses, as functions and in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (3, 5), padding="same", dilation=(2, 1))
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=3, stride=(1, 2))
        self.activation = nn.LeakyReLU(0.2, inplace=True)
        self.linear = nn.Linear(12 * 4 * 3, 7)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        x = functional.avg_pool2d(self.conv(x), 2, stride=2, padding=1)
        y = self.activation(self.depthwise(x))
        y = functional.gelu(y) + functional.gelu(y, approximate="tanh") * torch.tanh(y) * 2 + 0.5
        y = functional.silu(y) * functional.hardswish(y) + functional.hardsigmoid(y)
        y = torch.cat([y, functional.dropout(torch.sigmoid(y), training=self.training)], dim=1)
        y = functional.adaptive_avg_pool2d(y, (4, 3))
        y = self.norm(self.linear(y.view(y.size(0), -1))).relu()
        return functional.log_softmax(y, dim=-1)


class BranchNet(nn.Module):
    """Batch normalisation that must not be folded: something else uses the output of the convolution, as itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.norms = nn.Linear(4 * 49, 5), nn.BatchNorm1d(5)
        self.register_buffer("last", torch.zeros(5))

    def forward(self, x):
        x = self.conv(x.float())
        x = self.norm(x.contiguous(memory_format=torch.channels_last)) + x
        x = self.norm(functional.relu6(x - 0.5) / 2 + (1 - x).clamp(min=-0.2) - functional.hardtanh(-x) * 3)
        y = self.linear(x.flatten(1))
        y = self.norms(y.clone()) + y
        self.last.add_(1)
        return y.float()


class MeanNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return functional.softmax(self.linear(functional.max_pool2d(self.conv(x), 3, 1, 1).mean((-2, -1))), dim=1)


CASES = {
    "LeNetCNN": (lambda: nets.LeNetCNN(batch_norm=True, dropout=0.3), (1, 28, 28)),
    "TwoLayerCNN": (lambda: nets.TwoLayerCNN(3, 4, 33, batch_norm=True), (3, 33, 33)),
    "FastCNN": (lambda: nets.FastCNN(3, 10, 29), (3, 29, 29)),
    "ResNetCNN": (lambda: nets.ResNetCNN(dropout=0.1), (1, 28, 28)),
    "VGGCNN": (lambda: nets.VGGCNN(2, 5, 20), (2, 20, 20)),
    "DeepCNN": (lambda: nets.DeepCNN(1, 10, 12), (1, 12, 12)),
    "DropoutCNN": (lambda: nets.DropoutCNN(3, 4, 8), (3, 8, 8)),
    "SigmoidCNN": (nets.SigmoidCNN, (1, 28, 28)),
    "MLP": (nets.MLP, (1, 28, 28)),
    "WideCNN": (lambda: nets.WideCNN(1, 10, 8, width=50), (1, 8, 8)),
    "OwnNet": (OwnNet, (2, 21, 24)),
    "BranchNet": (BranchNet, (1, 9, 9)),
    "MeanNet": (MeanNet, (1, 9, 9)),
}


@needs_node
@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_pytorch(name):
    scores, expected = both_scores(*case(name))
    assert expected.std() > 0.001
    assert torch.allclose(scores, expected, atol=1e-4)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_every_network_is_tried():
    others = {"ConvNet", "TorchvisionNet"}
    assert {name for name in vars(nets) if isinstance(getattr(nets, name), type)} - others <= CASES.keys()


@needs_node
def test_half_precision_stores_half_the_bytes():
    torch.manual_seed(0)
    net = nets.LeNetCNN().eval()
    half, full = (model_of(net, *scale_shift(1), (1, 28, 28), half) for half in (True, False))
    scores, expected = both_scores(net, (1, 28, 28), half)
    assert 1e-6 < (scores - expected).abs().max() < 1e-3
    assert len(half["weights"]) < 0.6 * len(full["weights"])
    with torch.no_grad():
        net.head[0].weight[0, 0] = 1e6
    with pytest.raises(UsageError, match="too large for float16"):
        model_of(net, *scale_shift(1), (1, 28, 28), half=True)


def test_batch_normalisation_is_folded_where_it_follows_a_layer():
    layers = program_of(nets.LeNetCNN(batch_norm=True).eval(), torch.zeros(1, 1, 28, 28)).layers
    assert [layer["kind"] for layer in layers[:3]] == ["conv2d", "max_pool2d", "relu"]
    assert layers[0]["folded"] == "features.1"
    assert layers[0]["name"] == "features.0"
    kinds = [layer["kind"] for layer in program_of(nets.ResNetCNN().eval(), torch.zeros(1, 1, 28, 28)).layers]
    assert kinds.count("batch_norm") == 4  # those that follow a sum, or a convolution with another user


def broken(function):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.up = nn.Linear(81, 10), nn.ConvTranspose2d(1, 1, 1)

        def forward(self, x):
            return function(self, x)

    return Broken().eval()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda net, x: net.linear(net.up(x).flatten(1)), "Broken uses conv_transpose2d in up, which the page cannot"),
        (lambda net, x: net.linear((x + 1 if x.sum() > 0 else x).flatten(1)), "torch.export cannot trace Broken: "),
        (lambda net, x: net.linear(functional.dropout(x).flatten(1)), "Broken uses native_dropout, which"),
        (lambda net, x: net.linear(x.view(1, 1, 1, 81)), "Broken uses linear in linear on feature maps that are not"),
        (
            lambda net, x: net.linear((x * net.up.weight).flatten(1)),
            "Broken uses mul of different shapes",
        ),
        (lambda net, x: x, "Broken does not return scores of shape (1, num_classes)"),
        (lambda net, x: (net.linear(x.flatten(1)), x), "Broken returns several tensors"),
        (
            lambda net, x: net.linear((x * float("inf")).flatten(1)),
            "Broken uses mul of different shapes, or with a number",
        ),
        (lambda net, x: net.linear((x > 0).float().flatten(1)), "Broken uses gt whose result is no tensor of floats"),
        (
            lambda net, x: net.linear(functional.max_pool2d(x, 1, ceil_mode=True).flatten(1)),
            "max_pool2d with ceil_mode",
        ),
    ],
)
def test_unknown_operators_are_named(function, message, capsys):
    with pytest.raises(UsageError, match=re.escape(message)):
        program_of(broken(function), torch.zeros(1, 1, 9, 9))
    assert capsys.readouterr().err == ""


def test_normalisation_is_measured():
    mean, std = torch.tensor([0.1, 0.5]).view(2, 1, 1), torch.tensor([0.2, 0.4]).view(2, 1, 1)
    scale, shift = scale_and_shift(lambda images: (images / 255 - mean) / std, (2, 4, 5))
    assert scale == pytest.approx([1 / 255 / 0.2, 1 / 255 / 0.4], rel=1e-5)
    assert shift == pytest.approx([-0.5, -1.25], rel=1e-5)
    for other in (
        lambda images: (images / 255) ** 2,
        lambda images: images / 255 - (images / 255).mean((1, 2, 3), True),
    ):
        with pytest.raises(UsageError, match="normalize does more than scale and shift"):
            scale_and_shift(other, (1, 4, 4))


def test_images_are_right_and_wrong_ones_of_each_class():
    labels = torch.arange(3).repeat_interleave(40)
    probabilities = functional.one_hot(labels, 3).float() * 0.8 + 0.1
    probabilities[40:44] = torch.tensor([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.8, 0.2, 0], [0.7, 0.3, 0]])
    chosen = choose_images(labels, probabilities)
    assert chosen.tolist() == [*range(19), *range(44, 63), 40, 42, 43, 41, *range(80, 98)]


def test_each_of_many_classes_has_an_image():
    labels = torch.arange(47).repeat(10)
    probabilities = functional.one_hot(labels, 47).float()
    probabilities[5 * 47 :] = probabilities[5 * 47 :].roll(1, dims=1)
    chosen = choose_images(labels, probabilities)
    assert len(chosen) == 60
    assert labels[chosen].unique().tolist() == [*range(47)]
    assert labels[chosen].tolist() == sorted(labels[chosen].tolist())
    assert (chosen >= 5 * 47).sum() == 13


EXPLAIN = """
const network = await Network.load(data.model), { model } = data;
const values = network.run(normalise(model, Uint8Array.from(data.image.flat(9))));
return model.layers.map((layer, i) => {
  const [rows, columns] = sides(layer.shape), texts = describe(layer, model), places = [];
  for (const part of [0, 0.4, 0.99]) {
    const place = [layer.shape[0], rows, columns].map((size) => Math.floor(part * size));
    const { value, text, bias, patches } = explainValue(model, network, values, i, ...place);
    const inputs = patches.flatMap((patch) => patch.input), sums = patches.map((patch) => patch.sum);
    const stored = values[i + 1][(place[0] * rows + place[1]) * columns + place[2]];
    places.push({ value, text, bias, inputs, sums, stored });
  }
  return { kind: layer.kind, name: layer.name, texts, places };
});
"""


@needs_node
@pytest.mark.parametrize("name", ["ResNetCNN", "FastCNN", "OwnNet", "BranchNet", "MeanNet"])
def test_explanations_give_the_values(name):
    _, shape, model = case(name)
    layers = run_node(EXPLAIN, ["network", "explain"], {"model": model, "image": some_images(*shape)[0].tolist()})
    known = {
        "max_pool2d": max,
        "relu": lambda inputs: max(inputs[0], 0),
        "add": sum,
        "adaptive_avg_pool2d": lambda inputs: sum(inputs) / len(inputs),
        "pixel_unshuffle": lambda inputs: inputs[0],
        "flatten": lambda inputs: inputs[0],
        "cat": lambda inputs: inputs[0],
        "mul": lambda inputs: inputs[0] * inputs[1],
    }
    for layer in layers:
        assert all(layer["texts"].values()), layer
        for place in layer["places"]:
            assert place["value"] == place["stored"]
            assert "undefined" not in place["text"]
            assert "NaN" not in place["text"]
            if layer["kind"] in ("conv2d", "linear"):
                assert sum(place["sums"]) + (place["bias"] or 0) == pytest.approx(place["value"], abs=1e-4)
            elif layer["kind"] in known:
                assert known[layer["kind"]](place["inputs"]) == pytest.approx(place["value"], abs=1e-6)


@needs_node
def test_descriptions_say_operation_size_and_formula():
    _, _, model = case("LeNetCNN")
    data = {"model": model, "image": some_images(1, 28, 28)[0].tolist()}
    texts = [layer["texts"] for layer in run_node(EXPLAIN, ["network", "explain"], data)]
    first = texts[0]
    assert first["operation"] == "5×5 convolution, 6 kernels, batch normalisation folded in"
    assert (first["size"], first["rule"]) == ("6 × 24 × 24", "(28 − 5 + 2 · 0) / 1 + 1 = 24")
    assert (texts[1]["operation"], texts[1]["rule"]) == ("2×2 max-pooling", "(24 − 2 + 2 · 0) / 2 + 1 = 12")
    assert (texts[6]["operation"], texts[6]["rule"]) == ("flatten", "12 × 4 × 4 = 192")
    assert (texts[7]["operation"], texts[7]["rule"]) == ("linear layer, 120 outputs", "192 × 120 weights + 120 biases")


@needs_node
def test_occlusion_is_the_mean_fall_of_the_squares_that_cover_a_pixel():
    torch.manual_seed(0)
    net, image = nets.MLP(1, 4, 9).eval(), some_images(1, 9, 9)[0]
    code = """
    const network = await Network.load(data.model), pixels = Uint8Array.from(data.image.flat(9));
    const { map } = await occlusionMap(data.model, network, pixels, 2, { size: 4, stride: 3 });
    return [...map];
    """
    data = {"model": model_of(net, *scale_shift(1), (1, 9, 9), half=False), "image": image.tolist()}
    found = torch.tensor(run_node(code, ["network", "occlusion"], data)).view(9, 9)

    def probability(image):
        with torch.no_grad():
            return net(normalize(image[None])).softmax(1)[0, 2]

    falls, counts = torch.zeros(9, 9), torch.zeros(9, 9)
    for top in (0, 3, 6):
        for left in (0, 3, 6):
            covered, place = image.clone(), (slice(top, top + 4), slice(left, left + 4))
            covered[0][place] = 0
            falls[place] += probability(image) - probability(covered)
            counts[place] += 1
    assert torch.allclose(found, falls / counts, atol=1e-5)
    assert found.abs().max() > 0.001


def page_with(**texts):
    net = nets.MLP(1, 2, 9, width=3).eval()
    model = {
        "title": "t",
        "dataset": "d",
        "source": "s",
        "facts": [],
        "temperature": 1.0,
        "threshold": 0.8,
        "classes": ["a", "b"],
        "pad": 0,
        "preparation": None,
    }
    images = some_images(1, 9, 9, count=2)
    packed = packed_images(images, torch.tensor([0, 1]), torch.tensor([1, 1]))
    return render_page("t", [{**model, "images": packed, **model_of(net, *scale_shift(1), (1, 9, 9), False), **texts}])


def test_page_runs_nothing_but_its_own_script():
    evil = "</script><script>alert(1)</script>"
    page = page_with(classes=[evil, "b"], source=evil, title=evil)
    assert len(re.findall("<script", page)) == 3  # the page's own, and two of data, which no browser runs
    assert "alert(1)</script>" not in page
    assert models_in(page)[0]["classes"] == [evil, "b"]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    style, first = (re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)[1] for name in ("style", "script"))
    others = zlib.decompress(base64.b64decode(re.search(r'id="scripts">(.*?)<', page)[1])).decode()
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, first, others)]
    assert f"style-src 'sha256-{digests[0]}';" in policy
    assert f"script-src 'sha256-{digests[1]}' 'sha256-{digests[2]}';" in policy
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))


def test_page_in_docs_is_that_of_the_sources():
    assert docs_page.PAGE.read_text(encoding="utf-8") == docs_page.rendered(), "run python -m tests.docs_page"
    assert docs_page.PAGE.stat().st_size < 250_000


CALIBRATION = Calibration(temperature=1.7, threshold=0.93, risk=0.001, images=200, answered=150, wrong=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on Digits: the folder of its logs, and its checkpoint, with CALIBRATION."""
    logs = tmp_path_factory.mktemp("draw")
    fit(["--data", "Digits", "--model.net", "LeNetCNN", "--trainer.max_epochs=1", f"--trainer.default_root_dir={logs}"])
    checkpoint = logs / "LeNetCNN-Digits/version_0/checkpoints/best.ckpt"
    save_calibration(CALIBRATION, checkpoint)
    return logs, checkpoint


@needs_node
def test_page_of_the_newest_run(run, capsys):
    logs, checkpoint = run
    draw([f"--trainer.default_root_dir={logs}"])
    page = checkpoint.parent.parent / "draw.html"
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["page", str(page)]
    (model,) = models_in(page.read_text(encoding="utf-8"))
    assert (model["title"], model["classes"]) == ("LeNetCNN on Digits", [str(digit) for digit in range(10)])
    assert (model["preparation"]["kind"], model["preparation"]["cells"]) == ("Preparation", 8)
    assert model["facts"][:2] == ["epoch 1", "32,998 parameters"]
    assert model["facts"][-1] == "calibrated (temperature 1.70)"
    assert model["threshold"] == 0.93
    assert len(model["images"]["labels"]) >= 20
    # The page's network and images give the classes that are noted in it, and Python's calibrated probabilities.
    code = """
    const network = await Network.load(data), pixels = await inflate(data.images.pixels);
    return data.images.labels.map((_, i) => {
      const input = normalise(data, pixels.subarray(i * 784, (i + 1) * 784));
      return [...softmax(network.run(input).at(-1), data.temperature)];
    });
    """
    probabilities = torch.tensor(run_node(code, ["network"], model))
    assert probabilities.argmax(1).tolist() == model["images"]["predicted"]
    images = torch.frombuffer(
        bytearray(zlib.decompress(base64.b64decode(model["images"]["pixels"]))), dtype=torch.uint8
    )
    with torch.no_grad():
        scores = ImageClassifier.load_from_checkpoint(checkpoint).net.eval()(
            Digits().normalize(images.view(-1, 1, 28, 28))
        )
    expected = CALIBRATION.apply(scores.softmax(1)).float()
    assert torch.allclose(probabilities, expected, atol=1e-5)
    assert not torch.allclose(probabilities, scores.softmax(1), atol=1e-2)
    draw([f"--trainer.default_root_dir={logs}", "--half", "true"])
    second = page.with_name("draw_2.html")
    assert second.stat().st_size < 0.75 * page.stat().st_size


def test_several_checkpoints_are_a_choice(run, tmp_path):
    _, checkpoint = run
    page = tmp_path / "new" / "page.html"
    draw([str(checkpoint), str(checkpoint.with_name("last.ckpt")), "--output", str(page)])
    assert [model["source"].rpartition("/")[2] for model in models_in(page.read_text(encoding="utf-8"))] == [
        "best.ckpt",
        "last.ckpt",
    ]


def test_evaluate_names_the_command(run, capsys):
    _, checkpoint = run
    typed = ["--model.net", "LeNetCNN", "--data=Digits"]
    evaluate([*typed, str(checkpoint), "--report", "false"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("try it")]
    assert line.endswith(f" draw {checkpoint} {' '.join(typed)}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "page.png"], "--output page.png: expected a name that ends with .html"),
        (["--output", "{there}"], "--output {there} exists: name a new file, or move that one away"),
        (["--output", "{there}/page.html"], "cannot write to {there}"),
        (["--hlaf", "true"], "--hlaf"),
    ],
)
def test_invalid_options_are_one_line(run, tmp_path, options, message, capsys):
    there = tmp_path / "there.html"
    there.write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        draw([str(run[1]), *(option.format(there=there) for option in options)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message.format(there=there) in error
    assert error.count("\n") == 1
    assert there.read_text() == "mine"


class Enlarged(nn.Module):
    """Enlarges its images first, as TorchvisionNet does."""

    def __init__(self):
        super().__init__()
        self.up, self.linear = nn.UpsamplingBilinear2d(scale_factor=2), nn.Linear(56 * 56, 10)

    def forward(self, x):
        return self.linear(self.up(x).flatten(1))


def test_network_that_the_page_cannot_run_is_one_line(tmp_path, error_of, capsys):
    options = ["--data", "Digits", "--model.net", "tests.test_draw.Enlarged", "--trainer.max_epochs=1"]
    fit([*options, "--dashboard=false", f"--trainer.default_root_dir={tmp_path}"])
    capsys.readouterr()
    line = error_of(draw, f"--trainer.default_root_dir={tmp_path}")
    assert "Enlarged uses upsample_bilinear2d in up, which the page cannot run" in line
    assert not list(tmp_path.rglob("*.html"))


def test_missing_test_images_are_a_warning(run, tmp_path, monkeypatch, capsys):
    def prepare_data(self):
        raise UsageError("Digits is not on disk", "root")

    monkeypatch.setattr(Digits, "prepare_data", prepare_data)
    draw([str(run[1]), "--output", str(tmp_path / "page.html")])
    assert "warning: the page has no test images: Digits is not on disk" in capsys.readouterr().err
    (model,) = models_in((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert model["images"] is None


def test_checkpoint_loads_in_python_too(run):
    model = ImageClassifier.load_from_checkpoint(run[1])
    described = model_of(model.net.eval(), *scale_and_shift(Digits().normalize, (1, 28, 28)), (1, 28, 28), half=False)
    assert described["input"] == [1, 28, 28]


def test_data_module_that_does_not_say_what_its_network_is_given_is_one_line(run, monkeypatch, capsys):
    monkeypatch.delattr("cnn_lightning.data.base.ImageDataModule.normalize")
    with pytest.raises(SystemExit):
        draw([str(run[1])])
    assert "error: Digits does not say what its network is given" in capsys.readouterr().err


def test_weights_of_a_run_that_diverged_are_one_line(run, tmp_path, capsys):
    checkpoint = torch.load(run[1], weights_only=True)
    checkpoint["state_dict"]["net.head.0.weight"][0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    with pytest.raises(SystemExit):
        draw([str(tmp_path / "nan.ckpt")])
    assert "its parameters are not finite, because its training has diverged" in capsys.readouterr().err
