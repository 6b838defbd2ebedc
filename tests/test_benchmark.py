import json
import os
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from cnn_lightning.cli import article_loops, folder_benchmark, neighbours, race
from cnn_lightning.cli import benchmark as benchmark_module
from cnn_lightning.cli.article_loops import ARTICLES, article_of
from cnn_lightning.data import MNIST
from cnn_lightning.nets import DropoutCNN, WideCNN
from tests.conftest import REPOSITORY


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


class TestArticleLoops:
    @pytest.mark.parametrize("net", [DropoutCNN, WideCNN])
    def test_network_of_the_article_gives_the_same_scores(self, net, images):
        torch.manual_seed(0)
        ours = net().eval()
        scores = ours(images)
        theirs = article_loops.as_in_the_article(ours)
        kinds = [type(layer).__name__ for layer in theirs.features]
        assert kinds[1:3] == ["ReLU", "MaxPool2d"]
        assert torch.equal(theirs(images), scores)

    @pytest.mark.parametrize("network", benchmark_module.RECIPES)
    def test_normalises_as_the_recipe(self, network):
        """Articles 000, 002 and 004 leave pixels in [0, 1]; 001 and 003 normalise, and so do those without article."""
        recipe = REPOSITORY / f"cnn_lightning/recipes/{benchmark_module.RECIPES[network]}.yaml"
        data = yaml.safe_load(recipe.read_text())["data"]["init_args"]
        mean, std = data.get("mean", 0.3), data.get("std", 0.2)
        article = article_of(network, Namespace(mean=0.3, std=0.2))
        pixel = article_loops.to_input(article)(Image.new("L", (28, 28), 51))
        assert pixel.shape == (1, 28, 28)
        assert pixel[0, 3, 4].item() == pytest.approx((0.2 - mean) / std)
        assert (article.mean_std is None) == (network in ("SigmoidCNN", "DropoutCNN", "TwoLayerCNN"))
        assert (network in ARTICLES) == (network not in ("FastCNN", "VGGCNN"))

    @pytest.mark.parametrize(("network", "steps"), [("SigmoidCNN", 2_400), ("LeNetCNN", 937), ("WideCNN", 300)])
    def test_batches_of_an_epoch(self, script, tmp_path, network, steps):
        """Article 000 splits 48,000 images off, 003 drops the last batch, all others have each image."""
        options = Namespace(device="cpu", precision="32-true", compile_mode=None, steps=1)
        right = MNIST.SHA256
        with script.random_images(tmp_path):
            run = script.Run(network, options, str(tmp_path))
            batches, _ = article_loops.article_loop(run.model, run.datamodule, "cpu")
        assert len(batches) == steps
        assert len(next(batches)[1]) == run.batch_size
        assert right is MNIST.SHA256, "the next command knows the real images again"

    def test_step_is_that_of_sgd(self):
        """One step on a network with one weight that counts."""
        net = nn.Module()
        net.features, net.linear = nn.Sequential(), nn.Linear(1, 2, bias=False)
        net.forward = lambda images: net.linear(images)
        nn.init.zeros_(net.linear.weight)
        model = Namespace(net=net, optimizer=lambda weights: torch.optim.SGD(weights, lr=0.5))
        data = Namespace(
            mean=0.5, std=0.5, root="", batch_size=2, source=lambda *_, **__: [(torch.ones(1), 0), (torch.ones(1), 0)]
        )
        batches, step = article_loops.article_loop(model, data, "cpu")
        step(*next(batches))
        assert net.linear.weight.tolist() == [[0.25], [-0.25]]

    def test_what_the_loops_compute_besides(self):
        scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
        labels = torch.tensor([0, 0, 0, 1])
        losses = [torch.tensor(value) for value in (3.0, 1.0, 2.0)]
        mean = cost = 0.0
        for number, loss in enumerate(losses, start=1):
            mean = article_loops.mean_loss(mean, number, loss, scores, labels)
            cost = article_loops.cost(cost, number, loss, scores, labels)
        assert (float(mean), cost) == (pytest.approx(2.0), 6.0)
        assert article_loops.accuracy(0.0, 1, losses[0], scores, labels) == 0.75
        assert article_loops.loss_and_accuracy(0.0, 1, losses[0], scores, labels) == (3.0, 0.75)


