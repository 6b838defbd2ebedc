import subprocess
import sys

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from cnn_lightning.studies.samplers import NAMES, seeded
from tests.conftest import REPOSITORY

# Asks for one trial of each study in a process of its own, and prints what is drawn.
ASK = """
import sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from cnn_lightning.studies.samplers import NAMES, seeded
storage = JournalStorage(JournalFileBackend(sys.argv[1]))
for name in NAMES:
    trial = optuna.load_study(study_name=name, storage=storage, sampler=seeded(name, 7)).ask()
    print(trial.number, repr(trial.suggest_float("x", 0, 1)), repr(trial.suggest_float("y", 0, 1)))
"""


@pytest.fixture(autouse=True)
def quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def quadratic(trial):
    return sum((trial.suggest_float(name, 0, 1) - at) ** 2 for name, at in (("x", 0.3), ("y", 0.7)))


def drawn(study):
    return [(trial.params["x"], trial.params["y"]) for trial in study.trials]


def study_of(name, seed, trials):
    study = optuna.create_study(sampler=seeded(name, seed))
    study.optimize(quadratic, trials)
    return study


@pytest.mark.slow
def test_processes_draw_what_one_process_draws(tmp_path):
    journal = tmp_path / "journal.log"
    for name in NAMES:
        optuna.create_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))
    command = [sys.executable, "-c", ASK, str(journal)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in processes]
    for name, of_both in zip(NAMES, zip(*lines, strict=True), strict=True):
        first, second = sorted(line.split() for line in of_both)
        assert (first[0], second[0]) == ("0", "1")
        values = [(float(x), float(y)) for _, x, y in (first, second)]
        assert len({number for point in values for number in point}) == 4
        assert values == drawn(study_of(name, 7, 2))


@pytest.mark.parametrize("name", NAMES)
def test_one_worker_is_reproducible(name):
    first = drawn(study_of(name, 3, 16))
    assert first == drawn(study_of(name, 3, 16))
    assert len({*first}) == 16
    assert not {*first} & {*drawn(study_of(name, 4, 16))}
    # A worker that starts in the middle draws what one that was there from the beginning draws.
    study = study_of(name, 3, 13)
    study.sampler = seeded(name, 3)
    study.optimize(quadratic, 3)
    assert first == drawn(study)


def test_tpe_is_better_than_random():
    best = {name: [study_of(name, seed, 40).best_value for seed in range(8)] for name in NAMES}
    assert np.median(best["tpe"]) < 0.5 * np.median(best["random"])


@pytest.mark.parametrize("name", NAMES)
def test_waiting_trials_are_drawn_as_others_are(name):
    expected = drawn(study_of(name, 5, 21))[20]
    for waiting in (True, False):
        study = study_of(name, 5, 20)
        if waiting:
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"key": "a"}))
        else:
            study.enqueue_trial({}, user_attrs={"key": "a"})
        trial = study.ask()
        quadratic(trial)
        assert (trial.number, trial.user_attrs["key"]) == (20, "a")
        assert drawn(study)[20] == expected


def test_running_trials_are_avoided():
    """Of five that run at a time, none is where another is: with the constant liar, TPE sees them."""
    distances = {True: [], False: []}
    for seed in range(6):
        for is_seen in distances:
            study, points = study_of("tpe", seed, 25), []
            for _ in range(5):
                trial = study.ask()
                quadratic(trial)
                points.append((trial.params["x"], trial.params["y"]))
                if not is_seen:
                    study.tell(trial, state=TrialState.FAIL)  # samplers ignore those
            between = np.linalg.norm(np.array(points)[:, None] - np.array(points), axis=-1)
            distances[is_seen].append((between + 9 * np.eye(5)).min())
    assert np.mean(distances[True]) > 1.5 * np.mean(distances[False])


@pytest.mark.parametrize(("name", "seed"), [("grid", 0), ("tpe", -1)])
def test_invalid_samplers(name, seed):
    with pytest.raises(ValueError, match=f"sampler {name}, seed {seed}: expected one of tpe, random"):
        seeded(name, seed)
