import csv
import math
import random

import matplotlib as mpl
import optuna
import pytest
from matplotlib import pyplot
from optuna.trial import TrialState
from PIL import Image

from cnn_lightning.studies import pictures
from cnn_lightning.studies.pictures import write_pictures
from cnn_lightning.studies.samplers import seeded
from cnn_lightning.studies.space import Space, merge

SPACE = Space.read(
    merge(
        [
            """
model.net:
  LeNetCNN: {kernel_size: [3, 5], dropout: 0 0.5}
  DropoutCNN: {dropout: 0.1 0.6}
model.optimizer.lr: log 1e-4 1e-1
data.batch_size: log 16 512
model.schedule: [null, OneCycle]
seed: [0]
"""
        ]
    )
)
PICTURES = {"history.png", "importance.png", "parallel.png"}


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when they were saved, by name."""
    figures, save = {}, pictures.save_figure
    monkeypatch.setattr(
        pictures, "save_figure", lambda figure, path: (figures.update({path.name: figure}), save(figure, path))
    )
    return figures


def study_of(trials, loss, direction="minimize"):
    """A study of complete trials, where the loss follows from trial number and values."""
    study = optuna.create_study(sampler=seeded("random", 0), direction=direction)
    for number in range(trials):
        trial = study.ask()
        values = SPACE.suggest(trial)
        trial.set_user_attr("key", f"t{number}")
        study.tell(trial, loss(number, values))
    return study


def by_lr(number, values):
    """Only the learning rate counts."""
    return (math.log10(values["model.optimizer.lr"]) + 2.5) ** 2


def rows(folder):
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(folder):
    return {path.name for path in folder.iterdir()} - {"trials.csv"}


def test_pictures_and_importance(tmp_path, drawn):
    before = dict(mpl.rcParams)
    study = study_of(40, by_lr)
    *lines, note = write_pictures(study, tmp_path, "val/loss")
    assert note.strip() == "among the 40 complete trials"
    assert written(tmp_path) == PICTURES
    for name in PICTURES:
        with Image.open(tmp_path / name) as picture:
            assert picture.width >= 640
    assert lines[0].split()[::2] == ["importance", "model.optimizer.lr"]
    shares = [int(line.split()[1].rstrip("%")) for line in lines]
    assert shares[0] > 50
    assert sum(shares) == pytest.approx(100, abs=3)
    names = ["data.batch_size", "model.net", "model.net.DropoutCNN.dropout", "model.net.LeNetCNN.dropout"]
    names += ["model.net.LeNetCNN.kernel_size", "model.optimizer.lr", "model.schedule"]
    assert sorted(line.split()[2] for line in lines) == names  # without the seed, which does not differ
    bars = drawn["importance.png"].axes[0]
    assert sorted(label.get_text() for label in bars.get_yticklabels()) == names
    axes = drawn["parallel.png"].axes
    assert [label.get_text().replace("\n", "") for label in axes[0].get_xticklabels()] == ["val/loss", *names]
    # What is missing is told from the choice null.
    texts = {name: [t.get_text() for t in own.get_yticklabels()] for name, own in zip(names, axes[2:], strict=True)}
    assert {*texts["model.schedule"]} == {"null", "OneCycle"}
    assert texts["model.net.LeNetCNN.kernel_size"] == ["not set", "3", "5"]
    assert texts["data.batch_size"][0] == str(min(trial.params["data.batch_size"] for trial in study.trials))
    assert dict(mpl.rcParams) == before
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_the_best_trials_are_dark_and_above(tmp_path, drawn, direction, sign):
    write_pictures(study_of(12, lambda number, values: sign * by_lr(number, values), direction), tmp_path)
    (lines,) = drawn["parallel.png"].axes[0].collections
    values = [sign * value for value in lines.get_array()]
    assert values == sorted(values, reverse=True)
    for segment, value in zip(lines.get_segments(), values, strict=True):
        assert segment[0][1] == pytest.approx(sign * value)  # each line has kept its value
    brightness = [sum(colour[:3]) for colour in lines.to_rgba(lines.get_array())]
    assert brightness == sorted(brightness, reverse=True)
    best = drawn["history.png"].axes[0].lines[0].get_ydata()
    assert sign * best[-1] == min(values)


def test_table_has_every_trial(tmp_path):
    study = study_of(2, by_lr)
    study.tell(study.ask(), state=TrialState.FAIL)
    pruned = study.ask()
    pruned.report(3.0, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    study.ask()
    write_pictures(study, tmp_path)
    table = rows(tmp_path)
    assert [row["state"] for row in table] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED", "RUNNING"]
    names = sorted({name for trial in study.trials for name in trial.params})
    assert [*table[0]] == ["number", "state", "value", "duration", *names, "key"]
    for row, trial in zip(table, study.trials, strict=True):
        assert row["number"] == str(trial.number)
        assert row["value"] == ("" if trial.value is None else repr(trial.value))
        assert (row["duration"] == "") == (trial.state == TrialState.RUNNING)
        assert row["key"] == trial.user_attrs.get("key", "")
        for name in names:
            text = {None: "null"}.get(trial.params.get(name), str(trial.params.get(name)))
            assert row[name] == (text if name in trial.params else "")


def test_pictures_that_cannot_be_drawn_are_named(tmp_path):
    def lines_of(study, name):
        (tmp_path / name).mkdir()
        return write_pictures(study, tmp_path / name), written(tmp_path / name)

    nothing = ["no history.png, parallel.png and importance.png: no trial is complete and has a finite value"]
    assert lines_of(study_of(0, by_lr), "none") == (nothing, set())
    failed = study_of(0, by_lr)
    failed.tell(failed.ask(), state=TrialState.FAIL)
    assert lines_of(failed, "failed") == (nothing, set())
    assert lines_of(study_of(3, lambda number, values: math.inf), "infinite") == (nothing, set())
    (line,), one = lines_of(study_of(1, by_lr), "one")
    assert one == {"history.png"}
    assert "parallel.png and importance.png: they need two complete trials" in line
    (line,), same = lines_of(study_of(5, lambda number, values: 0.5), "same")
    assert same == {"history.png", "parallel.png"}
    assert "no importance.png: it needs two complete trials with different values" in line
    (*lines, _), two = lines_of(study_of(2, by_lr), "two")
    assert two == PICTURES
    assert all(line.startswith("importance") for line in lines)
    # One infinite value among finite ones is in the table alone.
    lines, most = lines_of(study_of(9, lambda n, values: math.inf if n == 4 else random.Random(n).random()), "most")
    assert most == PICTURES
    assert rows(tmp_path / "most")[4]["value"] == "inf"
