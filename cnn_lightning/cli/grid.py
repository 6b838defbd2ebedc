"""The grid of ``compare.py``: grid.yaml, and the runs that it asks for."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.cli.config_files import UniqueKeys
from cnn_lightning.cli.exit_codes import with_home
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.tables import Key

DEFAULTS = {"seeds": [0, 1, 2]}


@dataclass(frozen=True)
class Cell:
    """A run of the grid."""

    variant: str
    data: str  # "" for the dataset of recipe or options
    seed: int
    recipe: Path | None
    options: tuple[str, ...]  # of scripts/fit.py, after the recipe
    digest: str  # of recipe and options

    def __str__(self) -> str:
        return f"{self.variant}{self.data and f' on {self.data}'}, seed {self.seed}"

    @property
    def asked(self) -> str:
        """Recipe and options as one line."""
        return shlex.join([*(["--config", self.recipe.name] if self.recipe else []), *self.options])

    @property
    def key(self) -> Key:
        """The key of its row."""
        return (self.variant, self.data, str(self.seed), self.digest)

    @property
    def name(self) -> str:
        """The key as text; also the name of the folder of its runs, without what a file system may not take."""
        return "-".join(self.key)

    def words(self) -> list[str]:
        """The arguments of ``fit``."""
        words = [option.replace("{seed}", str(self.seed)) for option in self.options]
        words = [*([f"--config={self.recipe}"] if self.recipe else []), *words]
        return [*words, *([f"--data={self.data}"] if self.data else []), f"--seed_everything={self.seed}"]


def read_grid(path: Path, asked: Mapping[str, Any]) -> list[Cell]:
    """Return all runs of the grid of a file; if it does not exist, of what was asked for."""
    if not path.exists() and "variants" not in asked:
        raise UsageError(f"nothing to compare: name --nets or --recipes, or write {path} (see --help)")
    try:
        grid = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys) if path.exists() else asked
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    cells = grid_cells(grid, path)
    if other := [name for name, value in asked.items() if value != grid.get(name, DEFAULTS.get(name))]:
        raise UsageError(f"{path} has other {', '.join(other)}: change it there, or name another folder")
    return cells


def save_grid(path: Path, asked: Mapping[str, Any]) -> None:
    """Write grid.yaml from what was asked for, if it does not exist."""
    if not path.exists():
        write_file(path, yaml.safe_dump(dict(asked), sort_keys=False, allow_unicode=True, width=1000).encode())


def grid_cells(grid: Any, path: Path) -> list[Cell]:
    """Return all runs of a grid, seed by seed, so that every variant has a result early."""
    keys = ("variants", "data", "seeds", "options")
    variants = grid.get("variants") if isinstance(grid, dict) and {*grid} <= {*keys} else None
    if not variants or not isinstance(variants, dict):
        raise UsageError(f"{path}: expected variants, with names and options, and no keys except {', '.join(keys)}")
    seeds, datasets = grid.get("seeds", DEFAULTS["seeds"]), grid.get("data", [""])
    kinds = {"numbers as seeds, like [0, 1, 2]": (int, seeds), "names as data, like [MNIST, Digits]": (str, datasets)}
    for expected, (kind, values) in kinds.items():
        if not (isinstance(values, list) and {*map(type, values)} == {kind} and len({*values}) == len(values)):
            raise UsageError(f"{path}: expected different {expected}")
    cells = []
    for seed, data, (name, own) in product(seeds, datasets, variants.items()):
        where, recipe = f"{path}: {name}{data and f' for {data}'}", None
        words = split_options(own.get(data) if isinstance(own, dict) else own, where)
        if words[:1] == ["--config"] and len(words) > 1:
            files = [folder / with_home(words[1]) for folder in (Path(), Path(__file__).parents[2])]
            recipe = next(filter(Path.is_file, files), None)
            if not recipe:
                raise UsageError(f"{where}: there is no recipe {words[1]}")  # neither here nor in this package
            words = words[2:]
        words = [*split_options(grid.get("options", ""), f"{path}: all"), *words]  # the last one counts
        named = {word.split("=")[0] for word in words}
        if named & {"--config", "-c"}:
            raise UsageError(f"{where}: expected one --config, at the beginning, and the path after a space")
        if not (recipe or data or "--data" in named):
            raise UsageError(f"{where}: expected data, like [MNIST], or --data: a dataset must be named")
        cells.append(Cell(str(name), data, seed, recipe, tuple(words), digest_of(recipe, words)))
    return cells


def split_options(options: Any, where: str) -> list[str]:
    """Split options like a shell."""
    try:
        if not isinstance(options, str):
            raise ValueError(f"they are {options}")
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"{where}: expected options as text ({error})") from error


def digest_of(recipe: Path | None, options: Sequence[str]) -> str:
    """Hash what is trained; lines of the recipe that are comments do not count."""
    lines = recipe.read_text(encoding="utf-8").splitlines() if recipe else []
    settings = [[line for line in lines if not line.startswith("#")], options]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
