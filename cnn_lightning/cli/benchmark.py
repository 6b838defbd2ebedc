"""How fast is training on this machine? Compares it with two handwritten loops, which take turns in one run.

    python scripts/benchmark.py                                      images per second, some 10 minutes
    python scripts/benchmark.py --networks FastCNN WideCNN --precision bf16-mixed --steps 50
    python scripts/benchmark.py --device cuda --compile_mode reduce-overhead
    python scripts/benchmark.py --race                               seconds to 99 % on MNIST
    python scripts/benchmark.py --neighbours 1                       seconds next to a busy process, on a CPU
    python scripts/benchmark.py --image_folder pets                  your pictures, against torchvision's DataLoader

Three ways to train a network, each with the batch size and the optimizer of the network's recipe:

    article   as the network's article does (cli/article_loops.py): a DataLoader that turns each image into a tensor, in
              articles 001 and 003 a normalised one, a plain loop, fp32. FastCNN and VGGCNN have no article: theirs is
              the loop of PyTorch's MNIST example, which normalises
    loop      the fastest plain loop that we can write, as a limit: nothing is measured, shown or saved
    fit       scripts/fit.py: progress bar, TensorBoard, training accuracy, checkpoints

Of the work of each epoch, fit is charged two checkpoints, in proportion to the share of the epoch that was measured. It
is not charged validation, which the loops do not have. The progress bar is drawn into memory. The images are random, so
no dataset is needed; --race and --neighbours need MNIST. All ways use the threads that fit would use. Prints a table,
and writes all figures to a JSON file.

--neighbours trains fast_mnist and an epoch of the default network, alone and next to busy processes: with the threads
that fit chooses, with one thread, and with all threads and libgomp's own waiting.

--image_folder reads a folder of pictures with ImageFolder, without and with a cache, and trains TwoLayerCNN on it on a
CPU: with Lightning's Trainer, and in a plain loop over torchvision's ImageFolder and a DataLoader with 0 and 2 workers.
"""

import argparse
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import Tensor
from torch.nn.functional import cross_entropy

from cnn_lightning.cli.article_loops import article_loop
from cnn_lightning.cli.exit_codes import OptionParser, at_least_one, command
from cnn_lightning.cli.fit_cli import FitCLI
from cnn_lightning.cli.folder_benchmark import folder_benchmark
from cnn_lightning.cli.hardware import choose_threads
from cnn_lightning.cli.neighbours import neighbours
from cnn_lightning.cli.race import now, race, recipe_settings
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import processor_name
from cnn_lightning.data import MNIST, FashionMNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.optim.build import build_optimizer

RECIPES = {
    "SigmoidCNN": "sigmoid_fashion_mnist", "WideCNN": "wide_mnist", "DropoutCNN": "dropout_mnist",
    "LeNetCNN": "lenet_mnist", "TwoLayerCNN": "two_layer_fashion_mnist", "FastCNN": "fast_mnist",
    "VGGCNN": "fast_fashion_mnist",
}  # fmt: skip
IMAGES, STEPS = 12_000, 100  # a measurement has at least so many, without --steps
WARM_UP = 10  # steps before each measurement
# The options that other measurements do not have.
COMPARISON = ("networks", "precision", "compile_mode", "steps")
FOREIGN = {
    "race": (*COMPARISON, "repetitions", "neighbours", "image_folder"),
    "neighbours": (*COMPARISON, "device", "image_folder"),
    "image_folder": (*COMPARISON, "device"),
}


