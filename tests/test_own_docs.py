"""docs/own.md, typed through from an empty folder: its files are saved, its commands run in order."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/own.md").read_text(encoding="utf-8")
COLOURS = {"cat": (200, 60, 40), "dog": (40, 180, 60), "rabbit": (60, 60, 210)}
CODE = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"


def draw_pets(folder: Path, images: dict[str, int]) -> None:
    """Write colour pictures of several sizes, whose colour tells the class."""
    rng = np.random.default_rng(0)
    for part, number in images.items():
        for name, colour in COLOURS.items():
            path = folder / part / name
            path.mkdir(parents=True)
            for index in range(number):
                noise = rng.normal(colour, 40, (60 + index, 80, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(path / f"{index}.jpg")


@pytest.fixture
def typed(in_new_process):
    """Save the files of the page, and return a function that runs one of its commands in this folder."""
    draw_pets(Path("pets"), {"train": 30, "test": 8})
    for name, code in re.findall(
        r"[Ss]ave (?:this|it)\s+as\s+`(\w+\.py)`.*?```python\n(.*?)```", PAGE, flags=re.DOTALL
    ):
        Path(name).write_text(code, encoding="utf-8")

    def run(command: str) -> str:
        words = shlex.split(command)[1:]
        words[0] = str(REPOSITORY / words[0]) if words[0].startswith("scripts/") else words[0]
        code, out, err = in_new_process(CODE, *words)
        assert code == 0, f"{command}\n{out}\n{err}"
        return out

    return run


def commands(section: str) -> list[str]:
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_pictures_in_folders(typed):
    fitted, evaluated, predicted = map(typed, commands("Pictures in folders"))
    assert "Training TwoLayerCNN on pets" in fitted
    assert re.search(r"accuracy    \d+\.\d\d% \(2[0-4]/24\)", evaluated)  # 8 pictures of each class
    assert Path("logs/TwoLayerCNN-pets/version_0/report_0/report.html").is_file()
    assert predicted.count("cat/") == 8


@pytest.mark.slow
def test_own_network(typed):
    fit, resume, evaluate, predict, compare, small = commands("A network")
    compare = compare.replace(" TwoLayerCNN --seeds 0 1 ", " --seeds 0 ")  # four runs take long
    assert "Training PetNet on pets" in typed(fit)
    assert "Resuming from logs/mynet.PetNet-pets/version_0" in typed(resume)
    assert "accuracy" in typed(evaluate)
    assert typed(predict).count("dog/") == 8
    assert "| mynet.PetNet |" in typed(compare)
    typed(small)
    best = torch.load("logs/smallnet.SmallCNN-pets/version_0/checkpoints/best.ckpt", weights_only=True)
    sizes = best["hyper_parameters"]["net"]["init_args"]
    assert (sizes["in_channels"], sizes["num_classes"], sizes["image_size"]) == (3, 3, 64)


@pytest.mark.slow
def test_python_and_plain_program(typed):
    typed("python train.py")
    typed(commands("A network")[0])
    best = "logs/mynet.PetNet-pets/version_0/checkpoints/best.ckpt"
    facts = torch.load(best, weights_only=True)["dataset"]
    assert facts["class_names"] == list(COLOURS)
    assert (len(facts["mean"]), facts["in_channels"], facts["image_size"]) == (3, 3, 64)
    # The classes that predict.py finds for pictures that are not square.
    predicted = typed("python scripts/predict.py pets/test --model.net mynet.PetNet")
    table = dict(re.findall(r"^(pets/test/\S+) +(\w+) ", predicted, flags=re.MULTILINE))
    for picture in ("pets/test/cat/0.jpg", "pets/test/dog/7.jpg", "pets/test/rabbit/3.jpg"):
        assert typed(f"python plain.py {best} {picture}").strip() == table[picture]


@pytest.mark.slow
def test_data_module_and_callback(typed):
    fit, evaluate = commands("A data module")
    assert "Training PetNet on Pets" in typed(fit)
    assert re.search(r"accuracy    \d+\.\d\d% \(\d+/24\)", typed(evaluate))
    (callback,) = commands("A callback")
    assert re.search(r"^val/loss \d\.\d{4}$", typed(callback), flags=re.MULTILINE)
