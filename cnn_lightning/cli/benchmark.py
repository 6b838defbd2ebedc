"""How fast is it on this machine? Measures training against two loops written by hand, in turns in one run.

    python scripts/benchmark.py                                      images per second, some 10 minutes
    python scripts/benchmark.py --networks FastCNN WideCNN --precision bf16-mixed --steps 50
    python scripts/benchmark.py --device cuda --compile_mode reduce-overhead
    python scripts/benchmark.py --race                               seconds to 99 % on MNIST

Three ways to train a network, each with the batch and the optimizer of the network's recipe:

    article   as the articles do: a DataLoader that turns image after image into a normalised tensor (ToTensor and
              Normalize; some articles do without the second), a plain loop, fp32
    loop      the best plain loop that we can write, for a limit: nothing is measured, shown or saved
    fit       ``scripts/fit.py``: progress bar, TensorBoard, accuracy while training, checkpoints

Of what happens once in an epoch, ``fit`` is charged two checkpoints, by the share of the epoch that was measured, and
not the validation, which the loops have not got. The progress bar is drawn into memory. The images are random, so no
dataset is needed; ``--race`` needs MNIST. A table is printed, and all figures are written into a JSON file.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cnn_lightning.cli.classifier_cli import FitCLI
from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.cli.terminal import processor_name
from cnn_lightning.data import MNIST, FashionMNIST
from cnn_lightning.errors import UsageError

RECIPES = {
    "SigmoidCNN": "sigmoid_fashion_mnist",
    "WideCNN": "wide_mnist",
    "DropoutCNN": "dropout_mnist",
    "LeNetCNN": "lenet_mnist",
    "TwoLayerCNN": "two_layer_fashion_mnist",
    "FastCNN": "fast_mnist",
    "DeepCNN": "fast_fashion_mnist",
}
DEFAULT = [network for network in RECIPES if network != "DeepCNN"]  # which takes minutes
IMAGES, STEPS = 12_000, 100  # in a measurement at least, where --steps does not say otherwise
COMPARISON = ("networks", "precision", "compile_mode", "steps", "repetitions")  # options that --race has not
WARM_UP = 10  # steps before each measurement
GOAL = 0.99  # of the race
SEEDS = 10


def read_options(args: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = OptionParser(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=DEFAULT, help="default: all but DeepCNN")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help=f"default: {device}")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of loop and fit")
    parser.add_argument("--compile_mode", choices=("default", "reduce-overhead", "max-autotune"), help="of both, too")
    parser.add_argument(
        "--steps", type=int, help=f"in a measurement; default: {STEPS}, or what takes {IMAGES:,} images"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="default: 5")
    parser.add_argument("--output", type=Path, help="the JSON file; default: logs/benchmark_TIME.json")
    parser.add_argument("--race", action="store_true", help="fast_mnist against PyTorch's official MNIST example")
    options = parser.parse_args(args)
    if options.race:
        for name in COMPARISON:
            if getattr(options, name) != parser.get_default(name):
                raise UsageError(f"--{name} does not go with --race: leave out one of them")
    for name in ("steps", "repetitions"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, expected at least 1: change --{name}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here: change --device to cpu")
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    options.output = options.output or Path("logs") / f"benchmark_{now}.json"
    return options


@command
def benchmark(args: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    options = read_options(args)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {options.output} ({error.strerror}): change --output") from error
    if options.output.exists():
        raise UsageError(f"{options.output} exists and would be lost: change --output")
    machine = describe_machine(options.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    results = race(options) if options.race else compare(options)
    asked = {name: value for name, value in vars(options).items() if name not in ("output", *COMPARISON * options.race)}
    options.output.write_text(json.dumps({"machine": machine, "options": asked, "results": results}, indent=2) + "\n")
    print(f"figures     {options.output}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every network in three ways and print a row for each."""
    ways = {"article": article, "loop": loop, "fit": fit}
    print(f"\nimages per second, median of {options.repetitions}; fit and loop in {options.precision}, article in fp32")
    print(
        f"{'network':<13}{'batch':>5}{'steps':>7}{'article':>10}{'loop':>10}{'fit':>10}   fit/article         fit/loop"
    )
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_random_images(Path(folder))
        for network in options.networks:
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repetitions):
                for way, measure in ways.items():
                    run = Run(network, options, folder)
                    speeds[way].append(run.steps * run.batch_size / measure(run))
            ratios = {
                f"fit/{way}": spread([fast / slow for fast, slow in zip(speeds["fit"], speeds[way], strict=True)])
                for way in ("article", "loop")
            }
            results[network] = {"batch_size": run.batch_size, "steps": run.steps, "speeds": speeds, **ratios}
            medians = "".join(f"{statistics.median(values):>10,.0f}" for values in speeds.values())
            texts = [f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios.values()]
            print(f"{network:<13}{run.batch_size:>5}{run.steps:>7}{medians}   {'  '.join(texts)}", flush=True)
    return results