@command
def benchmark(args: Sequence[str]) -> None:
    """Compare ways of training, or race."""
    parser = OptionParser(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    modes, steps = ("default", "reduce-overhead", "max-autotune"), f"default: {STEPS}, or what takes {IMAGES:,} images"
    default_nets = [network for network in RECIPES if network != "VGGCNN"]
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=default_nets, help="default: all but VGGCNN")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help=f"default: {device}")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="of loop and fit")
    parser.add_argument("--compile_mode", choices=modes, help="of loop and fit; default: not compiled")
    parser.add_argument("--steps", type=at_least_one, help=f"in a measurement; {steps}")
    parser.add_argument("--repetitions", type=at_least_one, default=5, help="default: 5")
    path = Path(f"logs/benchmark_{datetime.now():%Y-%m-%d_%H-%M-%S}.json")
    parser.add_argument("--output", type=Path, default=path, help="the JSON file; default: logs/benchmark_TIME.json")
    parser.add_argument("--race", action="store_true", help="fast_mnist against PyTorch's official MNIST example")
    parser.add_argument("--neighbours", type=at_least_one, help="busy processes next to which to train fast_mnist")
    parser.add_argument("--image_folder", help="a folder of pictures, one folder for each class")
    options = parser.parse_args(args)
    measurement = next((name for name in FOREIGN if getattr(options, name)), "")
    foreign = FOREIGN.get(measurement, ())
    for name in foreign:
        if getattr(options, name) != parser.get_default(name):
            raise UsageError(f"--{name} does not go with --{measurement}: leave out one of them")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here: change --device to cpu")
    make_folder(options.output.parent, "--output")
    if options.output.exists():
        raise UsageError(f"{options.output} exists and would be overwritten: change --output")
    device = "cpu" if measurement in ("neighbours", "image_folder") else options.device
    if device == "cpu":
        choose_threads()
    machine: dict[str, Any] = {"cores": os.cpu_count() or 0, "threads": torch.get_num_threads()}
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    machine |= {"processor": processor_name(), "torch": torch.__version__, "lightning": lightning.__version__}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    if options.neighbours:
        results = neighbours(options.neighbours, options.repetitions)
    elif options.image_folder:
        results = folder_benchmark(options.image_folder, options.repetitions)
    else:
        results = race(options.device) if options.race else compare(options)
    asked = {name: value for name, value in vars(options).items() if name not in ("output", *foreign)}
    options.output.write_text(json.dumps({"machine": machine, "options": asked, "results": results}, indent=2) + "\n")
    print(f"figures     {options.output}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every network in three ways and print a row for each."""
    ways = {"article": article, "loop": loop, "fit": fit}
    print(f"\nimages per second, median of {options.repetitions}; fit and loop in {options.precision}, article in fp32")
    print("network      batch  steps   article      loop       fit   fit/article         fit/loop")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, random_images(Path(folder)):
        for network in options.networks:
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repetitions):
                for way, measure in ways.items():
                    run = Run(network, options, folder)
                    speeds[way].append(run.steps * run.batch_size / measure(run))
            results[network] = {"batch_size": run.batch_size, "steps": run.steps, "speeds": speeds}
            row = f"{network:<13}{run.batch_size:>5}{run.steps:>7}"
            row += "".join(f"{median(values):>10,.0f}" for values in speeds.values()) + " "
            for way in ("article", "loop"):
                ratios = [ours / peer for ours, peer in zip(speeds["fit"], speeds[way], strict=True)]
                results[network][f"fit/{way}"] = {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
                row += f"  {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(row, flush=True)
    return results


class Run(FitCLI):
    """A new network with its data, optimizer and trainer, as ``scripts/fit.py`` builds them."""

    def __init__(self, network: str, options: argparse.Namespace, folder: str) -> None:
        self.options, self.device = options, options.device
        self.times: list[float] = []
        settings = recipe_settings(RECIPES[network], options.device, folder)
        settings += [f"--data.root={folder}", "--data.drop_last=true", f"--trainer.precision={options.precision}"]
        settings += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"]
        settings.append("--data.shift=0")  # the loops change no images
        torch.compiler.reset()  # it compiles a network only a few times
        with redirect_stdout(io.StringIO()):
            super().__init__([*settings, f"--model.compile_mode={options.compile_mode or 'null'}"])
            self.datamodule.setup("fit")
        self.batch_size = self.datamodule.batch_size
        self.steps = options.steps or max(STEPS, IMAGES // self.batch_size)
        self.epoch_steps = self.datamodule.size("train") // self.batch_size
        if self.steps > (most := self.epoch_steps - WARM_UP):
            raise UsageError(f"steps is {self.steps}, {network} has at most {most}: change --steps")
        self.trainer.limit_train_batches = WARM_UP + self.steps

    def callbacks(self, settings: Any) -> list[Callback]:
        """Add a stopwatch, which Lightning calls before it saves checkpoints."""
        hooks = ("on_train_batch_start", "on_train_epoch_end", "on_train_end")
        return [*super().callbacks(settings), LambdaCallback(**dict.fromkeys(hooks, self.note_time))]

    def note_time(self, trainer: Any, model: Any, batch: Any = None, index: int = WARM_UP) -> None:
        """Append the time to ``times``: before the first batch after the warm-up, after the epoch, and at the end."""
        if index == WARM_UP:
            self.times.append(now(self.device))

    def time(self, batches: Iterator[tuple[Tensor, Tensor]], step: Callable[[Tensor, Tensor], None]) -> float:
        """Return the seconds of all steps after the warm-up."""
        for index, batch in enumerate(islice(batches, WARM_UP + self.steps)):
            if index == WARM_UP:
                start = now(self.device)
            step(*batch)
        return now(self.device) - start


def article(run: Run) -> float:
    """Train as the network's article does."""
    return run.time(*article_loop(run.model, run.datamodule, run.device))


def loop(run: Run) -> float:
    """Train in the fastest plain loop that we can write."""
    data, model = run.datamodule, run.model
    net = model.net.to(run.device).to(memory_format=torch.channels_last)
    if run.options.compile_mode:
        net.compile(mode=run.options.compile_mode)
    images, labels = (part.to(run.device) for part in data.part("train"))
    optimizer = build_optimizer(model.optimizer, net.parameters())
    schedule = model.lr_schedule(optimizer, run.epoch_steps) if model.lr_schedule else None
    autocast = torch.autocast(run.device, torch.bfloat16, enabled=run.options.precision == "bf16-mixed")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(len(labels)).to(run.device).split(run.batch_size):
            yield data.normalize(images.index_select(0, batch)), labels.index_select(0, batch)

    def step(images: Tensor, labels: Tensor) -> None:
        with autocast:
            loss = cross_entropy(net(images), labels, label_smoothing=model.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()

    return run.time(batches(), step)


def fit(run: Run) -> float:
    """Train as ``scripts/fit.py`` does."""
    with redirect_stdout(io.StringIO()):
        run.trainer.fit(run.model, run.datamodule)
    start, steps_done, all_done = run.times
    checkpoints = 2 * (all_done - steps_done)  # only last.ckpt was saved: best.ckpt needs a validation
    return steps_done - start + checkpoints * run.steps / run.epoch_steps


@contextmanager
def random_images(root: Path) -> Iterator[None]:
    """Write 60,000 random images to the files of MNIST and Fashion-MNIST, whose checksums are theirs meanwhile."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):  # torchvision needs both
        images = struct.pack(">4I", 0x803, 60_000, 28, 28) + os.urandom(60_000 * 28 * 28)
        labels = struct.pack(">2I", 0x801, 60_000) + bytes(range(10)) * 6_000
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    (root / "FashionMNIST").symlink_to(root / "MNIST")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    right = MNIST.SHA256, FashionMNIST.SHA256
    MNIST.SHA256 = FashionMNIST.SHA256 = sums
    try:
        yield
    finally:
        MNIST.SHA256, FashionMNIST.SHA256 = right
