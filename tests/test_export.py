"""The exported folder: what other programs get, the verification, and errors that leave no folder."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from cnn_lightning import ImageClassifier, nets
from cnn_lightning.cli import export as cli
from cnn_lightning.cli.export import export
from cnn_lightning.cli.fit import fit
from cnn_lightning.data import Digits
from cnn_lightning.errors import UsageError
from cnn_lightning.export import folder as files
from cnn_lightning.export import verify
from cnn_lightning.export.deployed import Deployed, pool_last
from cnn_lightning.export.int8 import quantized
from cnn_lightning.export.onnx_model import to_onnx
from cnn_lightning.export.plain_torch import code_of
from cnn_lightning.export.verify import Outputs, check_int8, check_same, run_onnx, run_torch

HUB_FIELDS = {"pipeline_tag", "library_name", "tags", "datasets", "metrics", "model-index"}
# What a process without this package runs: the card's two programs, then the first one's model on all images.
OTHER_PROGRAM = """
import re, sys
sys.modules["cnn_lightning"] = None
blocks = re.findall(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL)
for block in blocks:
    exec(block)
    print(probabilities.tolist())
np.savez("found.npz", *onnxruntime.InferenceSession("model.onnx").run(None, {"images": np.load("images.npy")}))
"""


@pytest.fixture(autouse=True)
def no_long_measurements(monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a run on padded Digits, with batch normalisation."""
    logs = tmp_path_factory.mktemp("export")
    net = ["--model.net", "LeNetCNN", "--model.net.batch_norm", "true"]
    fit(["--data=Digits", "--data.pad=2", *net, "--trainer.max_epochs=2", f"--trainer.default_root_dir={logs}"])
    return logs / "LeNetCNN-Digits/version_0/checkpoints/best.ckpt"


@pytest.mark.slow
def test_other_programs_get_what_pytorch_computes(checkpoint, capsys):
    export([f"--trainer.default_root_dir={checkpoint.parents[3]}", "--int8", "true"])
    folder = checkpoint.parents[1] / "export"
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split()[:2] == ["exported", f"{folder}:"]
    names = ["README.md", "config.json", "int8.onnx", "model.onnx", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    config = json.loads((folder / "config.json").read_text())
    assert (config["dataset"], config["image_shape"], config["pad"]) == ("Digits", [1, 28, 28], 2)
    assert (config["network"]["class_path"], config["risk"]) == ("cnn_lightning.LeNetCNN", 0.001)

    data = Digits(pad=2)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    padded, labels = data.part("test")
    model = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        scores = model(data.normalize(padded)).double()
    probabilities = (scores / config["temperature"]).softmax(dim=1)
    correct = int((scores.argmax(dim=1) == labels).sum())
    assert (config["test"]["correct"], config["test"]["images"]) == (correct, len(labels))
    brier = (probabilities - nn.functional.one_hot(labels, 10)).square().sum(dim=1).mean().item()
    assert config["test"]["brier_score"] == pytest.approx(brier, abs=1e-6)

    images = padded[:, :, 2:-2, 2:-2].numpy()
    np.save(folder / "images.npy", images)
    Image.fromarray(images[3, 0]).save(folder / "picture.png")
    process = subprocess.run(
        [sys.executable, "-c", OTHER_PROGRAM], cwd=folder, capture_output=True, text=True, check=True
    )
    answer, first, second = process.stdout.splitlines()
    best = int(probabilities[3].argmax())
    is_sure = probabilities[3, best] >= config["threshold"]
    assert answer.split()[0] == (config["classes"][best] if is_sure else "unsure")
    for found in (first, second):  # ONNX Runtime, and PyTorch with safetensors
        assert torch.tensor(json.loads(found)) == pytest.approx(probabilities[3:4].float().numpy(), abs=1e-5)
    found = [torch.from_numpy(part).double() for part in np.load(folder / "found.npz").values()]
    assert (found[0].argmax(dim=1) == scores.argmax(dim=1)).all()
    assert (found[0] - scores).abs().max() < 1e-4
    assert (found[1] - probabilities).abs().max() < 1e-5

    # One file each: int8 at a quarter of the size, with nothing of this machine in it.
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert 4 * config["parameters"] - 1000 < sizes["model.onnx"] < 4 * config["parameters"] + 6000
    assert sizes["int8.onnx"] < 0.35 * sizes["model.onnx"]
    assert b".py" not in (folder / "model.onnx").read_bytes()
    int8 = run_onnx(folder / "int8.onnx", torch.from_numpy(images))
    assert f"accuracy {100 * (int8.scores.argmax(dim=1) == labels).double().mean():.2f} %" in printed

    _, head, card = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata.keys() <= HUB_FIELDS
    if find_spec("huggingface_hub"):
        from huggingface_hub import ModelCard

        (accuracy, *_) = ModelCard.load(folder / "README.md").data.eval_results
        assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", correct / len(labels))
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == correct / len(labels)
    assert f"{100 * correct / len(labels):.2f} % ({correct} of {len(labels)})" in card


def test_changed_weight_and_ctrl_c_leave_no_folder(checkpoint, tmp_path, monkeypatch, error_of, capsys):
    def flipped(path, model):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        weights = next(tensor for tensor in changed.graph.initializer if tensor.name.endswith("head.4.weight"))
        weights.raw_data = weights.raw_data[:3] + bytes([weights.raw_data[3] ^ 0x80]) + weights.raw_data[4:]
        path.write_bytes(changed.SerializeToString())

    models = []  # translated once, which takes seconds
    monkeypatch.setattr(
        cli, "to_onnx", lambda *args: models[0] if models else models.append(to_onnx(*args)) or models[0]
    )
    before = sorted(checkpoint.parents[1].rglob("*"))
    folder = tmp_path / "new" / "folder"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_onnx", flipped)
        error = error_of(export, str(checkpoint), "--output", str(folder))
        assert "model.onnx is not what PyTorch computes: of 360 images" in error
    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_texts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="130"):
            export([str(checkpoint), "--output", str(folder)])
    assert [*folder.parent.iterdir()] == []
    assert sorted(checkpoint.parents[1].rglob("*")) == before


