"""The tasks of a study: each is trained once, whatever is added twice, dies or is torn."""

import pytest
from optuna.trial import TrialState

from cnn_lightning.studies.samplers import seeded
from cnn_lightning.studies.storage import StudySource
from cnn_lightning.studies.trials import DEATHS, ERROR, claim, counting, enqueue, error_of, follow_lost, tasks_of

KEYS = ("a", "b")


@pytest.fixture
def source(tmp_path):
    return StudySource(str(tmp_path / "journal.log"), "study")


@pytest.fixture
def study(source):
    return source.open(seeded("random", 0))


def test_task_that_two_machines_added_is_trained_once(study):
    for _ in range(2):
        enqueue(study, "a")
    first = claim(study, KEYS)
    rate = first.suggest_float("lr", 0, 1)
    first.report(0.5, 1)
    assert claim(study, KEYS) is None
    study.tell(first, state=TrialState.FAIL)  # its process died
    follow_lost(study, tasks_of(study.get_trials()))
    follower = claim(study, KEYS)
    assert follower.suggest_float("lr", 0, 1) == rate
    assert study.get_trials()[follower.number].intermediate_values == {1: 0.5}
    study.tell(follower, 0.5)
    assert counting(tasks_of(study.get_trials())["a"]).number == follower.number


def test_error_of_a_task_that_was_added_twice_is_final(study):
    for _ in range(2):
        enqueue(study, "a")
    first = claim(study, KEYS)
    assert claim(study, KEYS) is None
    first.set_user_attr(ERROR, "it diverged")
    study.tell(first, state=TrialState.FAIL)
    tasks = tasks_of(study.get_trials())
    assert error_of(tasks["a"]) == "it diverged"
    follow_lost(study, tasks)
    assert claim(study, KEYS) is None


def test_followers_that_two_commands_added_are_trained_once(study):
    enqueue(study, "a")
    study.tell(claim(study, KEYS), state=TrialState.FAIL)
    tasks = tasks_of(study.get_trials())
    follow_lost(study, tasks)
    follow_lost(study, tasks)
    assert claim(study, KEYS)
    assert claim(study, KEYS) is None


def test_task_of_others_is_dropped_and_can_be_added_again(study):
    for key in ("a", "other"):
        enqueue(study, key)
    assert claim(study, KEYS)
    assert claim(study, KEYS) is None
    tasks = tasks_of(study.get_trials())
    assert [*tasks] == ["a"]
    follow_lost(study, tasks)
    assert len(study.get_trials()) == 2
    enqueue(study, "other")
    assert claim(study, (*KEYS, "other"))


def test_task_whose_processes_die_repeatedly_fails(study):
    enqueue(study, "a")
    for _ in range(DEATHS):
        study.tell(claim(study, KEYS), state=TrialState.FAIL)
        follow_lost(study, tasks_of(study.get_trials()))
    assert claim(study, KEYS) is None
    assert error_of(tasks_of(study.get_trials())["a"]).startswith(f"its process was killed {DEATHS} times in a row")


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_line_of_a_journal_that_was_torn_is_removed(source, study, tmp_path, cut):
    enqueue(study, "a")
    enqueue(study, "b")
    journal = tmp_path / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(content[:-cut])  # a process was killed while it wrote
    enqueue(source.open(), "c")
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = content[:-cut].rfind(b"\n") + 1
    assert b"".join(lines).startswith(content[:whole])
    assert all(line.endswith(b"}\n") for line in lines)
    tasks = tasks_of(source.open().get_trials())
    assert "a" in tasks
    assert "c" in tasks
