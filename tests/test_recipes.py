from importlib.resources import files

import pytest
import torch
import yaml

from cnn_lightning import VGGCNN
from tests.conftest import REPOSITORY, scalars

RECIPES = sorted((REPOSITORY / "cnn_lightning/recipes").rglob("*.yaml"))


def test_every_article_and_record_has_one():
    nets = {network(yaml.safe_load(path.read_text())) for path in RECIPES}
    assert nets >= {"SigmoidCNN", "WideCNN", "DropoutCNN", "LeNetCNN", "TwoLayerCNN", "FastCNN", "DeepCNN"}
    records = {path.stem for path in RECIPES if path.stem.startswith(("record", "tiny", "small"))}
    assert records >= {"record_mnist", "record_fashion_mnist", "record_fashion_mnist_gpu", "tiny_mnist", "small_mnist"}


def network(recipe):
    net = recipe["model"]["net"]
    return net if isinstance(net, str) else net["class_path"]


@pytest.mark.parametrize(("name", "most"), [("tiny_mnist", 10_000), ("small_mnist", 100_000)])
def test_small_networks_are_small(name, most):
    path = REPOSITORY / f"cnn_lightning/recipes/{name}.yaml"
    net = VGGCNN(**yaml.safe_load(path.read_text())["model"]["net"].get("init_args", {}))
    assert 0.9 * most < sum(weight.numel() for weight in net.parameters()) < most


def test_they_come_with_the_package():
    assert {path.name for path in files("cnn_lightning.recipes").iterdir() if path.name.endswith(".yaml")} == {
        path.name for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestEveryRecipe:
    def test_names_its_command_and_its_result(self, path):
        header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        assert f"python scripts/fit.py --config cnn_lightning/recipes/{path.name}\n" in header
        assert "Measured: " in header
        assert "%" in header.split("Measured: ")[1]

    def test_trains_as_it_says(self, path, train):
        recipe = yaml.safe_load(path.read_text())
        short = ("--data.val_size=100", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
        # In float32, because a CPU without bfloat16 takes long to imitate it; and a GPU's network made small.
        smaller = ("--model.net.depth=10", "--model.net.width=1") if path.stem.endswith("gpu") else ()
        run = train(f"--config={path}", *short, "--trainer.precision=32-true", *smaller)
        assert run.parts[1] == f"{network(recipe)}-{recipe['data']['class_path']}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        asked = {**recipe["data"]["init_args"], "val_size": 100}
        assert config["data"]["init_args"].items() >= asked.items()
        optimizer = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]["optimizer"]
        assert optimizer["class_path"].endswith(f".{recipe['model']['optimizer']['class_path']}")
        assert optimizer["init_args"].items() >= recipe["model"]["optimizer"]["init_args"].items()
        if not path.stem.startswith(("fast", "record", "tiny", "small")):  # no article decays weights
            assert optimizer["init_args"]["weight_decay"] == 0
        assert set(scalars(run)) >= {"train/loss", "val/loss", "test/acc"}
