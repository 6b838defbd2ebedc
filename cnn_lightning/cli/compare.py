"""Compare networks, recipes or ideas: train every variant on every dataset with every seed, make a table and a plot.

    python scripts/compare.py logs/mine --nets LeNetCNN MLP --data MNIST FashionMNIST --seeds 0 1 2
    python scripts/compare.py logs/mine --recipes lenet_mnist fast_mnist --options="--trainer.max_epochs 2"
    python scripts/compare.py docs/results/ablation                  run or resume the grid of a folder

The folder's grid.yaml says what is compared. If there is none, it is written from the options:

    variants:                      name -> options of scripts/fit.py, or dataset -> options
      LeNetCNN: --model.net LeNetCNN
      LeNetCNN, shifted: --model.net LeNetCNN --data.shift 2
    data: [MNIST, FashionMNIST]    default: the recipe's dataset; a recipe's data options apply to that dataset only
    seeds: [0, 1, 2]               {seed} in options stands for the seed, as in --data.split_seed {seed}
    options: --trainer.max_epochs 10      for all variants; the options of a variant override them

Each finished run is saved to runs.csv at once; table.md, table.csv and accuracy.png summarise its rows, which are not
measured again. After Ctrl-C, SIGTERM or a failed run, the same command resumes, also in the middle of a run. After
SIGKILL the active runs continue on their own. Test accuracy is that of the epoch with the lowest validation loss.
"""

import asyncio
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
from cnn_lightning.checkpointing.settings import epoch_of
from cnn_lightning.cli.exit_codes import OptionParser, at_least_one, command, with_home
from cnn_lightning.cli.from_python import run_event_loop
from cnn_lightning.cli.run_folders import make_folder, newest_best
from cnn_lightning.cli.terminal import processor_name, relative_path
from cnn_lightning.cores import own_cores
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import plots
from cnn_lightning.reporting.tables import Key, Results


@command
def compare(args: Sequence[str]) -> None:
    """Train the missing runs of a grid, and summarise all of them."""
    parser = OptionParser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of grid.yaml and of the results")
    parser.add_argument("--nets", nargs="+", default=[], help="networks to compare")
    parser.add_argument("--recipes", nargs="+", default=[], help="recipes to compare, by name")
    parser.add_argument("--data", nargs="+", help="datasets to compare them on")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2")
    parser.add_argument("--options", help='options of scripts/fit.py for all: --options="--NAME VALUE ..."')
    parser.add_argument("--jobs", type=at_least_one, default=1, help="runs in parallel, sharing the cores; default: 1")
    parser.add_argument("--logs", type=Path, default=Path("logs/compare"), help="folder of runs; default: logs/compare")
    options = parser.parse_args(args)
    recipes = {name: f"--config cnn_lightning/recipes/{name}.yaml" for name in options.recipes}
    variants = {net: f"--model.net {net}" for net in options.nets} | recipes
    asked = {"variants": variants, "data": options.data, "seeds": options.seeds, "options": options.options}
    with lock(options.folder, "the folder"), lock(options.logs, "--logs"):
        cells = read_grid(options.folder / "grid.yaml", {name: value for name, value in asked.items() if value})
        results = Results(options.folder / "runs.csv", [cell.key for cell in cells])
        print(f"{len(cells)} runs, {len(results.rows)} of them done; results in {options.folder}", flush=True)
        failed = run_event_loop(train_all(cells, results, options.logs, options.jobs))
        results.write_tables()
    print(f"\n{(options.folder / 'table.md').read_text(encoding='utf-8')}" if results.rows else "\nNo results yet.")
    if failed:
        print(f"{len(failed)} runs failed; the same command tries them again:", *failed, sep="\n", file=sys.stderr)
        sys.exit(1)


def lock(folder: Path, option: str) -> AcquireReturnProxy:
    """Make a folder and lock it for this process; an error names the option to change."""
    make_folder(folder, option)
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process compares in {folder}: wait for it, or change {option}") from None


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

    def folder(self, logs: Path) -> Path:
        """The folder of the run."""
        return logs / re.sub(r"[^\w.-]+", "_", "-".join(self.key))

    def command(self, logs: Path) -> list[str]:
        """The command that starts or resumes the run."""
        words = [sys.executable, "-m", "cnn_lightning", "fit", *([f"--config={self.recipe}"] if self.recipe else [])]
        words += [option.replace("{seed}", str(self.seed)) for option in self.options]
        words += [*([f"--data={self.data}"] if self.data else []), f"--seed_everything={self.seed}"]
        words += [f"--trainer.default_root_dir={self.folder(logs)}", "--ckpt_path=last"]
        return [*words, "--trainer.enable_progress_bar=false", "--dashboard=false"]


