"""compare.py by several commands at once, whatever is killed when."""

import csv
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise

import psutil
import pytest
import yaml
from optuna.trial import TrialState

from cnn_lightning.cli.compare import Grid
from cnn_lightning.cli.grid import read_grid
from cnn_lightning.studies.storage import StudySource
from cnn_lightning.studies.trials import BEGAN_AT, KEY, STOPPED, WORKER, counting, tasks_of
from tests.conftest import REPOSITORY
from tests.faults import assert_same_result
from tests.postgres import Machines, PostgreSQL

pytestmark = pytest.mark.slow
PACE = ("seconds", "images_per_second", "finished", "jobs", "threads")  # differ between equal runs
OPTIONS = "--trainer.accelerator cpu --trainer.enable_model_summary false"
COMPARE = [sys.executable, str(REPOSITORY / "scripts/compare.py")]


def write_grid(folder, epochs, cells=12):
    """Write a grid of MLPs of different learning rates on Digits, with three seeds each."""
    folder.mkdir(parents=True)
    rates = {f"lr {k}": f"--model.net MLP --model.optimizer.lr {0.001 * k}" for k in range(1, cells // 3 + 1)}
    grid = {"variants": rates, "data": ["Digits"], "seeds": [0, 1, 2]}
    grid["options"] = f"{OPTIONS} --trainer.max_epochs {epochs}"
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))


def start(folder, *options, popen=subprocess.Popen):
    """Start the command in a session of its own, as in a terminal of its own."""
    command = [*COMPARE, str(folder), "--logs", str(folder / "logs"), *options]
    with (folder / "output.txt").open("a") as output:
        return popen(command, stdout=output, stderr=output, start_new_session=True)


def rows_of(folder):
    """The rows by variant and seed, without what differs between equal runs."""
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    same = {(row["variant"], row["seed"]): {k: v for k, v in row.items() if k not in PACE} for row in rows}
    assert len(same) == len(rows)
    return same


def trials_of(folder, storage=None):
    return StudySource(storage or str(folder / "journal.log"), folder.name, "maximize").open().get_trials()


def assert_each_cell_trained_once(trials):
    trained = Counter(trial.user_attrs[KEY] for trial in trials if WORKER in trial.user_attrs)
    assert len(trained) == 12
    assert {*trained.values()} == {1}


def assert_same_as(whole, folder, trials):
    """The same rows and runs, to the bit, and each cell is complete once, whatever was killed."""
    assert rows_of(folder) == rows_of(whole)
    tasks = tasks_of(trials)
    assert all(counts.state == TrialState.COMPLETE for trials in tasks.values() if (counts := counting(trials)))
    assert Counter(trial.state for trials in tasks.values() for trial in trials)[TrialState.COMPLETE] == 12
    ours, theirs = runs_of(folder), runs_of(whole)
    assert ours.keys() == theirs.keys()
    for cell in ours:
        assert_same_result(ours[cell], theirs[cell])
    resumed = [trial for trials in tasks.values() for trial in trials[1:] if trial.user_attrs.get(BEGAN_AT)]
    print(f"{len(resumed)} trials resumed from a checkpoint")
    return len(resumed)


def all_done(folder):
    tasks = tasks_of(trials_of(folder))
    counts = [counting(trials) for trials in tasks.values()]
    return len(tasks) == 12 and all(trial and trial.state.is_finished() for trial in counts)


def runs_of(folder):
    """The run of each cell; a process killed before it has saved anything leaves a folder without checkpoint."""
    return {path.parents[3].name: path.parents[1] for path in folder.glob("logs/*/*/*/checkpoints/last.ckpt")}


