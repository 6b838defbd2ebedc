"""Datasets in the file format of MNIST, IDX, read and downloaded by torchvision."""

import socket
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.errors import UsageError

# Seconds without an answer after which a server is given up; torchvision sets no limit and may wait for ever.
DOWNLOAD_TIMEOUT = 10.0


class IDXDataModule(ImageDataModule, ABC):
    """A dataset in four files, ``ROOT/NAME/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``."""

    @property
    @abstractmethod
    def source(self) -> type[datasets.MNIST]:
        """The class of torchvision that knows the files, their checksums and where to download them."""

    @property
    def folder(self) -> Path:
        """Where the files lie; torchvision names the folder after its class."""
        return self.root / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        """Download the files if one is not on disk.

        Raises:
            UsageError: They cannot be had, or the folder cannot be written.
        """
        names = [name.removesuffix(".gz") for name, _ in self.source.resources]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if not missing:
            return
        try:
            self._download()
        except (RuntimeError, OSError, HTTPException, EOFError, zlib.error) as error:
            # The last line: torchvision puts what it tried before it.
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UsageError(
                f"{self.source.__name__} is not on disk and was not downloaded ({reason}): "
                f"put {', '.join(missing)} into {self.folder}, or change --data.root"
            ) from error

    def _download(self) -> None:
        if not self.download:
            raise RuntimeError("--data.download is false")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder} ({error.strerror}): change --data.root") from error
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            self.source(self.root, download=True)
        finally:
            socket.setdefaulttimeout(timeout)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training images or the test images.

        Raises:
            UsageError: A file is missing or damaged.
        """
        part = "train" if train else "t10k"
        images = self._read(read_image_file, f"{part}-images-idx3-ubyte")
        labels = self._read(read_label_file, f"{part}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise UsageError(
                f"{self.folder} holds {len(images):,} {part} images but {len(labels):,} labels: "
                "remove its files and run again to download them"
            )
        if images.shape[1:] != (self.SIDE, self.SIDE) or labels.max() >= self.num_classes:
            raise UsageError(
                f"{self.folder} holds {part} images of {images.shape[1]}×{images.shape[2]} pixels with labels up to "
                f"{labels.max()}, expected {self.SIDE}×{self.SIDE} and labels below {self.num_classes}: "
                "remove its files and run again to download them"
            )
        return images[:, None], labels

    def _read(self, reader: Callable[[str], Tensor], name: str) -> Tensor:
        path = self.folder / name
        try:
            return reader(str(path))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist: put it there, or change --data.root") from error
        except Exception as error:  # torchvision checks little: a damaged file fails wherever it is noticed first
            raise UsageError(
                f"{path} is damaged ({path.stat().st_size:,} bytes): remove it and run again to download it"
            ) from error
