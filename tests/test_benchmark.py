import json
from pathlib import Path

import pytest
import torch

from cnn_lightning.cli import benchmark as benchmark_module
from cnn_lightning.cli import race
from cnn_lightning.nets import DropoutCNN, WideCNN


@pytest.fixture(scope="module")
def script():
    return benchmark_module


def test_measures_three_ways_and_writes_them_down(script, capsys):
    script.benchmark(
        ["--networks", "LeNetCNN", "--steps", "3", "--repetitions", "2", "--device", "cpu", "--output", "out.json"]
    )
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("LeNetCNN")).split()
    result = json.loads(Path("out.json").read_text())["results"]["LeNetCNN"]
    assert (result["batch_size"], result["steps"]) == (64, 3)
    assert row[1:3] == ["64", "3"]
    speeds = result["speeds"]
    assert {way: len(values) for way, values in speeds.items()} == {"article": 2, "loop": 2, "fit": 2}
    assert all(value > 0 for values in speeds.values() for value in values)
    for way in ("article", "loop"):
        ratios = sorted(fast / slow for fast, slow in zip(speeds["fit"], speeds[way], strict=True))
        assert [result[f"fit/{way}"][key] for key in ("min", "median", "max")] == pytest.approx(
            [ratios[0], sum(ratios) / 2, ratios[1]]
        )


@pytest.mark.parametrize("net", [DropoutCNN, WideCNN])
def test_network_of_the_article_gives_the_same_scores(script, net, images):
    torch.manual_seed(0)
    ours = net().eval()
    scores = ours(images)
    theirs = script.as_in_the_article(ours)
    kinds = [type(layer).__name__ for layer in theirs.features]
    assert kinds[1:3] == ["ReLU", "MaxPool2d"]
    assert torch.equal(theirs(images), scores)


def test_network_of_the_official_example():
    assert sum(parameter.numel() for parameter in race.official_net().parameters()) == 1_199_882
    assert race.official_net()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--networks", "Foo"], "argument --networks: invalid choice: 'Foo'"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
        (["--steps", "0"], "argument --steps: 0, expected at least 1"),
        (["--repetitions", "two"], "argument --repetitions: two, expected at least 1"),
        (["--steps", "9999", "--networks", "WideCNN"], "WideCNN has at most 260: change --steps"),
        (["--race", "--steps", "3"], "--steps does not go with --race"),
        (["--output", "there.json"], "there.json exists and would be overwritten: change --output"),
        (["--output", "there.json/new.json"], "cannot write to there.json (File exists): change --output"),
    ],
)
def test_errors_are_one_line(script, args, message, error_of):
    Path("there.json").touch()
    assert message in error_of(script.benchmark, *args)


def test_race_ends_with_the_ratio(script, capsys, tiny_root, monkeypatch):
    monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
    monkeypatch.setattr(race, "SEEDS", 3)
    monkeypatch.setattr(race, "GOAL", 0.3)  # the images are bright bars in noise: the example needs a few epochs
    script.benchmark(["--race", "--device", "cpu", "--output", "race.json"])
    results = json.loads(Path("race.json").read_text())["results"]
    ours, peer = results["fast_mnist"], results["official_example"]
    assert len(ours) == 3
    assert all(epoch["accuracy"] < 0.3 for epoch in peer[:-1])
    assert [epoch["seconds"] for epoch in peer] == sorted(epoch["seconds"] for epoch in peer)
    mean = sum(run["seconds"] for run in ours) / 3
    assert results["ratio"] == pytest.approx(peer[-1]["seconds"] / mean)
    reached = sum(run["accuracy"] for run in ours) / 3 >= 0.3 and peer[-1]["accuracy"] >= 0.3
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.endswith("times as fast") if reached else "not reached" in last
