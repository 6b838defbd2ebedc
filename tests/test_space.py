import math

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cnn_lightning.studies.space import GRID_LIMIT, Space, merge, to_words

SEARCH = """
model.optimizer.lr: log 1e-4 1e-1
data.batch_size: [64, 128, 256]
model.net:
  LeNetCNN: {kernel_size: [3, 5], dropout: 0 0.5}
  DropoutCNN: {dropout: 0.1 0.6}
  TwoLayerCNN: {}
model.optimizer:
  Adam: {schedule: {null: {}, OneCycle: {pct: [0.2, 0.3]}}}
  SGD:
model.width: log 8 512
"""


def parse(*texts):
    return Space.read(merge(texts))


def options_of(space):
    return [*dict.fromkeys(parameter.option for parameter in space.parameters)]


def distribution(values):
    (parameter,) = Space.read({"a.b": values}).parameters
    return parameter.distribution


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("log 1e-4 1e-1", FloatDistribution(1e-4, 0.1, log=True)),
        ("0 0.6", FloatDistribution(0, 0.6)),
        ("-1. 1", FloatDistribution(-1, 1)),
        ("1 1e2", FloatDistribution(1, 100)),
        ("8 64", IntDistribution(8, 64)),
        (f"0 1{'0' * 400}", IntDistribution(0, 10**400)),  # more than a float holds
        (" log  8 512 ", IntDistribution(8, 512, log=True)),
        ([64, "a", 0.5, True, None], CategoricalDistribution([64, "a", 0.5, True, None])),
        (["1e-4", "1e-3"], CategoricalDistribution([1e-4, 1e-3])),  # text in YAML 1.1
        (["no number 5"], CategoricalDistribution(["no number 5"])),
    ],
)
def test_forms(values, expected):
    assert distribution(values) == expected
    assert type(distribution(values)) is type(expected)