class Run:
    """A network with its data, optimizer and trainer, fresh, as ``scripts/fit.py`` builds them."""

    def __init__(self, network: str, options: argparse.Namespace, folder: str) -> None:
        settings = [
            *recipe_settings(RECIPES[network], options.device, folder),
            *(f"--data.root={folder}", "--data.drop_last=true"),
            *("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"),
            *(f"--trainer.precision={options.precision}", f"--model.compile_mode={options.compile_mode or 'null'}"),
        ]
        torch.compiler.reset()  # it compiles a network no more than a few times
        with redirect_stdout(io.StringIO()):
            self.cli = FitCLI(settings)
            self.cli.datamodule.setup("fit")
        self.batch_size = self.cli.datamodule.batch_size
        self.steps = options.steps or max(STEPS, IMAGES // self.batch_size)
        self.epoch = self.cli.datamodule.size("train") // self.batch_size
        if WARM_UP + self.steps > self.epoch:
            raise UsageError(f"steps is {self.steps}, {network} has at most {self.epoch - WARM_UP}: change --steps")
        self.folder = folder
        self.device = torch.device(options.device)
        self.precision = torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16-mixed")
        self.compile_mode = options.compile_mode

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def time(self, batches: Iterator[tuple[Tensor, Tensor]], step: Callable[[Tensor, Tensor], None]) -> float:
        """Seconds of all steps after the warm-up."""
        for index, batch in enumerate(islice(batches, WARM_UP + self.steps)):
            if index == WARM_UP:
                start = self.now()
            step(*batch)
        return self.now() - start


def article(run: Run) -> float:
    """Train as the articles do."""
    data, net = run.cli.datamodule, as_in_the_article(run.cli.model.net).to(run.device)
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize((data.mean,), (data.std,))])
    dataset = data.source(run.folder, train=True, transform=to_input)
    optimizer = run.cli.model.optimizer(net.parameters())

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(net(images.to(run.device)), labels.to(run.device)).backward()
        optimizer.step()

    return run.time(iter(DataLoader(dataset, run.batch_size, shuffle=True)), step)


def as_in_the_article(net: nn.Module) -> nn.Module:
    """The same network with ReLU before max-pooling, and in PyTorch's usual memory format."""
    layers = list(net.features)
    for index in range(len(layers) - 1):
        if isinstance(layers[index], nn.MaxPool2d) and isinstance(layers[index + 1], nn.ReLU):
            layers[index : index + 2] = layers[index + 1], layers[index]
    net.features = nn.Sequential(*layers)
    return net.to(memory_format=torch.contiguous_format)


