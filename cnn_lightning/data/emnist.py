"""EMNIST: handwritten letters and digits."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation
from cnn_lightning.errors import UsageError

Split = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]


class EMNIST(IDXDataModule):
    """Letters and digits (Cohen et al. 2017, arXiv 1702.05373); "C/c" is a class of both cases. 536 MB to download.

    Args:
        root: Folder of the datasets, as for the others.
        split: "byclass" (62 classes), "bymerge", "balanced" (47), "letters" (26), "digits" or "mnist" (10).
    """

    source, MOST_BYTES, transposed = datasets.EMNIST, 2**30, True
    preparation = Preparation(box=24, centre_by_mass=False, strokes=True, one_piece=False)

    def __init__(self, root: str | Path | None = None, split: Split = "balanced", **kwargs: Any) -> None:
        if split not in self.source.splits:
            raise UsageError(f"split is {split}, expected one of {', '.join(self.source.splits)}", "split")
        names = [name for name in self.source.classes_split_dict[split] if name != "N/A"]  # of label 0 of "letters"
        self.class_names = tuple(n if n.swapcase() in names else f"{n.upper()}/{n.lower()}" for n in names)
        kinds = [f"{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")]
        self.archives = {f"emnist-{split}-{kind}": (self.source.url, self.source.md5) for kind in kinds}
        if split in ("digits", "mnist"):
            self.preparation = replace(self.preparation, one_piece=True)
        self.split, self.first_label = split, int(split == "letters")
        super().__init__(root, **kwargs)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the dataset with its split, since every split has classes of its own."""
        return f"EMNIST-{self.split}"
