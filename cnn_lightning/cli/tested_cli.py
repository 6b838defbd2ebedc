"""TestedCLI: what tests one or several checkpoints on the test set: evaluate, draw and export."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from cnn_lightning.callbacks import KeepLogits
from cnn_lightning.callbacks.dataset import example_input
from cnn_lightning.checkpointing.files import numbered
from cnn_lightning.checkpointing.settings import run_of
from cnn_lightning.cli.run_folders import new_path
from cnn_lightning.cli.trained_cli import TrainedCLI
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import class_names_of, facts_of, name_of
from cnn_lightning.reporting.evaluation import Evaluation


class TestedCLI(TrainedCLI):
    """Builds what tests a checkpoint.

    Args:
        args: Command-line arguments.
        index: Which of the checkpoints that are named.

    Attributes:
        kept: Keeps the logits of the test images.
    """

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    DESCRIPTION: ClassVar[str]  # what the command does, for --help

    def __init__(self, args: Sequence[str], index: int = 0) -> None:
        self.index = index
        self.kept = KeepLogits()
        self.extra_callbacks = [self.kept]
        super().__init__(args, self.DESCRIPTION)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoints."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "ckpt_path",
            nargs="*",
            default=argparse.SUPPRESS,  # [] would replace those of a file
            help="The checkpoint, or several. Default: the best.ckpt that was saved last.",
        )

    def named_checkpoint(self, config: Any) -> str | None:
        """Return the one with the number of this CLI."""
        paths = named_checkpoints(config)
        return paths[self.index] if paths else None

    @classmethod
    def for_each(cls, args: Sequence[str]) -> list[Any]:
        """Build one for each checkpoint that the arguments name; one if they name none."""
        first = cls(args)
        return [first, *(cls(args, index) for index in range(1, len(named_checkpoints(first.config))))]

    def evaluation(self) -> Evaluation:
        """Return what the last test gave."""
        logits = self.kept.logits.double()
        names = class_names_of(self.datamodule, logits.shape[1])
        if len(names) > logits.shape[1]:
            raise UsageError(
                f"the network has {logits.shape[1]} outputs, and {name_of(self.datamodule)} has {len(names)} classes: "
                "expected as many"
            )
        return Evaluation(self.kept.labels, logits.softmax(dim=1), names, self.calibration)

    def new_output(self, name: str, suffix: str = "") -> Path:
        """Return the path of what the command writes, which does not exist yet: ``--output``, or one in the run.

        Args:
            name: Its name in the folder of the run, without a number.
            suffix: Of a file; "" for a folder.
        """
        if self.config.output is not None:
            return new_path("--output", self.config.output, "file" if suffix else "folder")
        home = run_of(self.checkpoint_path) or self.checkpoint_path.parent
        return next(path for numbered_name in numbered(name, suffix) if not (path := home / numbered_name).exists())

    def image_shape(self) -> torch.Size:
        """Return (C, H, W) of the network's images, as the network or the dataset states it."""
        example = self.model.example_input_array
        example = example_input(facts_of(self.datamodule)) if example is None else example
        if not isinstance(example, Tensor):
            raise UsageError(
                f"neither {type(self.model.net).__name__} nor {name_of(self.datamodule)} states in_channels and "
                "image_size: add both as attributes to one of them (docs/own.md)"
            )
        return example.shape[1:]

    def read_test_images(self, consequence: str) -> bool:
        """Read the test images; print a warning with the consequence and return False if they are not at hand."""
        try:
            self.datamodule.prepare_data()
            self.datamodule.setup("test")
        except UsageError as error:
            print(f"warning: {consequence}: {error}", file=sys.stderr)
            return False
        return True


def named_checkpoints(config: Any) -> Sequence[str]:
    """Return the checkpoints that are named; in a file of ``fit.py --print_config`` that is null."""
    return config.get("ckpt_path") or []
