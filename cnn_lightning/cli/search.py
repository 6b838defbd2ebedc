"""The search of ``sweep.py``: search.yaml, and the check of its options before anything is trained."""

import argparse
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.cli.fit_cli import FitCLI
from cnn_lightning.cli.grid import digest_of, split_options
from cnn_lightning.data import ImageDataModule
from cnn_lightning.errors import UsageError
from cnn_lightning.studies.space import Space, merge, to_words

DEFAULTS = {"trials": 50, "metric": "val/loss", "sampler": "tpe", "pruner": "halving", "seed": 0}
CHOICES = {"metric": ("val/loss", "val/acc"), "sampler": ("tpe", "random", "grid"), "pruner": ("halving", "none")}


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        path: search.yaml, which need not exist yet.
        settings: Its content.
        space: The options to search, with their values.
        words: Options of ``fit`` that are the same for all trials.
        trials: How many trials; a grid has one for each combination.
        metric: "val/loss" or "val/acc".
        sampler: "tpe", "random" or "grid".
        pruner: "halving" or "none".
        seed: Of the sampler.
    """

    path: Path
    settings: Mapping[str, Any]
    space: Space
    words: Sequence[str]
    trials: int
    metric: str
    sampler: str
    pruner: str
    seed: int

    @cached_property
    def size(self) -> int:
        """The number of trials."""
        return len(self.space.grid()) if self.sampler == "grid" else self.trials

    def digest(self) -> str:
        """Hash what the trials have in common: the options, the recipe, and the search space."""
        config = Path(self.settings.get("config") or "")
        recipe = digest_of(config if config.is_file() else None, self.words)
        return hashlib.sha256(repr((recipe, self.space, self.sampler == "grid")).encode()).hexdigest()

    def save(self) -> None:
        """Write search.yaml if it does not exist."""
        if not self.path.exists():
            text = yaml.safe_dump(dict(self.settings), sort_keys=False, allow_unicode=True, width=1000)
            write_file(self.path, text.encode())

    def check(self) -> None:
        """Build network, dataset and Trainer with both ends of each range and each choice, and train nothing.

        Raises:
            UsageError: An option does not exist, or a value is impossible.
        """
        searched = {f"--{parameter.option}" for parameter in self.space.parameters}
        if not {"--config", "--data"} & ({word.split("=")[0] for word in self.words} | searched):
            raise UsageError("expected a dataset for all trials: change --options, as to --options='--data MNIST'")
        logging.disable(logging.INFO)  # Lightning says what fast_dev_run is
        try:
            for assignment in self.space.probes():
                cli = FitCLI([*self.words, *to_words(assignment), "--trainer.fast_dev_run=true"])
                if isinstance(cli.datamodule, ImageDataModule):
                    cli.datamodule.prepare_data()
        finally:
            logging.disable(logging.NOTSET)


def read_search(path: Path, options: argparse.Namespace) -> Search:
    """Read a search from a file; if it does not exist, from the options.

    Raises:
        UsageError: The file or an option is invalid, or they differ.
    """
    names = ("config", "options", "search", *DEFAULTS)
    asked: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    try:
        if "search" in asked:
            asked["search"] = merge(asked["search"])
        if not path.exists() and "search" not in asked:
            raise UsageError(f"nothing to search: name --search, or write {path} (see --help)")
        settings = merge([path.read_text(encoding="utf-8")]) if path.exists() else asked
        if not isinstance(settings, dict) or not {"search"} <= {*settings} <= {*names}:
            raise UsageError(f"{path}: expected search, and no keys except {', '.join(names)}")
        space = Space.read(settings["search"])
    except ValueError as error:
        raise UsageError(error if isinstance(error, UsageError) else f"{error}: change --search or {path}") from error
    if other := [name for name, value in asked.items() if value != settings.get(name, DEFAULTS.get(name))]:
        raise UsageError(f"{path} has other {', '.join(other)}: change it there, or name another folder")
    for name, choices in CHOICES.items():
        if settings.get(name, choices[0]) not in choices:
            raise UsageError(f"{path}: {name} is {settings[name]}, expected {', '.join(choices)}")
    for name, least in (("trials", 1), ("seed", 0)):
        if type(number := settings.get(name, DEFAULTS[name])) is not int or number < least:
            raise UsageError(f"{path}: {name} is {number}, expected a number of at least {least}")
    words = [f"--config={settings['config']}"] if settings.get("config") else []
    words += split_options(settings.get("options", ""), f"{path}: options")
    chosen: dict[str, Any] = {name: settings.get(name, default) for name, default in DEFAULTS.items()}
    search = Search(path, settings, space, words, **chosen)
    try:
        search.space.grid() if search.sampler == "grid" else None
    except ValueError as error:
        raise UsageError(f"{error}: change --sampler") from error
    return search
