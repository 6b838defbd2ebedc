"""What is each idea worth? Trains a grid of variants, datasets and seeds, and makes a table and a plot of the results.

    python scripts/compare.py logs/mine --nets LeNetCNN MLP --data MNIST FashionMNIST --seeds 0 1 2
    python scripts/compare.py logs/mine --recipes lenet_mnist fast_mnist --options="--trainer.max_epochs 2"
    python scripts/compare.py docs/results/ablation                  the grid of a folder, or what is left of it

The folder has grid.yaml, which says what is compared; where there is none yet, it is written from the options:

    variants:                      name -> options of scripts/fit.py, or for each dataset its own options
      LeNetCNN: --model.net LeNetCNN
      LeNetCNN, moved: --model.net LeNetCNN --data.shift 2
    data: [MNIST, FashionMNIST]    without it, that of the recipes; what a recipe says of its own counts for no other
    seeds: [0, 1, 2]
    options: --trainer.max_epochs 10      for all, where a variant does not say otherwise

Every finished run is a row in runs.csv at once; table.md, table.csv and accuracy.png follow from these rows. What has a
row is not run again: after Ctrl-C, SIGTERM or a failed run, the same command goes on where it was stopped, also in
the middle of a run. After a kill, what was running goes on alone, and the same command takes it up later. Test
accuracy is that of the epoch with the lowest validation loss, read once when a run ends.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.cli import run_folders as runs
from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import processor_name, relative_path
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import plots

ROOT = Path(__file__).parents[2]
RECIPES = "cnn_lightning/recipes"  # from there
KEYS = {"variants", "data", "seeds", "options"}  # of grid.yaml
# What a row says; the first four, of what it is the result.
COLUMNS = (
    "variant", "data", "seed", "digest", "options", "weights", "test_acc", "test_loss", "val_acc", "epoch", "seconds",
    "images_per_second", "threads", "jobs", "processor", "torch", "finished",
)  # fmt: skip
OUTPUT = "output.txt"  # in the folder of a run
Row = Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """A run of the grid.

    Attributes:
        variant: Its name.
        data: The dataset, "" for that of the options.
        seed: The seed.
        recipe: The recipe that the options begin with, if they do.
        options: The other options of ``scripts/fit.py``.
        digest: Of the options and of what the recipe says.
    """

    variant: str
    data: str
    seed: int
    recipe: Path | None
    options: tuple[str, ...]
    digest: str

    @property
    def asked(self) -> str:
        """Recipe and options, for people."""
        return shlex.join([*(["--config", self.recipe.name] if self.recipe else []), *self.options])

    def __str__(self) -> str:
        return f"{self.variant}{f' on {self.data}' if self.data else ''}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells its row from others."""
        return (self.variant, self.data, str(self.seed), self.digest)

    def folder(self, logs: Path) -> Path:
        """Where it is trained."""
        return logs / re.sub(r"[^\w.-]+", "_", "-".join(self.key))

    def command(self, logs: Path) -> list[str]:
        """What trains it, or goes on with it."""
        return [
            *(sys.executable, str(ROOT / "scripts/fit.py")),
            *([f"--config={self.recipe}"] if self.recipe else []),
            *self.options,
            *([f"--data={self.data}"] if self.data else []),
            *(f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.folder(logs)}"),
            *("--ckpt_path=last", "--trainer.enable_progress_bar=false", "--dashboard=false"),
        ]