def read_grid(path: Path, asked: Mapping[str, Any]) -> list[Cell]:
    """Read all runs of a grid from a file; if it does not exist, it is written from what was asked for."""
    if not path.exists() and "variants" not in asked:
        raise UsageError(f"nothing to compare: name --nets or --recipes, or write {path} (see --help)")
    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else asked
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    cells = grid_cells(grid, path)
    if other := [name for name, value in asked.items() if value != grid.get(name)]:
        raise UsageError(f"{path} has other {', '.join(other)}: change it there, or name another folder")
    if not path.exists():
        write_file(path, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=1000).encode())
    return cells


def grid_cells(grid: Any, path: Path) -> list[Cell]:
    """Return all runs of a grid, seed by seed, so that every variant has a result early."""
    keys = ("variants", "data", "seeds", "options")
    if not isinstance(grid, dict) or not {*grid} <= {*keys} or not isinstance(grid.get("variants"), dict):
        raise UsageError(f"{path}: expected variants, with names and options, and no keys except {', '.join(keys)}")
    seeds, datasets = grid.get("seeds", [0, 1, 2]), grid.get("data", [""])
    kinds = {"numbers as seeds, like [0, 1, 2]": (int, seeds), "names as data, like [MNIST, Digits]": (str, datasets)}
    for expected, (kind, values) in kinds.items():
        if not (isinstance(values, list) and {*map(type, values)} == {kind} and len({*values}) == len(values)):
            raise UsageError(f"{path}: expected different {expected}")
    cells = []
    for seed, data, (name, own) in product(seeds, datasets, grid["variants"].items()):
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


async def train_all(cells: Sequence[Cell], results: Results, logs: Path, jobs: int) -> list[str]:
    """Train all runs that have no row, ``jobs`` at a time; returns those that failed, with the reasons."""
    environment = {"OMP_NUM_THREADS": str(max(1, own_cores() // jobs))} | os.environ
    machine = {"threads": environment["OMP_NUM_THREADS"], "jobs": jobs, "processor": processor_name()}
    left = [cell for cell in cells if cell.key not in results.rows]
    slots, failed = asyncio.Semaphore(jobs), list[str]()

    async def train_cell(cell: Cell) -> None:
        async with slots:
            try:
                result = await train(cell, logs, environment)
                results.add(cell.key, {"options": cell.asked} | result | machine)
                news = f"{result['test_acc']:.2%}, {result['seconds']:.0f} s of training"
            except UsageError as error:
                failed.append(f"{cell}: {error}")
                news = f"failed: {error}"
        left.remove(cell)
        minutes = sum(results.seconds(other.key) for other in left) / jobs / 60
        estimate = f"; about {minutes:.0f} min left" if minutes else ""
        print(f"[{len(cells) - len(left)}/{len(cells)}] {cell}: {news}{estimate}", flush=True)

    await asyncio.gather(*map(train_cell, left))
    return failed


async def train(cell: Cell, logs: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Start or resume a run and return its result; when this is cancelled, the run saves its state and ends."""
    if digest_of(cell.recipe, cell.options) != cell.digest:
        raise UsageError(f"{cell.recipe} changed during the comparison: run the command again to compare the new one")
    output = cell.folder(logs) / "output.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            *cell.command(logs), stdout=file, stderr=file, env=environment, start_new_session=True
        )  # in a session of its own, so that Ctrl-C does not reach it: it is terminated below, once
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()  # processes started with & ignore SIGINT
            await process.wait()
    if process.returncode:
        lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
        (*_, reason) = [line for line in lines if line.startswith("error:")] or lines
        raise UsageError(f"{reason} (full output in {relative_path(output)})")
    return read_run(output.parent)


def read_run(folder: Path) -> dict[str, Any]:
    """Read the result of a run from its best checkpoint and its curves."""
    best = newest_best(folder.glob("*-*"))
    checkpoint, curves = read_run_checkpoint(best), plots.read_scalars(best.parents[1])
    if missing := {"test/acc", "val/acc", "time/seconds"} - curves.keys():
        raise UsageError(f"{folder} has no {', '.join(sorted(missing))}: keep tests, checkpoints and curves enabled")
    seconds, speeds = (dict(curves[f"time/{name}"]) for name in ("seconds", "images_per_second"))
    total = sum(seconds.values())
    parameters = checkpoint.get("parameters")
    if parameters is None:  # version 0.1 did not save it, and had no networks of the user's
        net = ImageClassifier.load_from_checkpoint(best, map_location="cpu").net
        parameters = sum(weight.numel() for weight in net.parameters())
    return {
        "weights": parameters,
        "test_acc": round(curves["test/acc"][-1][1], 6),
        "test_loss": round(curves["test/loss"][-1][1], 6),
        "val_acc": round(dict(curves["val/acc"])[checkpoint["global_step"]], 6),
        "epoch": epoch_of(checkpoint),
        "seconds": round(total, 1),
        "images_per_second": round(sum(speeds[epoch] * seconds[epoch] for epoch in seconds) / total),
        "torch": torch.__version__,
        "finished": datetime.now().isoformat(" ", "minutes"),
    }
