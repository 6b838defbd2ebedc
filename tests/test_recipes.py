import re
from importlib.resources import files

import pytest
import torch
import yaml

from cnn_lightning import VGGCNN
from tests.conftest import REPOSITORY, scalars

RECIPES = sorted((REPOSITORY / "cnn_lightning/recipes").rglob("*.yaml"))
RECORDS = ("fast", "record", "tiny", "small")  # all other recipes are those of an article
ONE_SEED = r"test accuracy \d\d\.\d\d %, seed \d, [\d.]+ (minutes|s of training) on"
SEEDS = r"test accuracy \d\d\.\d\d ± \d\.\d\d %, seeds \d to \d+, [\d.]+( ± [\d.]+)? (minutes|s of training) each on"
HARDWARE = r"(one core|\d+ cores) of an \w+ \w+"


def test_every_article_and_record_has_one():
    nets = {network(yaml.safe_load(path.read_text())) for path in RECIPES}
    assert nets >= {"SigmoidCNN", "WideCNN", "DropoutCNN", "LeNetCNN", "TwoLayerCNN", "FastCNN", "VGGCNN"}
    records = {path.stem for path in RECIPES if path.stem.startswith(RECORDS)}
    assert records >= {"record_mnist", "record_fashion_mnist", "record_fashion_mnist_gpu", "tiny_mnist", "small_mnist"}


def header(path):
    """The fields of a recipe's header, each with its text on one line."""
    fields = {}
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"# ([A-Z][a-z ]+): (.+)", line):
            assert match[1] not in fields
            fields[match[1]] = match[2]
        elif line.startswith("#"):
            assert line.startswith("#   ")
            fields[[*fields][-1]] += line.removeprefix("#  ")
    return fields


def network(recipe):
    net = recipe["model"]["net"]
    return net if isinstance(net, str) else net["class_path"]


@pytest.mark.parametrize(("name", "most"), [("tiny_mnist", 10_000), ("small_mnist", 100_000)])
def test_small_networks_are_small(name, most):
    path = REPOSITORY / f"cnn_lightning/recipes/{name}.yaml"
    net = VGGCNN(**yaml.safe_load(path.read_text())["model"]["net"].get("init_args", {}))
    assert 0.9 * most < sum(parameter.numel() for parameter in net.parameters()) < most


def test_they_come_with_the_package():
    assert {path.name for path in files("cnn_lightning.recipes").iterdir() if path.name.endswith(".yaml")} == {
        path.name for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestEveryRecipe:
    def test_header_has_purpose_command_and_result(self, path):
        fields = header(path)
        result = fields.keys() & {"Measured", "Not measured"}
        source = set() if path.stem.startswith(RECORDS) else {"Source"}
        assert len(result) == 1
        assert fields.keys() - {"Options"} == {"Purpose", "Command"} | source | result
        first, *_, last = fields
        assert first == "Purpose"
        assert last in result
        assert all(text.endswith(".") for name, text in fields.items() if name != "Command")
        assert fields["Command"] == f"python scripts/fit.py --config cnn_lightning/recipes/{path.name}"

    def test_result_is_measured_or_has_a_reason(self, path):
        """Mean and standard deviation, seeds, time and hardware; without a measurement, why, and no figure."""
        fields = header(path)
        if "Measured" in fields:
            assert re.match(rf"({ONE_SEED}|{SEEDS}) {HARDWARE}\b", fields["Measured"])
        else:
            assert re.match(r"no \w+ was available\b", fields["Not measured"])
            assert not re.search(r"\d", fields["Not measured"])

    def test_comments_lead_the_settings(self, path):
        """A comment in the first column does not count in the digest of ``compare.py``; all are in the header."""
        lines = path.read_text().splitlines()
        assert not any(line.startswith("#") for line in lines[lines.index("trainer:") :])
        assert not any(line.strip() == "" or len(line) > 120 for line in lines)

    def test_trains_with_its_settings(self, path, train):
        recipe = yaml.safe_load(path.read_text())
        short = ("--data.val_size=100", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
        # In float32, because bfloat16 is slow on a CPU without it; with a small network instead of that for a GPU.
        smaller = ("--model.net.depth=10", "--model.net.width=1") if path.stem.endswith("gpu") else ()
        run = train(f"--config={path}", *short, "--trainer.precision=32-true", *smaller)
        assert run.parts[1] == f"{network(recipe)}-{recipe['data']['class_path']}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        expected = {**recipe["data"]["init_args"], "val_size": 100}
        assert config["data"]["init_args"].items() >= expected.items()
        optimizer = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]["optimizer"]
        assert optimizer["class_path"].endswith(f".{recipe['model']['optimizer']['class_path']}")
        assert optimizer["init_args"].items() >= recipe["model"]["optimizer"]["init_args"].items()
        if not path.stem.startswith(RECORDS):  # no article uses weight decay
            assert optimizer["init_args"]["weight_decay"] == 0
        assert set(scalars(run)) >= {"train/loss", "val/loss", "test/acc"}
