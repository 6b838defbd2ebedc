"""Search for better settings: train trials, stop the bad ones early, and test the best one.

    python scripts/sweep.py logs/lr --config RECIPE.yaml --search "model.optimizer.lr: log 1e-4 1e-1" --trials 30
    python scripts/sweep.py logs/lr                                  run or resume the search of a folder
    python scripts/sweep.py logs/lr --status                         print its state

The folder's search.yaml says what is searched. If it does not exist, it is written from the options:

    config: cnn_lightning/recipes/lenet_mnist.yaml      and options: further options of scripts/fit.py
    search:                                             any options of scripts/fit.py
      model.optimizer.lr: log 1e-4 1e-1                 a range on a log scale
      model.net.dropout: 0 0.6                          a range; of integers, if both ends are
      data.batch_size: [64, 128, 256]                   choices
      model.net: {LeNetCNN: {kernel_size: [3, 5]}, MLP: {}}     choices, with settings of their own
    trials: 50                     how many; a grid has as many as there are combinations
    metric: val/loss               or val/acc, of the epoch with the lowest validation loss (or the last: --test)
    sampler: tpe                   or random, or grid
    pruner: halving                or none: after epochs 1, 2, 4, ... the worse half of the trials stops
    seed: 0                        of the sampler

The trials are those of an Optuna study, in FOLDER/journal.log or in the database of --storage. The same command, typed
several times or on several machines, shares the work. After SIGKILL, the same command resumes. The best trial is tested
once, at the end, and becomes best.yaml, a recipe for scripts/fit.py.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from cnn_lightning.callbacks.pruning import PruneTrial
from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.exit_codes import OptionParser, at_least_one, command
from cnn_lightning.cli.run_folders import make_folder, newest_tested
from cnn_lightning.cli.search import CHOICES, Search, read_search
from cnn_lightning.cli.studies import (
    add_study_options,
    check_waiting,
    exit_if_failed,
    open_study,
    print_status,
    study_source,
    time_left,
)
from cnn_lightning.cli.trial_process import Work
from cnn_lightning.cli.workers import work_on
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.plots import read_scalars, value_at
from cnn_lightning.studies.pictures import write_pictures
from cnn_lightning.studies.samplers import seeded
from cnn_lightning.studies.space import to_words
from cnn_lightning.studies.storage import patiently, trials_of
from cnn_lightning.studies.trials import ERROR, KEY, PRUNED, counting, enqueue, tasks_of

# Attributes of a trial: its checkpoint, and its config.yaml as text.
CHECKPOINT, CONFIG = "checkpoint", "config"
# Attributes of the study: the number of the trial that was tested, and a digest of what is searched.
TESTED, SEARCH = "tested", "search"


@command
def sweep(args: Sequence[str]) -> None:
    """Train the missing trials of a search, and test the best one."""
    parser = OptionParser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of search.yaml and of the results")
    parser.add_argument("--config", help="recipe to start from")
    parser.add_argument("--options", help='options of scripts/fit.py for all: --options="--NAME VALUE ..."')
    parser.add_argument("--search", action="append", help='an option and its values: "OPTION: VALUES"; may be repeated')
    parser.add_argument("--trials", type=at_least_one, help="default: 50")
    parser.add_argument("--metric", choices=CHOICES["metric"], help="default: val/loss")
    parser.add_argument("--sampler", choices=CHOICES["sampler"], help="default: tpe")
    parser.add_argument("--pruner", choices=CHOICES["pruner"], help="default: halving")
    parser.add_argument("--seed", type=int, help="default: 0")
    add_study_options(parser)
    options = parser.parse_args(args)
    make_folder(options.folder, "the folder")
    search = read_search(options.folder / "search.yaml", options)
    source = study_source(options, options.folder, "minimize" if search.metric == "val/loss" else "maximize")
    work = Sweep(source, options.folder / "runs" / (options.study or ""), options.folder, search)
    if options.status:
        print_status(open_study(source, "sweep.py", work.logs), work.names)
        return
    search.check()
    search.save()
    study = open_study(source, "sweep.py", work.logs)
    work.enqueue_missing(study)
    done = sum(trial.state.is_finished() for trial in work.trials(study))
    print(f"{len(work.names)} trials, {done} of them done; results in {options.folder}", flush=True)
    work_on(work, study, options.jobs, lambda ended: work.report(study, ended))
    work.conclude(study)
    exit_if_failed(study, work.names, "trials failed:")


@dataclass(frozen=True)
class Sweep(Work):
    """The trials of a search.

    Args:
        source: The study; its values are those of the metric.
        logs: Folder of the runs.
        results: Folder of the results.
        search: What is searched.
    """

    results: Path
    search: Search

    @property
    def names(self) -> dict[str, str]:
        """The keys of all trials -> what to call them."""
        return {f"{index:04}": f"trial {index}" for index in range(self.search.size)}

    def sampler(self) -> BaseSampler | None:
        """What chooses the parameters of a trial; those of a grid are fixed."""
        return None if self.search.sampler == "grid" else seeded(self.search.sampler, self.search.seed)

    def trials(self, study: Study) -> list[FrozenTrial]:
        """Return the trials of this search that have not failed."""
        tasks = tasks_of(trials_of(study))
        return [trial for key in self.names if (trial := counting(tasks.get(key, [])))]

    def enqueue_missing(self, study: Study) -> None:
        """Add the trials that the study has not got; one that failed is not tried again.

        Raises:
            UsageError: The study is of another search.
        """
        asked = self.search.digest()
        with FileLock(self.results / ".lock"):
            if study.user_attrs.get(SEARCH, asked) != asked:
                raise UsageError(
                    f"the study {self.source.name} in {self.source} searches other options: name another --study"
                )
            study.set_user_attr(SEARCH, asked)
            known = tasks_of(trials_of(study))
            check_waiting(self.source, known, self.names)
            combinations = self.search.space.grid() if self.search.sampler == "grid" else [{}] * self.search.size
            for key, parameters in zip(self.names, combinations, strict=True):
                if key not in known:
                    enqueue(study, key, parameters)

    def words(self, trial: Trial) -> list[str]:
        """Return the arguments of ``fit`` for a trial; the test set stays out of it."""
        words = [*self.search.words, *to_words(self.search.space.suggest(trial)), "--trainer.limit_test_batches=0"]
        if self.search.pruner == "halving":
            words += [f"--trainer.callbacks+={PruneTrial.__name__}"]
            words += [f"--trainer.callbacks.monitor={self.search.metric}"]
        return words

    def result(self, trial: FrozenTrial, folder: Path) -> tuple[float, Mapping[str, Any]]:
        """Return the metric of the epoch that is tested, the checkpoint and the settings."""
        path = newest_tested(folder.glob("*-*"))
        step = read_run_checkpoint(path)["global_step"]
        curves = read_scalars(path.parents[1])
        if self.search.metric not in curves:
            raise UsageError(f"{folder} has no {self.search.metric}: keep curves enabled")
        value = value_at(curves[self.search.metric], step)
        config = (path.parents[1] / "config.yaml").read_text(encoding="utf-8")
        return value, {CHECKPOINT: str(path.absolute()), CONFIG: config}

    def report(self, study: Study, ended: Sequence[FrozenTrial]) -> None:
        """Print a line for each trial that has ended, with the best so far and the time left."""
        counts = self.trials(study)
        done = [trial for trial in counts if trial.state.is_finished()]
        left, running = len(counts) - len(done), sum(trial.state == TrialState.RUNNING for trial in counts)
        seconds = [trial.duration.total_seconds() for trial in done if trial.duration]
        best = best_of(study)
        news = f"; best {best.value:.4f} of {_name(best)}" if best else ""
        news += time_left(sum(seconds) / len(seconds) * left / max(1, running)) if seconds else ""
        for trial in ended:
            size = self.search.size
            print(f"[{size - left}/{size}] {_name(trial)}: {self._end_of(trial)}{news}", flush=True)

    def conclude(self, study: Study) -> None:
        """Test the best trial, if that was not done yet, and write best.yaml, the table and the pictures."""
        best = best_of(study)
        if not best:
            print("\nNo trial was trained to its end.")
            return
        with FileLock(self.results / ".lock"):  # another command may end at the same time
            self._conclude(study, best)

    def _conclude(self, study: Study, best: FrozenTrial) -> None:
        header = f"# Purpose: The best of {self.search.size} trials of a search: {self._describe(best)}.\n"
        header += f"# Command: python scripts/fit.py --config {self.results / 'best.yaml'}\n"
        write_file(self.results / "best.yaml", (header + recipe_of(best.user_attrs[CONFIG])).encode())
        print("", *write_pictures(study, self.results, self.search.metric), sep="\n")
        print(f"best        {self._describe(best)}")
        print(f"recipe      {self.results / 'best.yaml'}")
        report = self.results / f"report_{_name(best).replace(' ', '_')}"
        if patiently(lambda: study.user_attrs).get(TESTED) != best.number:
            checkpoint = Path(best.user_attrs[CHECKPOINT])
            if not checkpoint.is_file():
                print(
                    f"not tested  {checkpoint} is on the machine of {best.user_attrs['worker']}: type the command there"
                )
                return
            shutil.rmtree(report, ignore_errors=True)  # of a test that was interrupted
            evaluate([str(checkpoint), f"--report={report}"])
            patiently(lambda: study.set_user_attr(TESTED, best.number))
        else:
            print(f"tested      {report / 'report.html'}")

    def _describe(self, trial: FrozenTrial) -> str:
        return f"{_name(trial)} ({self.search.metric} {trial.value:.4f}: {_parameters(trial)})"

    def _end_of(self, trial: FrozenTrial) -> str:
        if trial.state == TrialState.PRUNED:
            return f"pruned after epoch {trial.user_attrs[PRUNED]}, {self.search.metric} {trial.value:.4f}"
        if trial.state == TrialState.COMPLETE:
            return f"{self.search.metric} {trial.value:.4f} ({_parameters(trial)})"
        error = trial.user_attrs.get(ERROR)
        return (
            f"failed: {error}" if error else "its process was killed; the trial is resumed, unless that keeps happening"
        )


def best_of(study: Study) -> FrozenTrial | None:
    """Return the best of the trials that were trained to their end; None where no trial was."""
    done = [trial for trial in trials_of(study) if trial.state == TrialState.COMPLETE]
    best = max if study.direction == StudyDirection.MAXIMIZE else min
    return best(done, key=lambda trial: trial.values[0], default=None)


def _name(trial: FrozenTrial) -> str:
    return f"trial {int(trial.user_attrs[KEY])}"


def recipe_of(config: str) -> str:
    """Return the config.yaml of a trial as a recipe: without what only the search needs."""
    settings = yaml.safe_load(config)
    callbacks = settings["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    settings["trainer"]["callbacks"] = [c for c in callbacks if not c["class_path"].endswith(f".{PruneTrial.__name__}")]
    for name in ("limit_test_batches", "default_root_dir", "enable_progress_bar"):
        settings["trainer"].pop(name, None)
    for name in ("ckpt_path", "dashboard"):
        settings.pop(name, None)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)


def _parameters(trial: FrozenTrial) -> str:
    texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in trial.params.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())