OWN_NET = """
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes: int = 10, fails: bool = False):
        super().__init__()
        self.conv, self.linear, self.fails = nn.Conv2d(1, 4, 3, stride=3), nn.Linear(4 * 81, num_classes), fails

    def forward(self, images):
        if self.fails and images.mean() > 9:
            return images.flatten(1)[:, :10]
        return self.linear(self.conv(images).relu().reshape(images.size(0), -1))
"""


def test_own_network_without_the_dataset(train, tmp_path, monkeypatch, error_of, capsys):
    (tmp_path / "ownnet.py").write_text(OWN_NET)
    monkeypatch.syspath_prepend(tmp_path)
    run = train("--model.net=ownnet.Own")
    options = [str(run / "checkpoints/best.ckpt"), "--model.net=ownnet.Own", "--data.root=missing"]
    export(options)
    output = capsys.readouterr()
    assert output.err.startswith("warning: the accuracy is not measured: MNIST is not on disk")
    assert "Verifying on 256 random images" in output.out
    assert json.loads((run / "export/config.json").read_text())["test"] is None
    card = (run / "export/README.md").read_text()
    assert "was not tested" in card
    assert "no plain\nsequence of layers" in card
    error = error_of(export, *options, "--model.net.fails=true")
    assert "PyTorch cannot export Own: Could not guard on data-dependent expression" in error
    assert "MNIST is not on disk" in error_of(export, *options, "--int8=true")
    assert not (run / "export_2").exists()


def test_missing_package_is_one_line_before_the_test(checkpoint, monkeypatch, error_of):
    for name in ("onnx", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(cli.ExportCLI, "test", None)
    error = error_of(export, str(checkpoint))
    assert error == (
        "error: export needs onnx, safetensors, which are not installed: install with pip install "
        "'cnn-lightning[export]'"
    )


CHEAP = ("VGGCNN", "FastCNN", "TorchvisionNet")
NETS = sorted({name for name, net in vars(nets).items() if isinstance(net, type)} - {"ConvNet"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CHEAP else pytest.mark.campaign) for name in NETS]
)
def test_every_network(name, tmp_path):
    torch.manual_seed(0)
    net = getattr(nets, name)().to(memory_format=torch.channels_last).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
    deployed = Deployed(net, [0.0127], [-0.424], temperature=1.3)
    model = to_onnx(deployed, (1, 28, 28))
    files.write_onnx(tmp_path / "model.onnx", model)
    images = files.random_images((1, 28, 28))[:32]
    check_same("model.onnx", run_onnx(tmp_path / "model.onnx", images), run_torch(deployed, images))
    operators = {node.op_type for node in model.graph.node}
    assert name == "ResNetCNN" or "BatchNormalization" not in operators
    assert (code_of(net, deployed.prepare(images[:4])) is None) == (name in ("TorchvisionNet", "ResNetCNN"))