class TestImageFolder:
    def test_reads_and_trains_in_every_way(self, script, monkeypatch, capsys):
        rng = np.random.default_rng(0)
        for index in range(60):
            path = Path("pets", "abc"[index % 3], f"{index}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path)
        Path("pets/a/damaged.png").touch()
        monkeypatch.setattr(folder_benchmark, "IMAGE_SIZE", 16)
        seen = []
        monkeypatch.setattr(
            folder_benchmark, "cross_entropy", lambda scores, labels: seen.extend(labels.tolist()) or scores.sum()
        )
        script.benchmark(["--image_folder", "pets", "--repetitions", "1", "--output", "out.json"])
        results = json.loads(Path("out.json").read_text())["results"]
        names = ["no cache", "a cache that is written", "a cache"]
        assert list(results)[:3] == [f"seconds to read, {name}" for name in names]
        assert list(results)[3:] == [
            f"images per second, {way}" for way in ("fit", "DataLoader, 0 workers", "DataLoader, 2 workers")
        ]
        assert all(values[0] > 0 for values in results.values())
        lines = capsys.readouterr().out.splitlines()
        size = next(line for line in lines if "for training" in line)
        count = int(size.split(", ")[1].split()[0])
        assert size.startswith(f"60 pictures of 16×16, {count} for training")
        assert len(seen) == 2 * folder_benchmark.EPOCHS * count  # two DataLoaders saw the training pictures alone


class TestNeighbours:
    def test_trains_alone_and_next_to_busy_processes(self, script, monkeypatch, tiny_root, capsys):
        monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
        busy = [0]

        @contextmanager
        def busy_processes(count):
            busy.append(count)
            yield
            busy.pop()

        def train(options, variables):
            return busy[-1] + {"OMP_NUM_THREADS": 0.5}.get(next(iter(variables), ""), 0.25), 1 if busy[-1] else 2

        monkeypatch.setattr(neighbours, "busy_processes", busy_processes)
        monkeypatch.setattr(neighbours, "train", train)
        script.benchmark(["--neighbours", "3", "--repetitions", "2", "--output", "out.json"])
        results = json.loads(Path("out.json").read_text())["results"]["fast_mnist"]
        others = ("one thread", "all threads")
        assert results["alone"] == {"fit": [0.25, 0.25], "threads": [2, 2]} | {way: [0.5, 0.5] for way in others}
        assert results["busy"] == {"fit": [3.25, 3.25], "threads": [1, 1]} | {way: [3.5, 3.5] for way in others}
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("fast_mnist")]
        assert [row[:3] for row in rows] == [["fast_mnist", "alone", "0.25"], ["fast_mnist", "busy", "3.25"]]

    @pytest.mark.slow
    def test_trains_in_a_new_process_with_its_variables(self):
        options = ["--data=Digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
        seconds, threads = neighbours.train(options, {"OMP_NUM_THREADS": "2"})
        assert threads == min(2, os.cpu_count())
        assert seconds > 0

    def test_processes_end(self, monkeypatch):
        started = []
        popen = neighbours.subprocess.Popen
        monkeypatch.setattr(neighbours.subprocess, "Popen", lambda *args: started.append(popen(*args)) or started[-1])

        def interrupted():
            with neighbours.busy_processes(2):
                assert [process.poll() for process in started] == [None, None]
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert all(process.poll() is not None for process in started)


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
        (["--race", "--neighbours", "1"], "--neighbours does not go with --race"),
        (["--neighbours", "1", "--networks", "WideCNN"], "--networks does not go with --neighbours"),
        (["--image_folder", "pets", "--steps", "3"], "--steps does not go with --image_folder"),
        (["--image_folder", "nosuch"], "with val and test next to train: change --image_folder"),
        (["--neighbours", "0"], "argument --neighbours: 0, expected at least 1"),
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
