"""The README of an exported folder, a model card as the Hugging Face Hub reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template

COLOURS = {1: ("grey", "L"), 3: ("RGB", "RGB"), 4: ("RGBA", "RGBA")}  # by channels: in words, as a mode of Pillow
HUB_DATASETS = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}  # their names on the Hub
DIGITS = ("MNIST", "EMNIST", "QMNIST", "Digits")


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the model for the Hub; without a licence, which its owner chooses.

    Args:
        config: The content of config.json.
    """
    dataset = config["dataset"]
    found: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": "onnx",
        "tags": ["onnx", "safetensors", "image-classification"],
    }
    if dataset in HUB_DATASETS:
        found["datasets"] = [HUB_DATASETS[dataset]]
    if test := config["test"]:
        measured = [
            {"type": "accuracy", "name": "Accuracy", "value": test["accuracy"]},
            {"type": "brier_score", "name": "Brier score", "value": test["brier_score"]},
            {"type": "ece", "name": "Expected calibration error", "value": test["calibration_error"]},
        ]
        result = {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"type": HUB_DATASETS.get(dataset, dataset), "name": dataset, "split": "test"},
            "metrics": measured,
        }
        found["metrics"] = ["accuracy", "brier_score"]
        found["model-index"] = [{"name": f"{_network(config)} on {dataset}", "results": [result]}]
    return found


def render_card(config: Mapping[str, Any], code: str | None, verified: str, int8: str | None) -> str:
    """Render README.md.

    Args:
        config: The content of config.json.
        code: The expression that builds the network with plain PyTorch; None if it has no such program.
        verified: What the verification found, in a sentence.
        int8: What it found about int8.onnx; None if there is no such file.
    """
    template = Template(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    colours, mode = COLOURS.get(config["image_shape"][0], ("{}-channel".format(config["image_shape"][0]), "RGB"))
    values = {
        "head": yaml.safe_dump(metadata(config), sort_keys=False, allow_unicode=True),
        "name": _network(config),
        "colours": colours,
        "mode": mode,
        "look": ": white on black, a digit of 20 pixels, centred" if config["dataset"] in DIGITS else "",
        "asked": "not calibrated" if config["risk"] is None else f"asked for: {100 * config['risk']:g} %",
    }
    return template.render(values, code=code, verified=verified, int8=int8, **config)


def _network(config: Mapping[str, Any]) -> str:
    return config["network"]["class_path"].rpartition(".")[2]