def test_yaml_and_lines_are_the_same_space():
    mapping = yaml.safe_load(SEARCH)
    lines = [yaml.safe_dump({option: mapping[option]}, sort_keys=False) for option in mapping]
    assert parse(SEARCH) == parse(*lines) == Space.read(mapping)
    assert distribution(yaml.safe_load("[1e-4, 1.0e-3]")).choices == (1e-4, 1e-3)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a.b": 0.5}, "a.b: got 0.5, expected a range like"),
        ({"a.b": None}, "a.b: got None, expected a range like"),
        ({"a.b": "0.5"}, "a.b: got '0.5', expected a range like"),
        ({"a.b": "LeNetCNN"}, "a.b: got 'LeNetCNN', expected a range like"),
        ({"a.b": ""}, "a.b: got '', expected a range like"),
        ({"a.b": "0 1 2"}, "a.b: got '0 1 2', expected a range like"),
        ({"a.b": "log 1"}, "a.b: got 'log 1', expected a range like"),
        ({"a.b": "lin 1 2"}, "a.b: got 'lin 1 2', expected a range like"),
        ({"a.b": "1 log 2"}, "a.b: got '1 log 2', expected a range like"),
        ({"a.b": "0 inf"}, "a.b: got '0 inf', expected a range like"),
        ({"a.b": "0 1e999"}, "a.b: got '0 1e999', expected a range like"),
        ({"a.b": "0.6 0"}, "a.b: got '0.6 0', expected two different numbers, the lower one first"),
        ({"a.b": "5 5"}, "a.b: got '5 5', expected two different numbers"),
        ({"a.b": "log 0 1"}, "a.b: got 'log 0 1', expected numbers above 0"),
        ({"a.b": []}, "a.b: got [], expected at least one choice"),
        ({"a.b": {}}, "a.b: got {}, expected at least one choice"),
        ({"a.b": [[1], [2]]}, "a.b: got [1] as a choice, expected text, a number"),
        ({"a.b": [math.nan]}, "a.b: got nan as a choice"),
        ({"a.b": [1, 2, 1.0]}, "a.b: got 1 and 1.0, expected different choices"),
        ({"a.b": [True, 1]}, "a.b: got true and 1, expected different choices"),
        ({"a.b": [None, "null"]}, "a.b: got null and null, expected different choices"),
        ({"a.b": ["1e-4", 1e-4]}, "a.b: got 0.0001 and 0.0001, expected different choices"),
        ({"net": {"A": 5}}, "net.A: got 5, expected its settings"),
        ({"net": {"A": {"d": "1 0"}}}, "net.A.d: got '1 0', expected two different numbers"),
        ({"net": {"A": {"d": [1]}}, "net.d": [2]}, "net.d: the option is there twice"),
        ({"net.d": [2], "net": {"A": {"d": [1]}}}, "net.d: the option is there twice"),
        ({"n": {"A": {"b.c": [1]}, "A.b": {"c": [1]}}}, "n.A.b.c: the parameter is there twice"),
        ({"--a.b": [1]}, "--a.b: got '--a.b', expected the name of an option"),
        ({True: [1]}, "True: got True, expected the name of an option"),
        ({}, "got {} as a search space, expected OPTION: VALUES"),
        (["a"], "got ['a'] as a search space, expected OPTION: VALUES"),
    ],
)
def test_invalid_spaces_are_one_line(mapping, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        Space.read(mapping)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a: 0 1\na: 0 2"], "a: the option is there twice"),
        (["a: 0 1", "a: 0 2"], "a: the option is there twice"),
        (["net: {A: {d: 0 1, d: 0 2}}"], "d: the option is there twice"),
        (["a: [1"], "'a: [1' is not valid YAML"),
        (["a: &x {b: *x}"], "'a: &x {b: *x}' is not valid YAML: maximum recursion depth exceeded"),
        (["a"], "got 'a', expected OPTION: VALUES"),
        ([""], "got '', expected OPTION: VALUES"),
        ([], "got {} as a search space"),
    ],
)
def test_invalid_texts_are_one_line(texts, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        parse(*texts)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_suggestions_have_the_settings_of_the_choice_alone():
    space = parse(SEARCH)
    settings_of = {"LeNetCNN": {"kernel_size", "dropout"}, "DropoutCNN": {"dropout"}, "TwoLayerCNN": set()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        values = space.suggest(trial)
        net, optimizer = values["model.net"], values["model.optimizer"]
        assert {o.removeprefix("model.net.") for o in values if o.startswith("model.net.")} == settings_of[net]
        assert ("model.optimizer.schedule" in values) == (optimizer == "Adam")
        assert ("model.optimizer.schedule.pct" in values) == (values.get("model.optimizer.schedule") == "OneCycle")
        if net != "TwoLayerCNN":
            assert trial.params[f"model.net.{net}.dropout"] == values["model.net.dropout"]
        assert 8 <= values["model.width"] <= 512
        assert isinstance(values["model.width"], int)
        assert 1e-4 <= values["model.optimizer.lr"] <= 0.1
        assert values.keys() <= {*options_of(space)}
        assert len(values) == len(trial.params)
        seen.add((net, optimizer, values.get("model.optimizer.schedule", "absent")))
        study.tell(trial, 0.0)
    assert len(seen) == 9
    assert len(options_of(space)) == len({*options_of(space)}) == 9
    assert "model.optimizer.Adam.schedule.OneCycle.pct" in {name for trial in study.trials for name in trial.params}


def test_probes_are_few_and_cover_everything():
    probes = parse(SEARCH).probes()
    assert len(probes) == 5  # as many as the networks have values: 2 + 2 + 1
    values = {option: {probe.get(option, "absent") for probe in probes} for option in options_of(parse(SEARCH))}
    assert values["model.optimizer.lr"] == {1e-4, 0.1}
    assert values["data.batch_size"] == {64, 128, 256}
    assert values["model.net"] == {"LeNetCNN", "DropoutCNN", "TwoLayerCNN"}
    assert {(p["model.net"], p.get("model.net.dropout")) for p in probes} == {
        ("LeNetCNN", 0), ("LeNetCNN", 0.5), ("DropoutCNN", 0.1), ("DropoutCNN", 0.6), ("TwoLayerCNN", None),
    }  # fmt: skip
    assert {p.get("model.net.kernel_size") for p in probes if p["model.net"] == "LeNetCNN"} == {3, 5}
    assert values["model.optimizer.schedule"] == {None, "OneCycle", "absent"}
    assert values["model.optimizer.schedule.pct"] == {0.2, 0.3, "absent"}


def test_grid_has_all_combinations_once_and_optuna_takes_them():
    space = parse("net: {A: {k: [3, 5], d: 1 3}, B: {}}", "size: [16, null]")
    grid = space.grid()
    assert len(grid) == len({tuple(sorted(row.items(), key=str)) for row in grid}) == (2 * 3 + 1) * 2
    study = optuna.create_study()
    for row in grid:
        study.enqueue_trial(row)
    for row in grid:
        trial = study.ask()
        values = space.suggest(trial)
        assert trial.params == row
        assert values == {name.replace("net.A.", "net."): value for name, value in row.items()}


def test_impossible_grids():
    with pytest.raises(ValueError, match=r"net\.A\.d: got a range of floats, expected choices"):
        parse("net: {A: {d: 0 0.5}}").grid()
    with pytest.raises(ValueError, match=r"b: got a grid of more than 10,000 combinations"):
        parse("a: 1 100", "b: 1 1000000000").grid()
    assert len(parse(f"a: 1 {GRID_LIMIT}").grid()) == GRID_LIMIT


def test_words():
    values = {"net.dropout": 0.3, "data.size": 1e-05, "net": "A B", "net.bias": True, "net.norm": None, "n": 5}
    words = to_words(values)
    assert sorted(words) == sorted(
        ["--net.dropout=0.3", "--data.size=1e-05", "--net=A B", "--net.bias=true", "--net.norm=null", "--n=5"]
    )
    assert words.index("--net=A B") < words.index("--net.dropout=0.3")


names = st.text("abc", min_size=1, max_size=2)
ints = st.tuples(st.integers(-50, 50), st.integers(1, 50)).map(lambda p: f"{p[0]} {p[0] + p[1]}")
floats = st.tuples(st.floats(1e-9, 1), st.floats(1.5, 1e9)).map(lambda p: f"log {p[0]!r} {p[1]!r}")
choices = st.lists(st.integers(0, 9) | names, min_size=1, max_size=4, unique=True)
leaves = ints | floats | choices


def with_settings(inner):
    return st.dictionaries(names, st.dictionaries(names, inner, max_size=2), min_size=1, max_size=3)


spaces = st.dictionaries(names, st.recursive(leaves, with_settings), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(spaces, st.integers(0, 2**32 - 1))
def test_any_space(mapping, seed):
    space = Space.read(mapping)
    by_name = {parameter.name: parameter for parameter in space.parameters}
    assert len(by_name) == len(space.parameters)
    # Every probe is a trial that may be drawn, and no value at an end is missing.
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    left = {(parameter.name, end) for parameter in space.parameters for end in parameter.ends}
    probes = space.probes()
    assert len(probes) <= len(left)
    for probe in probes:
        fixed: dict[str, object] = {}
        for parameter in space.parameters:
            if parameter.exists(fixed):
                fixed[parameter.name] = probe[parameter.option]
        left -= {*fixed.items()}
        study.enqueue_trial(fixed)
        assert space.suggest(study.ask()) == probe
    assert not left
    # What is drawn is in the space.
    trial = study.ask()
    values = space.suggest(trial)
    assert {by_name[name].option: value for name, value in trial.params.items()} == values
    assert len(to_words(values)) == len(values)
