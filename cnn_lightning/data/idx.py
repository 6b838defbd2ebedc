"""Datasets in MNIST's file format, IDX."""

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
_intact: dict[Path, tuple[str | int, ...]] = {}  # SHA-256, size and times of the files that matched


class IDXDataModule(ImageDataModule, ABC):
    """A dataset in four files, ``ROOT/NAME/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``.

    The SHA-256 of every file is checked before it is used. A missing or damaged file is unpacked from its archive in
    the same folder, ``...-ubyte.gz``, or downloaded.
    """

    SHA256: ClassVar[Mapping[str, str]]  # of the unpacked files, by name
    MIRRORS: ClassVar[tuple[str, ...]]  # of the archives, in addition to torchvision's

    @property
    @abstractmethod
    def source(self) -> type[datasets.MNIST]:
        """The torchvision class of this dataset, which knows mirrors."""

    @property
    def folder(self) -> Path:
        """Folder of the files, named as torchvision names it."""
        return self.root / self.source.__name__ / "raw"

    def prepare_data(self) -> None:
        """Make sure that all files exist and are intact. Several processes may call this at once.

        Raises:
            UsageError: A file cannot be downloaded, or the folder cannot be written.
        """
        try:
            if self._bad_files():
                with self._lock():
                    for name in self._bad_files():
                        self._restore(name)
        except OSError as error:
            raise UsageError(f"cannot read or write {self.folder} ({error.strerror})", "root") from error

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test images.

        Raises:
            UsageError: A file is missing or damaged.
        """
        part = "train" if train else "t10k"
        images = self._read(f"{part}-images-idx3-ubyte", header=16).reshape(-1, 1, self.SIDE, self.SIDE)
        return images, self._read(f"{part}-labels-idx1-ubyte", header=8).long()

    def _read(self, name: str, header: int) -> Tensor:
        path = self.folder / name
        try:
            if not self._is_intact(path):
                size = f"{path.stat().st_size:,} bytes"
                raise UsageError(f"{path} is damaged ({size}): remove it and run again to download it")
            return torch.from_numpy(np.fromfile(path, np.uint8, offset=header))
        except OSError as error:
            raise UsageError(f"cannot read {path} ({error.strerror})", "root") from error

    def _is_intact(self, path: Path) -> bool:
        """Check the SHA-256 of a file, once a process as long as the file does not change."""
        status, expected = path.stat(), self.SHA256[path.name]
        state = (expected, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if _intact.get(path.absolute()) != state:
            if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                return False
            _intact[path.absolute()] = state
        return True

    def _bad_files(self) -> list[str]:
        """Return the names of the files that are missing or damaged."""
        paths = [self.folder / name for name in self.SHA256]
        return [path.name for path in paths if not (path.is_file() and self._is_intact(path))]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let only one process at a time restore files, so that each is downloaded once."""
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
                with suppress(OSError):  # a folder that is not empty stays
                    (self.folder / ".lock").unlink()
                    for folder in (self.folder, self.folder.parent, self.root):
                        folder.rmdir()

    def _restore(self, name: str) -> None:
        path, archive = self.folder / name, self.folder / f"{name}.gz"
        content = self._unpack(name, archive.read_bytes()) if archive.is_file() else None
        if content is None:
            packed, content = self._download(name)
            self._move_away(archive)
            write_file(archive, packed)
        self._move_away(path)
        write_file(path, content)

    def _move_away(self, path: Path) -> None:
        if path.exists():
            names = numbered(f"{path.name}.damaged")
            kept = next(kept for name in names if not (kept := path.with_name(name)).exists())
            path.rename(kept)
            print(f"warning: {path} was damaged: renamed to {kept.name} and replaced by an intact one", file=sys.stderr)

    def _unpack(self, name: str, packed: bytes) -> bytes | None:
        """Unpack an archive; None if it does not hold the right file."""
        with suppress(zlib.error):
            content = zlib.decompressobj(wbits=31).decompress(packed, MOST_BYTES)
            if hashlib.sha256(content).hexdigest() == self.SHA256[name]:
                return content
        return None

    def _download(self, name: str) -> tuple[bytes, bytes]:
        try:
            if not self.download:
                raise DownloadError("download is false")
            urls = [f"{mirror}{name}.gz" for mirror in (*self.source.mirrors, *self.MIRRORS)]
            return download(urls, lambda packed: self._unpack(name, packed))
        except DownloadError as error:
            bad = self._bad_files()
            damaged = [file for file in bad if (self.folder / file).exists()]
            state = f"damaged ({', '.join(damaged)})" if damaged else "not on disk"
            files = f"{', '.join(bad)} (or their .gz) in {self.folder}"
            message = f"{self.source.__name__} is {state} and was not downloaded ({error}), expected {files}"
            raise UsageError(message, "root") from error
