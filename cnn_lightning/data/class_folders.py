"""Folders of pictures, one for each class: which classes and files they hold."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cnn_lightning.data.picture_formats import is_picture
from cnn_lightning.errors import UsageError

Pictures = list[tuple[Path, int]]  # files with their labels
SHOWN = 5  # files or classes that a message names
LAYOUT = "ROOT/CLASS/FILE, or ROOT/train/CLASS/FILE with val and test next to train"
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # their usual names
# Files and folders that operating systems leave behind; those that are hidden count as well.
_LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}


class ClassFolders:
    """A folder of pictures with a folder for each class, or with such folders for training, validation and test.

    Args:
        root: The folder.

    Attributes:
        parts: "train", and "val" and "test" if they have folders of their own -> the folder.

    Raises:
        UsageError: The folder does not exist or cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            state = "is not a folder" if root.exists() else "does not exist"
            raise UsageError(f"{os.path.abspath(root)} {state}, expected {LAYOUT}", "root")  # noqa: PTH100
        self.parts = {"train": root}
        if (root / "train").is_dir() and _subfolders(root / "train"):  # otherwise it may be a class, of trains
            found = {part: [root / name for name in names if (root / name).is_dir()] for part, names in PARTS.items()}
            if len(found["val"]) > 1:
                folders = " and ".join(map(str, found["val"]))
                raise UsageError(f"{folders} are both for validation, expected one of them", "root")
            self.parts = {part: folders[0] for part, folders in found.items() if folders}

    def class_names(self) -> list[str]:
        """Return the names of the folders with training images, sorted.

        Raises:
            UsageError: There are fewer than two.
        """
        folder = self.parts["train"]
        subfolders = _subfolders(folder)
        if len(subfolders) < 2:
            state = f"holds one folder, {subfolders[0].name}" if subfolders else "holds no folders"
            advice = f"expected one for each of at least two classes ({LAYOUT})"
            if subfolders and len(_subfolders(subfolders[0])) > 1:
                advice = f"expected one for each class: is {subfolders[0]} meant?"
            raise UsageError(f"{folder} {state}, {advice}", "root")
        for subfolder in subfolders:
            if not subfolder.name.isprintable():
                raise UsageError(f"{subfolder.name!r} in {folder} cannot be printed: rename the folder", "root")
        return [subfolder.name for subfolder in subfolders]

    def pictures(self, part: str, class_names: Mapping[str, int]) -> tuple[Pictures, list[Path]]:
        """Find the files of a part.

        Args:
            part: A key of ``parts``.
            class_names: Name -> label.

        Returns:
            Pictures with their labels, sorted, and what else is there, except files that are hidden.

        Raises:
            UsageError: The folder holds other classes, or a class has no picture.
        """
        folder = self.parts[part]
        names = [subfolder.name for subfolder in _subfolders(folder)]
        if unknown := sorted(set(names) - set(class_names)):
            expected = f"expected those of training: {listed(list(class_names))}"
            raise UsageError(f"{folder} holds the classes {listed(unknown)}, {expected}", "root")
        if not names:
            raise UsageError(f"{folder} holds no folders of classes, expected {folder}/CLASS/FILE", "root")
        pictures, others = Pictures(), [path for path in _entries(folder) if not path.is_dir()]
        if folder != self.root and part == "train":
            others += [path for path in _entries(self.root) if path not in self.parts.values()]
        for name in names:
            files = sorted(_files(folder / name))
            found = [(path, class_names[name]) for path in files if is_picture(path)]
            if not found:
                raise UsageError(f"{folder / name} holds no pictures: add some, or remove the folder", "root")
            pictures += found
            others += [path for path in files if not is_picture(path)]
        return pictures, others


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, sorted, except those that are hidden."""
    try:
        return sorted(path for path in folder.iterdir() if not _is_leftover(path.name))
    except OSError as error:
        raise UsageError(f"cannot read {folder} ({error.strerror})", "root") from error


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, except those that are hidden; links are followed, as torchvision does."""
    unreadable: list[OSError] = []
    seen = {folder.resolve()}
    for parent, subfolders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        yield from (Path(parent, name) for name in names if not _is_leftover(name))
        real = {name: Path(parent, name).resolve() for name in subfolders if not _is_leftover(name)}
        subfolders[:] = [name for name in real if real[name] not in seen]  # a link may lead back
        seen.update(real.values())
    if unreadable:
        raise UsageError(f"cannot read {unreadable[0].filename} ({unreadable[0].strerror})", "root")


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFTOVERS


def listed(texts: Sequence[str], separator: str = ", ") -> str:
    """Join the first five texts, and say how many there are besides."""
    rest = [f"and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else []
    return separator.join([*texts[:SHOWN], *rest])
