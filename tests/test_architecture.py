import ast
import sys

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "cnn_lightning"
# Who may import whom inside the package: commands know all, networks nobody.
ALLOWED = {
    "nets": {"nets"},
    "data": {"data", "errors", "files"},
    "schedules": {"errors"},
    "optimizers": set(),
    "metrics": set(),
    "classifier": {"nets", "schedules", "metrics", "errors", "checkpoint_io"},
    "callbacks": {"callbacks", "pictures", "nets", "checkpoint_io", "files", "errors"},
    "pictures": {"nets"},
    "evaluation": {"errors"},
    "plots": {"evaluation"},
    "report": {"evaluation", "pictures", "plots"},
    "cli": {
        "cli",
        "callbacks",
        "checkpoint_io",
        "classifier",
        "data",
        "nets",
        "optimizers",
        "schedules",
        "errors",
        "evaluation",
        "pictures",
        "plots",
        "report",
    },
    "checkpoint_io": {"errors", "files"},
    "files": set(),
    "errors": set(),
    "recipes": set(),
    "__init__": {"classifier", "data", "nets"},
}
# The networks know nothing of Lightning.
OUTSIDE = {
    "nets": {"torch", "torchvision"},
    "schedules": {"torch"},
    "optimizers": {"torch"},
    "files": set(),
    "errors": set(),
}


def imports(path):
    """The names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("cnn_lightning.")}
    assert inside <= ALLOWED[part(path)]
    outside = {name.split(".")[0] for name in imports(path)} - {"cnn_lightning"} - set(sys.stdlib_module_names)
    if part(path) in OUTSIDE:
        assert outside <= OUTSIDE[part(path)]
    assert "pytorch_lightning" not in outside


@pytest.mark.parametrize("name", ["fit.py", "evaluate.py"])
def test_scripts_only_call_the_commands(name):
    assert {name.rpartition(".")[0] for name in imports(REPOSITORY / "scripts" / name)} - {""} == {"cnn_lightning.cli"}
