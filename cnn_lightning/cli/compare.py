"""Compare networks, recipes or ideas: train every variant on every dataset with every seed, make a table and a plot.

    python scripts/compare.py logs/mine --nets LeNetCNN MLP --data MNIST FashionMNIST --seeds 0 1 2
    python scripts/compare.py logs/mine --recipes lenet_mnist fast_mnist --options="--trainer.max_epochs 2"
    python scripts/compare.py docs/results/ablation                  run or resume the grid of a folder

The folder's grid.yaml says what is compared. If it does not exist, it is written from the options:

    variants:                      name -> options of scripts/fit.py, or dataset -> options
      LeNetCNN: --model.net LeNetCNN
      LeNetCNN, shifted: --model.net LeNetCNN --data.shift 2
    data: [MNIST, FashionMNIST]    default: the recipe's dataset; a recipe's data options apply to that dataset only
    seeds: [0, 1, 2]               {seed} in options stands for the seed, as in --data.split_seed {seed}
    options: --trainer.max_epochs 10      for all variants; the options of a variant override them

The runs are trials of an Optuna study, in FOLDER/journal.log or in the database of --storage. The same command, typed
several times or on several machines, shares the work. Each finished run is saved at once, as a row of runs.csv, too;
table.md, table.csv and accuracy.png summarise the rows, which are not measured again. Results of others can stand next
to them: published.csv in the folder, with the columns data,variant,weights,test_acc,epoch,source. After Ctrl-C,
SIGTERM, SIGKILL or a failed run, the same command resumes, also in the middle of a run. Test accuracy is that of the
epoch with the lowest validation loss, or of the last epoch where options or recipe say --test last; these are in tables
of their own.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
from cnn_lightning.checkpointing.settings import epoch_of
from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.cli.grid import Cell, digest_of, read_grid, save_grid
from cnn_lightning.cli.run_folders import make_folder, newest_tested
from cnn_lightning.cli.studies import (
    add_study_options,
    check_waiting,
    exit_if_failed,
    open_study,
    print_status,
    study_source,
    time_left,
)
from cnn_lightning.cli.terminal import processor_name
from cnn_lightning.cli.trial_process import Work
from cnn_lightning.cli.workers import work_on
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import plots
from cnn_lightning.reporting.tables import COLUMNS, Results
from cnn_lightning.studies.storage import trials_of
from cnn_lightning.studies.trials import ERROR, KEY, counting, enqueue, error_of, follow, tasks_of

ROW = "row"  # attribute of a trial: its row of runs.csv


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
    parser.add_argument("--logs", type=Path, default=Path("logs/compare"), help="folder of runs; default: logs/compare")
    add_study_options(parser)
    options = parser.parse_args(args)
    recipes = {name: f"--config cnn_lightning/recipes/{name}.yaml" for name in options.recipes}
    variants = {net: f"--model.net {net}" for net in options.nets} | recipes
    settings = {"variants": variants, "data": options.data, "seeds": options.seeds, "options": options.options}
    asked = {name: value for name, value in settings.items() if value}
    cells = read_grid(options.folder / "grid.yaml", asked)
    for folder, option in ((options.folder, "the folder"), (options.logs, "--logs")):
        make_folder(folder, option)
    save_grid(options.folder / "grid.yaml", asked)
    grid = Grid(study_source(options, options.folder, "maximize"), options.logs, options.folder, cells, options.jobs)
    study = open_study(grid.source, "compare.py", grid.logs)
    if options.status:
        print_status(study, grid.names)
        return
    grid.enqueue_missing(study)
    print(f"{len(cells)} runs, {len(grid.results(study).rows)} of them done; results in {options.folder}", flush=True)
    work_on(grid, study, options.jobs, lambda ended: grid.report(study, ended))
    results = grid.results(study)
    print(f"\n{(options.folder / 'table.md').read_text(encoding='utf-8')}" if results.rows else "\nNo results yet.")
    exit_if_failed(study, grid.names, "runs failed; the same command tries them again:")


@dataclass(frozen=True)
class Grid(Work):
    """The trials of a comparison: one for each cell, with the row of runs.csv as attribute.

    Args:
        source: The study; its values are validation accuracies.
        logs: Folder of the runs.
        table: Folder of runs.csv and of the tables.
        cells: All runs.
        jobs: How many are trained at the same time by this command.
    """

    table: Path
    cells: Sequence[Cell]
    jobs: int

    @property
    def names(self) -> dict[str, str]:
        """The keys of all trials -> what to call them."""
        return {cell.name: str(cell) for cell in self.cells}

    def enqueue_missing(self, study: Study) -> None:
        """Add the rows of runs.csv that the study has not got, and a trial for each run without one, or that failed.

        Raises:
            UsageError: The study has other runs waiting.
        """
        with FileLock(self.table / ".lock"):
            known = tasks_of(trials_of(study))
            for row_key, row in Results(self.table / "runs.csv", []).all.items():
                key = "-".join(row_key)
                trial = counting(known.get(key, []))
                if not trial or not trial.state.is_finished():
                    attributes = {KEY: key, ROW: row}
                    study.add_trial(create_trial(value=_number(row["val_acc"]), user_attrs=attributes))
            known = tasks_of(trials_of(study))
            check_waiting(self.source, known, self.names)
            for cell in self.cells:
                trials = known.get(cell.name, [])
                if not trials:
                    enqueue(study, cell.name)
                elif error_of(trials):
                    follow(study, trials[-1])

    def words(self, trial: Trial) -> list[str]:
        """Return the arguments of ``fit`` for a run."""
        cell = self._cell(trial.user_attrs[KEY])
        if digest_of(cell.recipe, cell.options) != cell.digest:
            raise UsageError(
                f"{cell.recipe} changed during the comparison: run the command again to compare the new one"
            )
        return cell.words()

    def result(self, trial: FrozenTrial, folder: Path) -> tuple[float, Mapping[str, Any]]:
        """Return the validation accuracy of a run, and its row."""
        cell = self._cell(trial.user_attrs[KEY])
        machine = {"threads": os.environ["OMP_NUM_THREADS"], "jobs": self.jobs, "processor": processor_name()}
        values = dict(zip(COLUMNS, cell.key, strict=False)) | {"options": cell.asked} | read_run(folder) | machine
        return values["val_acc"], {ROW: {name: str(values[name]) for name in COLUMNS}}

    def results(self, study: Study) -> Results:
        """Write runs.csv and the tables from the study, and return the rows."""
        with FileLock(self.table / ".lock"):
            done = [trial for trial in trials_of(study) if trial.state == TrialState.COMPLETE]
            results = Results(self.table / "runs.csv", [cell.key for cell in self.cells])
            results.save({trial.user_attrs[KEY]: trial.user_attrs[ROW] for trial in done}.values())
            return results

    def report(self, study: Study, ended: Sequence[FrozenTrial]) -> None:
        """Print a line for each run that has ended, and write runs.csv and the tables."""
        results = self.results(study)
        tasks = tasks_of(trials_of(study))
        left = [cell for cell in self.cells if cell.key not in results.rows and not error_of(tasks[cell.name])]
        estimate = time_left(sum(results.seconds(cell.key) for cell in left) / self.jobs)
        for trial in ended:
            if row := trial.user_attrs.get(ROW):
                news = f"{float(row['test_acc']):.2%}, {float(row['seconds']):.0f} s of training"
            elif error := trial.user_attrs.get(ERROR):
                news = f"failed: {error}"
            else:
                news = "its process was killed; the run is resumed, unless that keeps happening"
            done = len(self.cells) - len(left)
            print(f"[{done}/{len(self.cells)}] {self._cell(trial.user_attrs[KEY])}: {news}{estimate}", flush=True)

    def _cell(self, key: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == key)


def _number(text: str) -> float:
    """Read the value of a trial, which is in no table; 0 where a row was edited."""
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return 0.0


def read_run(folder: Path) -> dict[str, Any]:
    """Read the result of a run from the checkpoint that was tested, and from its curves."""
    path = newest_tested(folder.glob("*-*"))
    checkpoint, curves = read_run_checkpoint(path), plots.read_scalars(path.parents[1])
    if missing := {"test/acc", "val/acc", "time/seconds"} - curves.keys():
        raise UsageError(f"{folder} has no {', '.join(sorted(missing))}: keep tests, checkpoints and curves enabled")
    seconds, speeds = (dict(curves[f"time/{name}"]) for name in ("seconds", "images_per_second"))
    total = sum(seconds.values())
    parameters = checkpoint.get("parameters")
    if parameters is None:  # version 0.1 did not save it, and had no networks of the user's
        net = ImageClassifier.load_from_checkpoint(path, map_location="cpu").net
        parameters = sum(weight.numel() for weight in net.parameters())
    return {
        "test": path.stem,
        "weights": parameters,
        "test_acc": round(curves["test/acc"][-1][1], 6),
        "test_loss": round(curves["test/loss"][-1][1], 6),
        "val_acc": round(plots.value_at(curves["val/acc"], checkpoint["global_step"]), 6),
        "epoch": epoch_of(checkpoint),
        "seconds": round(total, 1),
        "images_per_second": round(sum(speeds[epoch] * seconds[epoch] for epoch in seconds) / total),
        "torch": torch.__version__,
        "finished": datetime.now().isoformat(" ", "minutes"),
    }