def saved_since(folder, moment):
    """Whether a run has saved a checkpoint since then, so that a kill finds it in the middle."""
    for path in folder.glob("logs/*/*/*/checkpoints/last.ckpt"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime > moment:
                return True
    return False


def kill(command, what):
    """Kill a command, a trial or the server of its processes alone, or everything as if the machine had gone."""
    processes = psutil.Process(command.pid).children(recursive=True)
    trials = [process for process in processes if len(processes) > 1 and process.ppid() != command.pid]
    servers = [process.parent() for process in trials[:1]]
    chosen = {"command": [], "trial": trials[:1], "server": servers, "machine": processes}[what]
    with suppress(psutil.NoSuchProcess):
        for process in chosen:
            process.kill()
    if what in ("command", "machine"):
        command.kill()
        command.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A grid that one worker has trained, and that nothing stopped, by its number of epochs."""

    @cache
    def train(epochs):
        folder = tmp_path_factory.mktemp("whole") / "mine"
        write_grid(folder, epochs)
        assert start(folder).wait() == 0
        return folder

    return train


def test_three_workers_train_each_cell_once(whole, tmp_path):
    folder = tmp_path / "mine"
    write_grid(folder, epochs=3)
    commands = [start(folder, "--jobs", "2"), start(folder)]
    assert [command.wait(timeout=300) for command in commands] == [0, 0]
    assert rows_of(folder) == rows_of(whole(3))
    assert_each_cell_trained_once(trials_of(folder))


@pytest.mark.parametrize(("kills", "epochs"), [(3, 3), pytest.param(20, 60, marks=pytest.mark.campaign)])
def test_kills_lose_nothing_double_nothing_change_nothing(whole, tmp_path, kills, epochs):
    """Random processes are killed at random moments; the commands are typed again, and the result is the same."""
    folder, choose = tmp_path / "mine", random.Random(kills)
    write_grid(folder, epochs)
    commands = [start(folder), start(folder)]
    killed, last = Counter(), 0.0
    while sum(killed.values()) < kills and not all_done(folder):
        time.sleep(choose.uniform(0.2, 2))
        what, command = choose.choice(["command", "trial", "server", "machine"]), choose.choice(commands)
        if saved_since(folder, last) and command.poll() is None:
            kill(command, what)
            killed[what] += 1
            last = time.time()
        commands = [command if command.poll() is None else start(folder) for command in commands]
    assert sum(killed.values()) == kills, "the runs ended before"
    codes = [command.wait(timeout=600) for command in commands]
    assert start(folder).wait(timeout=600) == 0, codes
    print(dict(killed))
    resumed = assert_same_as(whole(epochs), folder, trials_of(folder))
    assert resumed or kills < 20


def test_two_machines_share_a_database(whole, tmp_path):
    """2 + 2 workers in two network namespaces, without a common folder: each cell is trained once, all have its row."""
    folders = [tmp_path / machine / "mine" for machine in ("here", "there")]
    with Machines(2) as machines:
        for folder in folders:
            write_grid(folder, epochs=3)
        commands = [
            start(folder, "--jobs=2", f"--storage={machines.urls[index]}", popen=partial(machines.run, index))
            for index, folder in enumerate(folders)
        ]
        assert [command.wait(timeout=300) for command in commands] == [0, 0]
        for folder in folders:
            assert rows_of(folder) == rows_of(whole(3))
        assert_each_cell_trained_once(trials_of(folders[0], machines.server.url))
        runs = [runs_of(folder) for folder in folders]
        assert [bool(own) for own in runs] == [True, True]
        assert sum(map(len, runs)) == 12


def test_process_that_died_as_it_took_a_trial(tmp_path):
    """It has sent no heartbeat, without which Optuna counts no trial as lost."""
    folder = tmp_path / "mine"
    write_grid(folder, epochs=1, cells=3)
    with PostgreSQL() as server:
        cells = read_grid(folder / "grid.yaml", {})
        source = StudySource(server.url, "mine", "maximize")
        Grid(source, folder / "logs", folder, cells, jobs=1).enqueue_missing(source.open())
        with pytest.warns(UserWarning, match="Heartbeat"):
            source.open().ask()
        assert start(folder, "--grace=2", f"--storage={server.url}").wait(timeout=120) == 0
        states = [trial.state.name for trial in trials_of(folder, server.url)]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_killed_server_of_processes_costs_no_trial(tmp_path):
    """The trial lives on, or saves its state and is resumed; it is neither lost nor trained by two at a time."""
    folder = tmp_path / "mine"
    write_grid(folder, epochs=60, cells=3)
    command = start(folder)
    while not saved_since(folder, 0):
        time.sleep(0.05)
    kill(command, "server")
    assert command.wait(timeout=300) == 0, (folder / "output.txt").read_text()
    assert len(rows_of(folder)) == 3
    for trials in tasks_of(trials_of(folder)).values():
        *stopped, last = trials
        assert last.state == TrialState.COMPLETE
        assert all(trial.user_attrs.get(STOPPED) for trial in stopped)
        assert all(first.datetime_complete <= second.datetime_start for first, second in pairwise(trials))


def test_processes_that_fail_at_once_are_not_started_forever(tmp_path):
    folder = tmp_path / "mine"
    write_grid(folder, epochs=1, cells=3)
    command = start(folder, popen=partial(subprocess.Popen, env=os.environ | {"OMP_NUM_THREADS": "4,2"}))
    assert command.wait(timeout=120) == 2
    output = (folder / "output.txt").read_text()
    assert output.endswith("error: processes end before they take a run: see what they have printed above\n")
    assert "ValueError: invalid literal for int()" in output


@pytest.mark.parametrize(("kills", "epochs"), [(2, 3), pytest.param(20, 60, marks=pytest.mark.campaign)])
def test_lost_machines_and_a_restarted_database_change_nothing(whole, tmp_path, kills, epochs):
    """Machines with a common folder lose their power at random moments, and the database is stopped and started."""
    folder, choose, killed = tmp_path / "mine", random.Random(kills), 0
    last = 0.0
    write_grid(folder, epochs)
    with Machines(2) as machines:

        def begin(index):
            options = ("--jobs=2", "--grace=6", f"--storage={machines.urls[index]}")
            return start(folder, *options, popen=partial(machines.run, index))

        commands = [begin(0), begin(1)]
        while killed < kills and any(command.poll() is None for command in commands):
            time.sleep(choose.uniform(0.2, 2))
            if saved_since(folder, last):
                index = choose.randrange(2)
                machines.kill(index)
                killed, last = killed + 1, time.time()
                if killed == kills // 2:
                    machines.server.stop()
                    time.sleep(3)
                    machines.server.start()
                commands[index] = begin(index)
        assert killed == kills, "the runs ended before"
        codes = [command.wait(timeout=600) for command in commands]
        assert begin(0).wait(timeout=600) == 0, codes
        resumed = assert_same_as(whole(epochs), folder, trials_of(folder, machines.server.url))
        assert resumed or kills < 20
