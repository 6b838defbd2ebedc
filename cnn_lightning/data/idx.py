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
_intact: set[tuple[Path, str, int, int, int]] = set()  # path, SHA-256, size and times of the files that matched


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
                    for path in self._bad_files():
                        self._restore(path)
        except DownloadError as error:
            bad = self._bad_files()
            damaged = ", ".join(path.name for path in bad if path.exists())
            files = f"{', '.join(path.name for path in bad)} (or their .gz) in {self.folder}"
            state = f"damaged ({damaged})" if damaged else "not on disk"
            message = f"{self.source.__name__} is {state} and was not downloaded ({error}), expected {files}"
            raise UsageError(message, "root") from error
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
        state = (path.absolute(), expected, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state not in _intact and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
            _intact.add(state)
        return state in _intact

    def _bad_files(self) -> list[Path]:
        """Return the files that are missing or damaged."""
        paths = [self.folder / name for name in self.SHA256]
        return [path for path in paths if not (path.is_file() and self._is_intact(path))]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let only one process at a time restore files, so that each is downloaded once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_file = self.folder / ".lock"
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Waiting for another process, which prepares {self.source.__name__}", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if list(self.folder.iterdir()) == [lock_file]:
                with suppress(OSError):  # a folder that is not empty stays
                    lock_file.unlink()
                    for folder in (self.folder, self.folder.parent, self.root):
                        folder.rmdir()

    def _restore(self, path: Path) -> None:
        """Unpack a file from its archive. An archive that is missing or damaged is downloaded first."""
        archive = path.with_name(f"{path.name}.gz")
        content = self._unpack(path.name, archive.read_bytes()) if archive.is_file() else None
        if content is None:
            if not self.download:
                raise DownloadError("download is false")
            urls = [f"{mirror}{archive.name}" for mirror in (*self.source.mirrors, *self.MIRRORS)]
            packed, content = download(urls, lambda packed: self._unpack(path.name, packed))
            _replace(archive, packed)
        _replace(path, content)

    def _unpack(self, name: str, packed: bytes) -> bytes | None:
        """Unpack an archive; None if it does not hold the right file."""
        with suppress(zlib.error):
            content = zlib.decompressobj(wbits=31).decompress(packed, MOST_BYTES)
            if hashlib.sha256(content).hexdigest() == self.SHA256[name]:
                return content
        return None


def _replace(path: Path, content: bytes) -> None:
    """Write a file; the damaged one that was there is kept under another name."""
    if path.exists():
        names = numbered(f"{path.name}.damaged")
        kept = next(kept for name in names if not (kept := path.with_name(name)).exists())
        path.rename(kept)
        print(f"warning: {path} was damaged: renamed to {kept.name} and replaced by an intact one", file=sys.stderr)
    write_file(path, content)
