"""Datasets in the file format of MNIST, IDX."""

import hashlib
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torchvision import datasets

from cnn_lightning.checkpointing.files import numbered, write_file
from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.download import DownloadError, download
from cnn_lightning.errors import UsageError

MOST_BYTES = 2**27  # of an unpacked file; an archive may claim any size


class IDXDataModule(ImageDataModule, ABC):
    """A dataset in four files, ``ROOT/NAME/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``.

    Every file is compared with its SHA-256 before it is used. One that is missing or damaged is unpacked from the
    archive beside it, ``...-ubyte.gz``, or downloaded.

    Attributes:
        SHA256: Of the unpacked files, by name.
        MIRRORS: Where the archives are, beside the places that torchvision knows.
    """

    SHA256: ClassVar[Mapping[str, str]]
    MIRRORS: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def source(self) -> type[datasets.MNIST]:
        """The class of torchvision for this dataset, which knows where to download it."""

    @property
    def folder(self) -> Path:
        """Where the files lie; torchvision names the folder after its class."""
        return self.root / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        """Make sure that all files are there and right; several processes may do so at once.

        Raises:
            UsageError: They cannot be had, or the folder cannot be written.
        """
        try:
            if self._bad_files():
                with self._alone():
                    for name in self._bad_files():
                        self._restore(name)
        except OSError as error:
            raise UsageError(f"cannot read or write {self.folder} ({error.strerror}): change --data.root") from error

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training images or the test images.

        Raises:
            UsageError: A file is missing or damaged.
        """
        part = "train" if train else "t10k"
        images = self._read(f"{part}-images-idx3-ubyte", header=16).reshape(-1, 1, self.SIDE, self.SIDE)
        return images, self._read(f"{part}-labels-idx1-ubyte", header=8).long()

    def _read(self, name: str, header: int) -> Tensor:
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path} ({error.strerror}): put it there, or change --data.root") from error
        if not self._is_right(name, content):
            raise UsageError(f"{path} is damaged ({len(content):,} bytes): remove it and run again to download it")
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())

    def _is_right(self, name: str, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.SHA256[name]

    def _bad_files(self) -> list[str]:
        """The names of the files that are missing or damaged."""
        paths = [self.folder / name for name in self.SHA256]
        return [path.name for path in paths if not path.is_file() or not self._is_right(path.name, path.read_bytes())]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process after the other restore files, for all of them would download the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Waiting for another process, which prepares {self.source.__name__}", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if [path.name for path in self.folder.iterdir()] == [".lock"]:
                with suppress(OSError):  # there is something in one of them
                    (self.folder / ".lock").unlink()
                    for folder in (self.folder, self.folder.parent, self.root):
                        folder.rmdir()

    def _restore(self, name: str) -> None:
        """Put a file in its place, from the archive beside it or from a server."""
        path, archive = self.folder / name, self.folder / f"{name}.gz"
        content = self._unpack(name, archive.read_bytes()) if archive.is_file() else None
        if content is None:
            packed = self._download(name)
            content = self._unpack(name, packed)
            self._move_away(archive)
            write_file(archive, packed)
        self._move_away(path)
        write_file(path, content)

    def _move_away(self, path: Path) -> None:
        """Keep a damaged file under another name, and say so."""
        if not path.exists():
            return
        names = numbered(f"{path.name}.damaged")
        kept = next(kept for name in names if not (kept := path.with_name(name)).exists())
        path.rename(kept)
        print(f"warning: {path} was damaged: it is now {kept.name}, and a good one takes its place", file=sys.stderr)

    def _unpack(self, name: str, packed: bytes) -> bytes | None:
        """The file in an archive, None if it is not the right one."""
        with suppress(zlib.error):
            content = zlib.decompressobj(wbits=31).decompress(packed, MOST_BYTES)
            if self._is_right(name, content):
                return content
        return None

    def _download(self, name: str) -> bytes:
        mirrors = [*self.source.mirrors, *self.MIRRORS]
        try:
            if not self.download:
                raise DownloadError("--data.download is false")
            urls = [f"{mirror}{name}.gz" for mirror in mirrors]
            return download(urls, lambda packed: self._unpack(name, packed) is not None)
        except DownloadError as error:
            bad = self._bad_files()
            damaged = [file for file in bad if (self.folder / file).exists()]
            state = f"damaged ({', '.join(damaged)})" if damaged else "not on disk"
            raise UsageError(
                f"{self.source.__name__} is {state} and was not downloaded ({error}): put {', '.join(bad)} (or their "
                f".gz) into {self.folder}, or change --data.root"
            ) from error
