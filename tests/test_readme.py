import re

import torch

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_python_examples_run(tiny_root, monkeypatch):
    monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
    network, training = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(network, names)
    assert names["SmallCNN"](width=12)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    exec(training.replace("max_epochs=3", "max_epochs=1, logger=False, enable_progress_bar=False"), names)
    assert type(names["model"].net).__name__ == "LeNetCNN"


def test_ci_runs_the_test_command():
    first, second = re.findall(r"```sh\n(.*?)\n```", README)
    assert "scripts/fit.py" in first
    assert second in (REPOSITORY / ".ci/run").read_text().splitlines()


def test_files_that_are_named_exist():
    paths = re.findall(r"\]\((\w[^)]*)\)", README) + re.findall(r"--config (cnn_lightning\S+\.yaml)", README)
    assert len(paths) >= 7
    for path in paths:
        assert path.startswith("http") or (REPOSITORY / path).exists(), path


def test_tables_are_those_of_the_comparisons():
    tables = list((REPOSITORY / "docs/results").glob("*/table.md"))
    assert tables
    for table in tables:
        assert table.read_text().strip() in README, table


def test_pictures_are_small():
    pictures = list((REPOSITORY / "docs/pictures").iterdir())
    assert {f"docs/pictures/{picture.name}" for picture in pictures} == set(re.findall(r"!\[.*\]\((.*)\)", README))
    assert sum(picture.stat().st_size for picture in pictures) < 300_000
