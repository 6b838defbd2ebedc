"""The folder of pictures of ``scripts/benchmark.py``: seconds to read it, and images per second in training."""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cnn_lightning.classifier import ImageClassifier
from cnn_lightning.data import ImageFolder
from cnn_lightning.errors import UsageError
from cnn_lightning.nets import TwoLayerCNN

BATCH_SIZE, IMAGE_SIZE = 64, 64
EPOCHS = 3  # of each measurement; the fastest counts, since the first starts worker processes


def folder_benchmark(root: str, repetitions: int) -> dict[str, Any]:
    """Read a folder without and with a cache, and train on it and in a loop over torchvision's DataLoader, in turn.

    Args:
        root: A folder for ``ImageFolder``; damaged pictures are left out.
        repetitions: How often each is measured.

    Returns:
        What is measured -> its values.
    """
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repetitions):
            for path in Path(folder).iterdir():
                path.unlink()
            readings = {"no cache": None, "a cache that is written": folder, "a cache": folder}
            for name, cache in readings.items():
                data, seconds = read(root, cache)
                measured.setdefault(f"seconds to read, {name}", []).append(seconds)
            ways: dict[str, Callable[[ImageFolder], float]] = {"fit": fit}
            ways |= {f"DataLoader, {workers} workers": partial(loop, workers=workers) for workers in (0, 2)}
            for name, train in ways.items():
                measured.setdefault(f"images per second, {name}", []).append(data.size("train") / train(data))
    sizes = [data.size(part) for part in ("train", "val", "test")]
    megabytes = sum(sizes) * data.in_channels * data.image_size**2 / 1e6
    print(f"\n{sum(sizes):,} pictures of {IMAGE_SIZE}×{IMAGE_SIZE}, {sizes[0]:,} for training: {megabytes:.0f} MB")
    for name, values in measured.items():
        print(f"{name:<44}{median(values):>10,.2f} ({min(values):,.2f} to {max(values):,.2f})", flush=True)
    return measured


def read(root: str, cache: str | None) -> tuple[ImageFolder, float]:
    """Read all pictures; return the data module and the seconds."""
    start = time.perf_counter()
    try:
        data = ImageFolder(root, image_size=IMAGE_SIZE, batch_size=BATCH_SIZE, skip_damaged=True, cache=cache)
        data.setup("fit")
        data.setup("test")
    except UsageError as error:  # it names arguments of ImageFolder
        raise UsageError(f"{error}: change --image_folder") from error
    return data, time.perf_counter() - start


class _Clock(Callback):
    """Measures the seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def fit(data: ImageFolder) -> float:
    """Train with Lightning's Trainer; return the seconds of the fastest epoch."""
    clock = _Clock()
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    off |= {"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[clock], **off)
    trainer.fit(ImageClassifier(network(data)), data)
    return min(clock.seconds)


def loop(data: ImageFolder, workers: int) -> float:
    """Train on the same pictures with torchvision's ImageFolder, a DataLoader and a plain loop; return the seconds."""
    resized = [transforms.Resize(IMAGE_SIZE), transforms.CenterCrop(IMAGE_SIZE), transforms.ToTensor()]
    prepare = transforms.Compose([*resized, transforms.Normalize(data.mean, data.std)])
    files, parts = {os.fspath(path) for path in data.files["train"]}, data.root / "train"
    root = parts if data.files["train"][0].is_relative_to(parts) else data.root
    pictures = datasets.ImageFolder(root, prepare, is_valid_file=files.__contains__, allow_empty=True)
    loader = DataLoader(pictures, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    net, seconds = network(data), []
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def network(data: ImageFolder) -> TwoLayerCNN:
    """The network of all ways to train."""
    torch.manual_seed(0)
    return TwoLayerCNN(data.in_channels, data.num_classes, data.image_size).to(memory_format=torch.channels_last)
