import ast
import sys

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "cnn_lightning"
# Who may import whom inside the package: commands know all, networks nobody; errors and facts import nothing.
LIBRARY = {"nets", "optim", "data", "checkpointing", "reporting", "callbacks"}
LIBRARY |= {"metrics", "lightning_fixes", "errors", "cores", "facts"}
ALLOWED = {
    "nets": {"nets", "errors"},
    "optim": {"optim", "errors"},
    "optimizers": {"optim"},
    "schedules": {"optim"},
    "metrics": set(),
    "errors": set(),
    "facts": set(),
    "cores": set(),
    "recipes": set(),
    "lightning_fixes": {"errors"},
    "data": {"data", "errors", "checkpointing"},
    "checkpointing": {"checkpointing", "nets", "errors", "facts"},
    "reporting": {"reporting", "checkpointing", "nets", "errors"},
    "draw": {"draw", "reporting", "errors"},
    "export": {"export", "reporting", "errors"},
    "robustness": {"robustness", "errors"},
    "studies": {"studies", "reporting", "checkpointing", "errors"},
    "callbacks": (LIBRARY | {"studies"}) - {"data", "optim"},
    "classifier": {"nets", "optim", "metrics", "errors", "checkpointing", "callbacks", "lightning_fixes"},
    "cli": {"cli", "classifier", "draw", "export", "robustness", "studies", "ImageClassifier"} | LIBRARY,
    "__init__": {"classifier", "cores", "data", "nets", "optim", "optimizers", "schedules"},
    "__main__": {"cli"},
}
# What may come from outside of the package and of Python.
OUTSIDE = {
    "nets": {"torch", "torchvision"},
    "optim": {"torch"},
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


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_only_call_the_command_of_their_name(path):
    assert set(imports(path)) == {"signal", f"cnn_lightning.cli.{path.stem}.{path.stem}"}
    assert len(path.read_text().splitlines()) <= 15
