"""Datasets in MNIST's file format, IDX."""

import hashlib
import io
import math
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from cnn_lightning.checkpointing.files import numbered, wait_for_lock, write_file
from cnn_lightning.data.base import ImageDataModule
from cnn_lightning.data.download import DownloadError, download
from cnn_lightning.errors import UsageError

# Types of the values, by the third byte of a file.
_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 12: np.dtype(">i4")}
_intact: set[tuple[Path, str, int, int, int]] = set()  # path, SHA-256, size and times of the files that matched


class IDXDataModule(ImageDataModule, ABC):
    """A dataset in four files, such as ``ROOT/NAME/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte``.

    The SHA-256 of every file is checked before it is used. A missing or damaged file is unpacked from its archive in
    the same folder, ``...-ubyte.gz``, or downloaded.

    Where the SHA-256 of a file is not known, its archive is checked against torchvision's MD5 before it is unpacked,
    and the file itself by its header, its size and the range of its labels. A pixel that changes later goes unnoticed.
    """

    SHA256: ClassVar[Mapping[str, str]] = {}  # of the unpacked files, by name
    MIRRORS: ClassVar[tuple[str, ...]] = ()  # of the archives, in addition to torchvision's
    MOST_BYTES: ClassVar[int] = 2**27  # of an archive and of an unpacked file; an archive may claim any size
    transposed = False  # whether the files hold each image column by column
    first_label = 0  # the label of the first class in the files

    @property
    @abstractmethod
    def source(self) -> type[datasets.MNIST]:
        """The torchvision class of this dataset, which knows mirrors."""

    @property
    def folder(self) -> Path:
        """Folder of the files, named as torchvision names it."""
        return self.root / self.source.__name__ / "raw"

    @cached_property
    def archives(self) -> Mapping[str, tuple[str, str]]:
        """Name or address of the archive and its MD5, by the file in it.

        The files are in the order training images, training labels, test images, test labels.
        """
        return {name.removesuffix(".gz"): (name, md5) for name, md5 in self.source.resources}

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
            archive = self._archive(bad[0]).name
            archive = "their .gz" if archive.endswith(".gz") else archive
            files = f"{', '.join(path.name for path in bad)} (or {archive}) in {self.folder}"
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
        names = list(self.archives)[0 if train else 2 :][:2]
        images, labels = (self._read_file(name) for name in names)
        labels = labels.reshape(len(labels), -1)[:, 0].long() - self.first_label  # QMNIST's files have more columns
        if len(labels) != len(images) or not 0 <= labels.min() <= labels.max() < self.num_classes:
            first, lowest, highest = self.first_label, *(int(end) + self.first_label for end in labels.aminmax())
            what = f"{len(labels):,} labels from {lowest} to {highest}"
            expected = f"{len(images):,}, one for each image, from {first} to {first + self.num_classes - 1}"
            message = f"{self.folder / names[1]} is damaged ({what}, expected {expected}): remove it and {names[0]}"
            raise UsageError(f"{message}, and run again to download them", "root")
        return (images.mT.contiguous() if self.transposed else images)[:, None], labels

    def _read_file(self, name: str) -> Tensor:
        path = self.folder / name
        try:
            if not self._is_intact(path):
                size = f"{path.stat().st_size:,} bytes"
                raise UsageError(f"{path} is damaged ({size}): remove it and run again to download it")
            with path.open("rb") as file:
                kind, shape = _layout(file.read(16))
            values = np.fromfile(path, kind, offset=4 + 4 * len(shape))
            return torch.from_numpy(values.astype(kind.newbyteorder("="), copy=False).reshape(shape))
        except OSError as error:
            raise UsageError(f"cannot read {path} ({error.strerror})", "root") from error

    def _is_intact(self, path: Path) -> bool:
        """Check the SHA-256 of a file, once a process as long as the file does not change, or its header and size."""
        status, expected = path.stat(), self.SHA256.get(path.name)
        if expected is None:
            with path.open("rb") as file:
                return self._has_layout(path.name, file.read(16), status.st_size)
        state = (path.absolute(), expected, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state not in _intact and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
            _intact.add(state)
        return state in _intact

    def _has_layout(self, name: str, head: bytes, size: int) -> bool:
        """Whether a file can be that of images or of labels, by its first 16 bytes and its size."""
        kind, shape = _layout(head)
        fits = shape[1:] == [self.SIDE] * 2 and kind.itemsize == 1 if "images" in name else len(shape) in (1, 2)
        return fits and size == 4 + 4 * len(shape) + math.prod(shape) * kind.itemsize and 0 not in shape

    def _bad_files(self) -> list[Path]:
        """Return the files that are missing or damaged."""
        paths = [self.folder / name for name in self.archives]
        return [path for path in paths if not (path.is_file() and self._is_intact(path))]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let only one process at a time restore files, so that each is downloaded once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_file = self.folder / ".lock"
        try:
            with wait_for_lock(lock_file, self.source.__name__):
                yield
        finally:
            if list(self.folder.iterdir()) == [lock_file]:
                with suppress(OSError):  # a folder that is not empty stays
                    lock_file.unlink()
                    for folder in (self.folder, self.folder.parent, self.root):
                        folder.rmdir()

    def _archive(self, path: Path) -> Path:
        return path.with_name(self.archives[path.name][0].rpartition("/")[2])

    def _restore(self, path: Path) -> None:
        """Unpack a file from its archive. An archive that is missing or damaged is downloaded first."""
        archive = self._archive(path)
        content = self._unpack(path.name, archive.read_bytes()) if archive.is_file() else None
        if content is None:
            if not self.download:
                raise DownloadError("download is false")
            mirrors = (*self.source.mirrors, *self.MIRRORS)
            urls = list(dict.fromkeys(urljoin(mirror, self.archives[path.name][0]) for mirror in mirrors))
            packed, content = download(urls, lambda packed: self._unpack(path.name, packed), self.MOST_BYTES)
            _replace(archive, packed)
        _replace(path, content)

    def _unpack(self, name: str, packed: bytes) -> bytes | None:
        """Unpack a file from an archive, or from one in a ZIP archive; None if it is not the right one."""
        expected = self.SHA256.get(name)
        if expected is None and hashlib.md5(packed, usedforsecurity=False).hexdigest() != self.archives[name][1]:
            return None
        with suppress(zlib.error, zipfile.BadZipFile, KeyError):
            if self.archives[name][0].endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(packed)) as archive, archive.open(f"gzip/{name}.gz") as file:
                    packed = file.read(self.MOST_BYTES)
            content = zlib.decompressobj(wbits=31).decompress(packed, self.MOST_BYTES)
            if expected is None:
                return content if self._has_layout(name, content[:16], len(content)) else None
            if hashlib.sha256(content).hexdigest() == expected:
                return content
        return None


def _layout(head: bytes) -> tuple[np.dtype[Any], list[int]]:
    """Return type and shape of an IDX file by its first 16 bytes; the shape is empty for another file."""
    zeros, kind, dimensions = head[:2], *(head[2:4].ljust(2, b"\0"))
    if zeros != bytes(2) or kind not in _TYPES or dimensions > 3 or len(head) < 4 + 4 * dimensions:
        return _TYPES[8], []
    return _TYPES[kind], [int.from_bytes(head[4 * i : 4 * i + 4], "big") for i in range(1, 1 + dimensions)]


def _replace(path: Path, content: bytes) -> None:
    """Write a file; the damaged one that was there is kept under another name."""
    if path.exists():
        names = numbered(f"{path.name}.damaged")
        kept = next(kept for name in names if not (kept := path.with_name(name)).exists())
        path.rename(kept)
        print(f"warning: {path} was damaged: renamed to {kept.name} and replaced by an intact one", file=sys.stderr)
    write_file(path, content)
