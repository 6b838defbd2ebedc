from importlib.resources import files

import pytest
import torch
import yaml

from tests.conftest import REPOSITORY, scalars

RECIPES = sorted((REPOSITORY / "cnn_lightning/recipes").rglob("*.yaml"))


def test_every_article_and_record_has_one():
    assert len(RECIPES) >= 7
    nets = {yaml.safe_load(path.read_text())["model"]["net"] for path in RECIPES}
    assert nets >= {"SigmoidCNN", "WideCNN", "DropoutCNN", "LeNetCNN", "TwoLayerCNN", "FastCNN", "DeepCNN"}


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
        # In float32, because a CPU without bfloat16 takes long to imitate it.
        run = train(f"--config={path}", *short, "--trainer.precision=32-true")
        assert run.parts[1] == f"{recipe['model']['net']}-{recipe['data']['class_path']}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        asked = {**recipe["data"]["init_args"], "val_size": 100}
        assert config["data"]["init_args"].items() >= asked.items()
        optimizer = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]["optimizer"]
        assert optimizer["class_path"].endswith(f".{recipe['model']['optimizer']['class_path']}")
        assert optimizer["init_args"].items() >= recipe["model"]["optimizer"]["init_args"].items()
        if path.stem not in ("fast_mnist", "fast_fashion_mnist"):  # no article decays weights
            assert optimizer["init_args"]["weight_decay"] == 0
        assert set(scalars(run)) >= {"train/loss", "val/loss", "test/acc"}