def read_options(args: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = OptionParser(__doc__)
    parser.add_argument("folder", type=Path, help="has grid.yaml, and gets the results")
    parser.add_argument("--nets", nargs="+", default=[], help="networks to compare")
    parser.add_argument("--recipes", nargs="+", default=[], help="recipes to compare, by name")
    parser.add_argument("--data", nargs="+", help="datasets to compare them on")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2")
    parser.add_argument("--options", help='options of scripts/fit.py for all: --options="--NAME VALUE ..."')
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the cores; default: 1")
    parser.add_argument("--logs", type=Path, default=Path("logs/compare"), help="where runs lie; default: logs/compare")
    options = parser.parse_args(args)
    if options.jobs < 1:
        raise UsageError(f"jobs is {options.jobs}, expected at least 1: change --jobs")
    return options


@command
def compare(args: Sequence[str]) -> None:
    """Run what is left of a grid, and write what came out."""
    options = read_options(args)
    with alone_in(options.folder, "the folder"), alone_in(options.logs, "--logs"):
        cells = read_grid(options)
        results = Results(options.folder / "runs.csv", cells)
        done = results.rows
        left = [cell for cell in cells if cell.key not in done]
        print(
            f"{len(cells)} runs, {len(cells) - len(left)} of them done; results in {relative_path(options.folder)}",
            flush=True,
        )
        failed = run_all(left, results, options)
        results.write_tables()
    print(f"\n{(options.folder / 'table.md').read_text(encoding='utf-8')}" if results.rows else "\nNo results yet.")
    if failed:
        print(f"{len(failed)} runs failed; the same command tries them again:", file=sys.stderr)
        for cell, reason in failed.items():
            print(f"{cell}: {reason}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def alone_in(folder: Path, option: str) -> Iterator[None]:
    """Keep a folder for this process; it is made where there is none.

    Raises:
        UsageError: It cannot be made, or another process has it; the message names the option to change.
    """
    make_folder(folder, option)
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process compares in {folder}: wait for it, or change {option}") from None
    with lock:
        yield


def read_grid(options: argparse.Namespace) -> list[Cell]:
    """Read what is compared from grid.yaml, or make it from the options and write it there; all its runs."""
    path = options.folder / "grid.yaml"
    variants = {net: f"--model.net {net}" for net in options.nets}
    variants |= {name: f"--config {RECIPES}/{name}.yaml" for name in options.recipes}
    asked = {"variants": variants or None, "data": options.data, "seeds": options.seeds, "options": options.options}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not path.exists():
        if not variants:
            raise UsageError(f"nothing to compare: name --nets or --recipes, or write {path} (see --help)")
        cells = grid_cells(asked, path)
        write_file(path, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=1000).encode())
        return cells
    try:
        grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    cells = grid_cells(grid, path)
    for name, value in asked.items():
        if value != grid.get(name):
            raise UsageError(f"{path} has other {name}: change it there, or name another folder")
    return cells


def grid_cells(grid: Any, path: Path) -> list[Cell]:
    """All runs of a grid, seed after seed, so that every variant has a result soon.

    Raises:
        UsageError: The grid is none.
    """
    if not isinstance(grid, dict) or not set(grid) <= KEYS or not isinstance(grid.get("variants"), dict):
        raise UsageError(f"{path}: expected variants, with names and options, and beside it {', '.join(sorted(KEYS))}")
    seeds, datasets = grid.get("seeds", [0, 1, 2]), grid.get("data", [""])
    if not is_list_of(int, seeds):
        raise UsageError(f"{path}: expected different numbers as seeds, like [0, 1, 2]")
    if not is_list_of(str, datasets):
        raise UsageError(f"{path}: expected different names as data, like [MNIST, FashionMNIST]")
    cells = []
    for seed, data, (name, own) in itertools.product(seeds, datasets, grid["variants"].items()):
        options = own.get(data) if isinstance(own, dict) else own
        of = f"{name}{data and f' for {data}'}"
        words, shared = words_of(options, f"{path}: {of}"), words_of(grid.get("options", ""), f"{path}: all")
        recipe = None
        if words[:1] == ["--config"] and len(words) > 1:
            recipe = next((file for file in (Path(words[1]), ROOT / words[1]) if file.is_file()), None)
            if not recipe:
                raise UsageError(f"{path}: {of}: there is no recipe {words[1]}")
            words = words[2:]
        # The variant has the last word, but what its recipe says does not count for that.
        words = (*shared, *words)
        named = {word.split("=")[0] for word in words}
        if not named.isdisjoint(("--config", "-c")):
            raise UsageError(f"{path}: {of}: expected one --config, at the beginning, and the path after a space")
        if not (recipe or data or "--data" in named):
            raise UsageError(f"{path}: {of}: expected data, like [MNIST], or --data; without it, it may be any")
        cells.append(Cell(str(name), data, seed, recipe, words, digest_of(recipe, words)))
    return cells


def digest_of(recipe: Path | None, options: Sequence[str]) -> str:
    """Tells what is trained from all else; comments in the recipe do not count."""
    lines = recipe.read_text(encoding="utf-8").splitlines() if recipe else []
    says = [line for line in lines if not line.startswith("#")]
    return hashlib.sha256(json.dumps([says, options]).encode()).hexdigest()[:8]


def words_of(options: Any, what: str) -> list[str]:
    """Split options as a shell does.

    Raises:
        UsageError: They are no text, or a quote is open.
    """
    try:
        if isinstance(options, str):
            return shlex.split(options)
        problem = f"they are {options}"
    except ValueError as error:
        problem = str(error)
    raise UsageError(f"{what}: expected options as text ({problem})")


def is_list_of(kind: type, values: Any) -> bool:
    """Whether it is a list of one type, without repetitions, that is not empty."""
    return (
        isinstance(values, list) and bool(values) and {*map(type, values)} == {kind} and len({*values}) == len(values)
    )


class Results:
    """The rows of all finished runs, on disk at once.

    Args:
        path: The CSV file.
        cells: The runs of the grid; rows of others are kept, but are not in the table.
    """

    def __init__(self, path: Path, cells: Sequence[Cell]) -> None:
        self.path = path
        self.cells = cells
        self._all: dict[tuple[str, ...], Row] = {}
        if path.exists():
            header, *lines = list(csv.reader(path.read_text(encoding="utf-8", errors="replace").splitlines())) or [[]]
            if tuple(header) != COLUMNS or {len(line) for line in lines} - {len(COLUMNS)}:
                raise UsageError(f"{path} has other columns than this version writes: move it away")
            self._all = {tuple(line[:4]): dict(zip(COLUMNS, line, strict=True)) for line in lines}

    @property
    def rows(self) -> dict[tuple[str, ...], Row]:
        """Those of the grid, by the key of the run."""
        return {cell.key: self._all[cell.key] for cell in self.cells if cell.key in self._all}

    def add(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Add a row, and bring it to the disk."""
        key = dict(zip(COLUMNS, cell.key, strict=False))
        row = key | {"options": cell.asked} | {name: str(value) for name, value in result.items()}
        self._all[cell.key] = row
        write_file(self.path, as_csv(COLUMNS, ([row[name] for name in COLUMNS] for row in self._all.values())))
        self.write_tables()

    def seconds(self, cell: Cell) -> float:
        """How long it will take: as other seeds of it did, or as all others did; 0 if nobody knows."""
        rows = self._all.values()
        same = [row for row in rows if (row["variant"], row["data"]) == (cell.variant, cell.data)]
        return statistics.mean([float(row["seconds"]) for row in same or rows] or [0.0])

    def write_tables(self) -> None:
        """Write the tables and the plot."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows.values():
            groups.setdefault((row["data"], row["variant"]), []).append(row)
        if not groups:
            return
        summaries = {group: summary(rows) for group, rows in groups.items()}
        table = ([*group, *result.values()] for group, result in summaries.items())
        write_file(
            self.path.with_name("table.csv"), as_csv(["data", "variant", *next(iter(summaries.values()))], table)
        )
        write_file(self.path.with_name("table.md"), as_markdown(summaries).encode())
        plots.accuracy_by_cost(summaries, self.path.with_name("accuracy.png"))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds; the latter is None for a single one."""

    def values(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    acc, loss = values("test_acc"), values("test_loss")
    return {
        "seeds": len(rows),
        "weights": int(rows[0]["weights"]),
        "test_acc": round(statistics.mean(acc), 6),
        "test_acc_sd": round(statistics.stdev(acc), 6) if len(rows) > 1 else None,
        "test_loss": round(statistics.mean(loss), 5),
        "seconds": round(statistics.mean(values("seconds")), 1),
        "images_per_second": round(statistics.mean(values("images_per_second"))),
    }


def as_csv(header: Sequence[str], rows: Iterator[Sequence[Any]]) -> bytes:
    """A table as a CSV file."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue().encode()


def as_markdown(summaries: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """A table for each dataset."""
    lines = []
    for data in dict.fromkeys(data for data, _ in summaries):
        heading = f"{data}, variant" if data else "variant"
        lines += ["", f"| {heading} | test accuracy | test loss | weights | training | images/s | seeds |"]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for (of, variant), row in summaries.items():
            if of == data:
                sd = "" if row["test_acc_sd"] is None else f" ± {100 * row['test_acc_sd']:.2f}"
                lines.append(
                    f"| {variant} | {100 * row['test_acc']:.2f}{sd} % | {row['test_loss']:.4f} | {row['weights']:,} | "
                    f"{row['seconds'] / 60:.1f} min | {row['images_per_second']:,} | {row['seeds']} |"
                )
    return "\n".join(lines[1:]) + "\n"


def run_all(cells: Sequence[Cell], results: Results, options: argparse.Namespace) -> dict[Cell, str]:
    """Run the cells, some at a time; returns those that failed, and why."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // options.jobs))} | os.environ
    machine = {"threads": environment["OMP_NUM_THREADS"], "jobs": options.jobs, "processor": processor_name()}
    waiting, running, failed = deque(cells), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                cell = waiting.popleft()
                running[start(cell, options.logs, environment)] = cell
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                cell = running.pop(process)
                try:
                    result = outcome(process, cell.folder(options.logs))
                except UsageError as error:
                    failed[cell] = str(error)
                    said = f"failed: {error}"
                else:
                    results.add(cell, result | machine)
                    said = f"{result['test_acc']:.2%}, {result['seconds']:.0f} s of training"
                ended = len(results.rows) + len(failed)
                minutes = sum(map(results.seconds, [*waiting, *running.values()])) / options.jobs / 60
                left = f"; about {minutes:.0f} min left" if minutes else ""
                print(f"[{ended}/{len(results.cells)}] {cell}: {said}{left}", flush=True)
    finally:
        for process in running:  # stopped by Ctrl-C or a signal: they save, too
            with suppress(ProcessLookupError):
                process.terminate()  # not Ctrl-C, which a process does not hear if this one was started with &
        for process in running:
            process.wait()
    return failed


def start(cell: Cell, logs: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a run, whose output goes into its folder.

    Raises:
        UsageError: Its recipe is no longer what the row would be of.
    """
    if digest_of(cell.recipe, cell.options) != cell.digest:
        raise UsageError(f"{cell.recipe} was changed while it was compared: the same command compares what it says now")
    folder = cell.folder(logs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OUTPUT).open("w") as output:
        # In a session of its own, so that Ctrl-C does not reach it: it is stopped from here, once.
        return subprocess.Popen(
            cell.command(logs), stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def outcome(process: subprocess.Popen, folder: Path) -> dict[str, Any]:
    """The result of a run that has ended.

    Raises:
        UsageError: It failed, or left no result.
    """
    if process.returncode:
        output = folder / OUTPUT
        lines = output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        errors = [line for line in lines if line.startswith("error:")]
        raise UsageError(f"{(errors or lines)[-1]} (all of it in {relative_path(output)})")
    try:
        return read_run(folder)
    except KeyError as error:
        raise UsageError(f"{folder} has no {error}: leave tests, checkpoints and curves switched on") from error


def read_run(folder: Path) -> dict[str, Any]:
    """The result of a run, from its checkpoint and its curves."""
    best = runs.newest_checkpoint(folder.glob("*-*"))
    checkpoint = runs.read_checkpoint(best)
    scalars = plots.read_scalars(best.parents[1])
    last = {tag: points[-1][1] for tag, points in scalars.items()}
    seconds, speeds = (dict(scalars[f"epoch/{name}"]) for name in ("seconds", "images_per_second"))
    images = sum(speeds[number] * seconds[number] for number in seconds)
    net = ImageClassifier.load_from_checkpoint(best, map_location="cpu").net
    return {
        "weights": sum(weight.numel() for weight in net.parameters()),
        "test_acc": round(last["test/acc"], 6),
        "test_loss": round(last["test/loss"], 6),
        "val_acc": round(dict(scalars["val/acc"])[checkpoint["global_step"]], 6),
        "epoch": runs.epoch_of(checkpoint),
        "seconds": round(sum(seconds.values()), 1),
        "images_per_second": round(images / sum(seconds.values())),
        "torch": torch.__version__,
        "finished": datetime.now().isoformat(" ", "minutes"),
    }