def loop(run: Run) -> float:
    """Train in the best plain loop."""
    data, model = run.cli.datamodule, run.cli.model
    net = model.net.to(run.device, memory_format=torch.channels_last)
    if run.compile_mode:
        net.compile(mode=run.compile_mode)
    images, labels = (part.to(run.device) for part in data.part("train"))
    optimizer = model.optimizer(net.parameters())
    schedule = model.lr_schedule(optimizer, run.epoch) if model.lr_schedule else None
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Adam) else ():
        group["fused"] = True

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(len(labels)).to(run.device).split(run.batch_size):
            yield data.normalize(images.index_select(0, batch)), labels.index_select(0, batch)

    def step(images: Tensor, labels: Tensor) -> None:
        with run.precision:
            loss = cross_entropy(net(images), labels, label_smoothing=model.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()

    return run.time(batches(), step)


def fit(run: Run) -> float:
    """Train as ``scripts/fit.py`` does."""
    watch = Stopwatch(run)
    trainer = run.cli.trainer
    trainer.limit_train_batches = WARM_UP + run.steps
    trainer.callbacks.append(watch)
    with redirect_stdout(io.StringIO()):
        trainer.fit(run.cli.model, run.cli.datamodule)
    checkpoints = 2 * (watch.all_done - watch.steps_done)  # only last.ckpt was saved: best.ckpt needs a validation
    return watch.steps_done - watch.start + checkpoints * run.steps / run.epoch


class Stopwatch(Callback):
    """Notes when the warm-up, the steps, and the epoch with its checkpoint are over."""

    def __init__(self, run: Run) -> None:
        self.now = run.now

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        """Note the end of the warm-up."""
        if batch_idx == WARM_UP:
            self.start = self.now()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Note the end of the steps; Lightning calls the checkpoints after all other callbacks."""
        self.steps_done = self.now()

    def on_train_end(self, *_: Any) -> None:
        """Note the end of the epoch."""
        self.all_done = self.now()


def race(options: argparse.Namespace) -> dict[str, Any]:
    """Time ``fast_mnist`` with ten seeds, and the official example until its first epoch at 99 %, in turns."""
    data = MNIST()
    data.prepare_data()
    print(f"\nfast_mnist, {SEEDS} seeds; its time is that of Trainer.fit, with validation and checkpoints")
    print("official example (fp32) until its first epoch at 99 %; its time is that of training, without the tests")
    ours, peer = [], []
    example = official_example(data.root, torch.device(options.device))
    for seed in range(SEEDS):
        ours.append(fast_mnist(seed, options.device))
        print(f"fast_mnist, seed {seed}: {ours[-1]['accuracy']:.2%} after {ours[-1]['seconds']:.2f} s", flush=True)
        if not peer or peer[-1]["accuracy"] < GOAL:
            peer.append(next(example))
            print(f"official example, epoch {len(peer)}: {peer[-1]['accuracy']:.2%} after {peer[-1]['seconds']:.1f} s")
    accuracies, seconds = ([result[name] for result in ours] for name in ("accuracy", "seconds"))
    print(f"\nfast_mnist        {statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}")
    print(f"                  {statistics.mean(seconds):.2f} ± {statistics.stdev(seconds):.2f} s")
    print(f"official example  {peer[-1]['accuracy']:.2%}\n                  {peer[-1]['seconds']:.1f} s")
    ratio = peer[-1]["seconds"] / statistics.mean(seconds)
    reached = min(statistics.mean(accuracies), peer[-1]["accuracy"]) >= GOAL
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
        best = cli.best.best_model_path
        metrics = cli.trainer.test(cli.model, cli.datamodule, best, verbose=False, weights_only=True)[0]
    return {"seconds": seconds, "accuracy": metrics["test/acc"]}


class OfficialNet(nn.Sequential):
    """The network of github.com/pytorch/examples, mnist/main.py."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
        )


def official_example(root: Path, device: torch.device) -> Iterator[dict[str, float]]:
    """Train as github.com/pytorch/examples, mnist/main.py does, and test after every epoch, as it does.

    It shuffles on a GPU only; here it does so on a CPU, too.
    """
    seed_everything(1, verbose=False)
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    workers = {"num_workers": 1, "persistent_workers": True, "pin_memory": True} if device.type == "cuda" else {}
    train = DataLoader(datasets.MNIST(root, train=True, transform=to_input), batch_size=64, shuffle=True, **workers)
    test = DataLoader(datasets.MNIST(root, train=False, transform=to_input), batch_size=1000, **workers)
    net = OfficialNet().to(device)
    optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    seconds = 0.0
    while True:
        net.train()
        start = time.perf_counter()
        for images, labels in train:
            optimizer.zero_grad()
            cross_entropy(net(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        schedule.step()
        net.eval()
        with torch.no_grad():
            correct = sum((net(images.to(device)).argmax(1).cpu() == labels).sum().item() for images, labels in test)
        yield {"seconds": seconds, "accuracy": correct / len(test.dataset)}


def recipe_settings(recipe: str, device: str, folder: str) -> list[str]:
    """Arguments of ``scripts/fit.py`` for a recipe on a device, with its runs in a folder, without pictures."""
    return [
        f"--config={Path(__file__).parents[2] / 'cnn_lightning/recipes' / recipe}.yaml",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
        "--trainer.devices=1",
        "--dashboard=false",  # neither the official example nor the plain loop draws pictures
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest of some values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_random_images(root: Path) -> None:
    """Write random images and labels into the files of MNIST and Fashion-MNIST, and have them taken for right."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    count = 60_000
    for part in ("train", "t10k"):  # torchvision asks for both
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8).numpy().tobytes()
        labels = (torch.arange(count) % 10).to(torch.uint8).numpy().tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    (root / "FashionMNIST").symlink_to(root / "MNIST")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    MNIST.SHA256 = FashionMNIST.SHA256 = sums


def describe_machine(device: str) -> dict[str, str | int]:
    """What the figures depend on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    versions = {"torch": torch.__version__, "lightning": lightning.__version__}
    return {
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        **gpu,
        "processor": processor_name(),
        **versions,
    }
