"""The race of ``scripts/benchmark.py``: seconds to 99 % on MNIST, against PyTorch's official example."""

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cnn_lightning.cli.fit_cli import FitCLI
from cnn_lightning.data import MNIST

GOAL = 0.99
SEEDS = 10


def race(device: str) -> dict[str, Any]:
    """Alternate between ``fast_mnist`` with ten seeds and epochs of the official example, until that reaches 99 %."""
    data = MNIST()
    data.prepare_data()
    print(f"\nfast_mnist, {SEEDS} seeds; its time is that of Trainer.fit, with validation and checkpoints")
    print("official example (fp32) until its first epoch at 99 %; its time is that of training, without the tests")
    ours, peer = list[dict[str, float]](), list[dict[str, float]]()
    example = official_example(data.root, device)
    for seed in range(SEEDS):
        ours.append(fast_mnist(seed, device))
        print(f"fast_mnist, seed {seed}: {ours[-1]['accuracy']:.2%} after {ours[-1]['seconds']:.2f} s", flush=True)
        if not peer or peer[-1]["accuracy"] < GOAL:
            peer.append(next(example))
            print(f"official example, epoch {len(peer)}: {peer[-1]['accuracy']:.2%} after {peer[-1]['seconds']:.1f} s")
    accuracies, seconds = ([result[name] for result in ours] for name in ("accuracy", "seconds"))
    accuracy, ratio = peer[-1]["accuracy"], peer[-1]["seconds"] / mean(seconds)
    print(f"\nfast_mnist        {mean(accuracies):.2%} ± {stdev(accuracies):.2%}")
    print(f"                  {mean(seconds):.2f} ± {stdev(seconds):.2f} s")
    print(f"official example  {accuracy:.2%}\n                  {peer[-1]['seconds']:.1f} s")
    reached = min(mean(accuracies), accuracy) >= GOAL
    print(f"{ratio:.0f} times as fast" if reached else f"{GOAL:.0%} not reached by both")
    return {"fast_mnist": ours, "official_example": peer, "ratio": ratio}


def fast_mnist(seed: int, device: str) -> dict[str, float]:
    """Train the recipe and test its best checkpoint."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        cli = FitCLI([*recipe_settings("fast_mnist", device, folder), f"--seed_everything={seed}"])
        cli.datamodule.setup("fit")
        start = time.perf_counter()
        cli.trainer.fit(cli.model, cli.datamodule)
        seconds = time.perf_counter() - start
        best = cli.best.path if cli.best else None
        metrics = cli.trainer.test(cli.model, cli.datamodule, best, verbose=False, weights_only=True)[0]
    return {"seconds": seconds, "accuracy": metrics["test/acc"]}


def recipe_settings(recipe: str, device: str, folder: str) -> list[str]:
    """Return the options of ``scripts/fit.py`` that train a recipe on a device, in a folder."""
    options = [f"--config={Path(__file__).parents[1]}/recipes/{recipe}.yaml", f"--trainer.default_root_dir={folder}"]
    options += [f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}", "--trainer.devices=1"]
    options.append("--trainer.enable_progress_bar=true")  # also without a terminal
    return [*options, "--dashboard=false"]  # the others draw no pictures


def official_net() -> nn.Sequential:
    """Build the network of github.com/pytorch/examples, mnist/main.py."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


def official_example(root: Path, device: str) -> Iterator[dict[str, float]]:
    """Train like github.com/pytorch/examples, mnist/main.py, but shuffle on a CPU, too; test after every epoch."""
    seed_everything(1, verbose=False)
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train, test = (datasets.MNIST(root, train=train, transform=to_input) for train in (True, False))
    gpu = device == "cuda"
    workers: dict[str, Any] = {"num_workers": int(gpu), "persistent_workers": gpu, "pin_memory": gpu}
    train_loader = DataLoader(train, batch_size=64, shuffle=True, **workers)
    test_loader = DataLoader(test, batch_size=1000, **workers)
    net = official_net().to(device)
    optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    seconds = 0.0
    while True:
        net.train()
        start = time.perf_counter()
        for images, labels in train_loader:
            optimizer.zero_grad()
            cross_entropy(net(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        schedule.step()
        net.eval()
        with torch.no_grad():
            correct = sum((net(x.to(device)).argmax(1).cpu() == labels).sum().item() for x, labels in test_loader)
        yield {"seconds": seconds, "accuracy": correct / len(test)}
