import re

import pytest
import torch

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").rglob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def links(page):
    """Targets of all relative links and pictures."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not target.startswith("http")]


def anchors(page):
    """What follows # in the address of each heading, as code hosts make it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_python_examples_run(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
    training, network = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(network, names)
    assert names["SmallCNN"](width=12)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    exec(training.replace("max_epochs=3", "max_epochs=1, logger=False, enable_progress_bar=False"), names)
    assert type(names["model"].net).__name__ == "LeNetCNN"


def test_own_network_in_a_file_of_its_own_trains(train, tmp_path, monkeypatch):
    (network,) = re.findall(r"```python\n(from torch import nn.*?)```", README, re.DOTALL)
    (tmp_path / "mynet.py").write_text(network)
    monkeypatch.syspath_prepend(tmp_path)
    command = "python scripts/fit.py --model.net mynet.SmallCNN --model.net.width 12"
    assert f"\n{command}\n" in README
    assert train(*command.split()[2:]).parts[-2:] == ("mynet.SmallCNN-MNIST", "version_0")


def test_ci_runs_the_test_command():
    first, second = re.findall(r"```sh\n(.*?)\n```", README)
    assert "scripts/fit.py" in first
    assert second in (REPOSITORY / ".ci/run").read_text().splitlines()


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_readme_leads_to_every_page():
    assert set(links(REPOSITORY / "README.md")) >= {f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")}


def test_readme_names_every_recipe():
    recipes = {path.stem for path in (REPOSITORY / "cnn_lightning/recipes").glob("*.yaml")}
    rows = re.findall(r"^\| `(.*)` \| `\w+", README, re.MULTILINE)
    assert {name for row in rows for name in row.split("`, `")} == recipes


@every_page
def test_links_and_pictures_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_files_that_are_named_exist(page):
    if page.name == "CHANGELOG.md":  # it names files of earlier versions
        return
    names = re.findall(r"(?<![\w./])((?:scripts|cnn_lightning|tests|docs)/[\w/.-]*\w)", page.read_text())
    invented = {"my_cnn.py", "my_data.py", "my_callback.py", "NAME.yaml"}
    for name in names:
        assert (REPOSITORY / name).exists() or name.rpartition("/")[2] in invented, name


def test_tables_are_those_of_the_comparisons():
    results = "".join((REPOSITORY / f"docs/{page}.md").read_text() for page in ("results", "search"))
    tables = list((REPOSITORY / "docs/results").glob("*/table.md"))
    assert tables
    for table in tables:
        assert table.read_text().strip() in results, table


def test_pictures_are_used_and_small():
    pictures = set((REPOSITORY / "docs/pictures").iterdir())
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page) if "pictures/" in target}
    assert pictures == shown
    assert sum(picture.stat().st_size for picture in pictures) < 300_000


def test_lowest_versions_are_the_lower_bounds():
    declared = (REPOSITORY / "pyproject.toml").read_text()
    # photos asks for a newer Pillow; loggers names the whole of MLflow, dev the part that is tested.
    declared = re.sub(r"^(photos|loggers) = \[.*?^\]", "", declared, flags=re.DOTALL | re.MULTILINE)
    bounds = dict(re.findall(r'^    "([\w-]+)(?:\[\w+\])?>=([\d.]+)', declared, re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (REPOSITORY / "tests/lowest_versions.txt").read_text(), re.MULTILINE))
    assert pins.keys() == bounds.keys()
    for name, version in pins.items():
        assert f"{version}.".startswith(f"{bounds[name]}."), name