def test_pooling_moves_only_where_nothing_changes():
    torch.manual_seed(0)
    block = [nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Sigmoid()]
    net, images = nn.Sequential(*block).eval(), torch.randn(3, 1, 9, 9)
    nn.init.uniform_(net[2].bias)
    expected = net(images)
    for sign, kinds in ((1, "Conv2d BatchNorm2d ReLU MaxPool2d Sigmoid"), (-1, "Conv2d MaxPool2d BatchNorm2d ReLU")):
        with torch.no_grad():
            net[2].weight[0] = sign
        moved = pool_last(net)
        assert [type(layer).__name__ for layer in moved][: len(kinds.split())] == kinds.split()
        assert torch.allclose(moved(images), net(images), atol=1e-6)
    assert not torch.allclose(expected, net(images))


class OneByOne(nn.Module):
    """Keeps what each layer gives, so that the order of its layers matters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU())
        self.head = nn.Linear(4 * (26**2 + 2 * 13**2), 3)

    def forward(self, images):
        found = [images]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return self.head(torch.cat([maps.flatten(1) for maps in found[1:]], dim=1))


def test_network_that_calls_its_layers_one_by_one(tmp_path):
    deployed, images = Deployed(OneByOne().eval(), [0.01], [0.0]), files.random_images((1, 28, 28))[:9]
    files.write_onnx(tmp_path / "model.onnx", to_onnx(deployed, (1, 28, 28)))
    check_same("model.onnx", run_onnx(tmp_path / "model.onnx", images), run_torch(deployed, images))


class ConvGemmMatMul(nn.Module):
    """Has a layer of each operator with weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.head = nn.Conv2d(1, 4, 3, stride=3), nn.Linear(9, 5, bias=False), nn.Linear(180, 3)

    def forward(self, images):
        return self.head(self.rows(self.conv(images).relu()).flatten(1))


def test_int8_weights_do_not_saturate(tmp_path):
    """Weights are uint8: on processors with AVX2 or AVX-512 but without VNNI, ONNX Runtime saturates sums with int8.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-and-why-do-i-need-to-try-u8u8
    """
    torch.manual_seed(0)
    deployed, images = Deployed(ConvGemmMatMul().eval(), [0.01], [-1.0]), files.random_images((1, 28, 28))
    files.write_onnx(tmp_path / "model.onnx", to_onnx(deployed, (1, 28, 28)))
    model = quantized(tmp_path / "model.onnx", images)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = {node.op_type: node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert layers.keys() == {"Conv", "Gemm", "MatMul"}
    dequantized = {node.output[0]: node.input for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for name in layers.values():
        parts = [tensors[part] for part in dequantized[name]]
        assert [part.dtype for part in parts] == [np.uint8, np.float32, np.uint8]
        weights, _, zero_point = parts
        assert (zero_point == 128).all()
        assert weights.min() < 128 < weights.max()

    files.write_onnx(tmp_path / "int8.onnx", model)
    found, expected = run_onnx(tmp_path / "int8.onnx", images), run_torch(deployed, images)
    assert (found.scores - expected.scores).abs().max() < 0.05 * expected.scores.abs().max()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "QLinearConv" in operators
    assert "Conv" not in operators


def test_limits_of_the_verification():
    scores = torch.tensor([[1.0, 1.0, -20.0], [0.0, 9.0, 1.0]])

    def outputs(change):
        changed = scores.double() + torch.tensor(change)
        return Outputs(changed, changed.softmax(dim=1))

    expected = outputs([0.0, 0.0, 0.0])
    tie = check_same("file", outputs([0.0, 1e-6, 0.0]), expected)
    assert (tie.images, tie.equal) == (2, 1)
    for change in ([0.0, 3e-3, 0.0], [0.0, 5e-5, 0.0], [0.0, 0.0, float("nan")]):
        with pytest.raises(UsageError, match="file is not what PyTorch computes"):
            check_same("file", outputs(change), expected)
    with pytest.raises(UsageError, match="shape"):
        check_same("file", Outputs(scores[:1], scores[:1]), expected)
    check_int8(outputs([0.0, 0.5, 0.0]), expected, torch.tensor([1, 1]))
    for labels in (torch.tensor([0, 1]), None):
        with pytest.raises(UsageError, match=r"50.00% of the images"):
            check_int8(outputs([0.0, 0.5, 0.0]), expected, labels)
