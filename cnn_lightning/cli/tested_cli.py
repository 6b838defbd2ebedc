"""TestedCLI: what tests one or several checkpoints on the test set: evaluate and draw."""

import argparse
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser

from cnn_lightning.callbacks import KeepLogits
from cnn_lightning.cli.trained_cli import TrainedCLI
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import class_names_of, name_of
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
        return paths[self.index] if (paths := config.get("ckpt_path")) else None

    @classmethod
    def for_each(cls, args: Sequence[str]) -> list[Any]:
        """Build one for each checkpoint that the arguments name; one if they name none."""
        first = cls(args)
        return [first, *(cls(args, index) for index in range(1, len(first.config.get("ckpt_path", []))))]

    def evaluation(self) -> Evaluation:
        """Return what the last test gave."""
        logits = self.kept.logits.double()
        names = class_names_of(self.datamodule, logits.shape[1])
        if len(names) > logits.shape[1]:
            raise UsageError(
                f"the network has {logits.shape[1]} outputs, and {name_of(self.datamodule)} has {len(names)} classes: "
                "expected as many"
            )
        return Evaluation(self.kept.labels, logits.softmax(dim=1), names)
