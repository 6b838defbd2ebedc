"""``scripts/evaluate.py``: test checkpoints, compare and average them, and write a report."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from cnn_lightning.checkpointing.settings import run_of
from cnn_lightning.cli.calibrating import calibration_lines, ensure_calibration
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.report_facts import facts_of_checkpoint
from cnn_lightning.cli.robustness import Robustness, measure, robustness_lines, write_robustness
from cnn_lightning.cli.run_folders import make_folder, new_path, next_name, remove_if_empty
from cnn_lightning.cli.shifted_images import AccuracyByShift, accuracy_by_shift, check_room, shift_table
from cnn_lightning.cli.terminal import command_words, device_name, is_rank_zero, print_rank_zero, relative_path
from cnn_lightning.cli.tested_cli import TestedCLI
from cnn_lightning.data.augment import FlipAndShift
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import has_parts, name_of
from cnn_lightning.lightning_fixes import keyboard_interrupt
from cnn_lightning.reporting.evaluation import ENSEMBLE, Evaluation

# What a data module needs besides labels and images, and where that is described.
MISSING = "{} does not hand out its test images"
TO_ADD = "add class_names, part and normalize to it (docs/own.md)"


class EvaluateCLI(TestedCLI):
    """Builds what tests a checkpoint, with the options of evaluation."""

    DESCRIPTION = "Test checkpoints on the official test set of their dataset, and write a report."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of evaluation."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--report",
            type=bool | str,
            default=True,
            help="A new folder for the report, or false for none. Default: report_N in the folder of the run.",
        )
        parser.add_argument(
            "--shift",
            type=PositiveInt | None,
            help="Also measure accuracy on the test images shifted by 1, 2, ... up to so many pixels.",
        )
        parser.add_argument(
            "--robust",
            type=bool,
            default=False,
            help="Also measure accuracy on corrupted and attacked test images, and how well images of other datasets "
            "are told apart. Takes about 100 tests.",
        )
        parser.add_argument(
            "--tta",
            type=bool,
            default=False,
            help="Test-time augmentation: average the probabilities over the image shifted by a pixel in each "
            "direction and, except for digits, over the flipped ones.",
        )

    def test_on(self, images: Tensor, labels: Tensor | None = None) -> Evaluation:
        """Test the model on (N, C, H, W) uint8 or float images, with (N,) labels, by default changed test images."""
        if self.trainer.progress_bar_callback:
            self.trainer.progress_bar_callback.disable()  # there would be one for each of many tests
        data = self.datamodule
        labels = data.part("test")[1] if labels is None else labels
        loader = TensorLoader(images, labels, getattr(data, "batch_size", None) or 64, data.normalize)
        with keyboard_interrupt(self.trainer):
            self.trainer.test(self.model, loader, verbose=False)
        return self.evaluation()


@command
def evaluate(args: Sequence[str]) -> None:
    """Test checkpoints on the official test set of their dataset, and write a report.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    clis = EvaluateCLI.for_each(args)
    _check_comparable(clis)
    folder = _report_folder(clis[0])
    for cli in clis:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("test")
        changes = [f"--{name}" for name in ("shift", "robust", "tta") if cli.config[name]]
        if changes and not has_parts(cli.datamodule):
            missing = MISSING.format(name_of(cli.datamodule))
            raise UsageError(f"{changes[0]} is not possible, because {missing}: leave it out, or {TO_ADD}")
        if cli.config.shift is not None:
            check_room(cli.datamodule, cli.config.shift)
    if folder:
        make_folder(folder, "--report FOLDER")  # now, because tests may take long
    try:
        _test_and_report(clis, folder)
    finally:
        if folder:
            remove_if_empty(folder)


def _test_and_report(clis: Sequence[EvaluateCLI], folder: Path | None) -> None:
    evaluations: dict[str, Evaluation] = {}
    shifts: dict[str, AccuracyByShift] = {}
    robust: dict[str, Robustness] = {}
    for cli in clis:
        what = f"{type(cli.model.net).__name__} on {name_of(cli.datamodule)}"
        ensure_calibration(cli)
        print_rank_zero(f"Testing {what}, device {device_name(cli.trainer)}")
        if not cli.test(cli.checkpoint_path):
            return
        path, name = relative_path(cli.checkpoint_path), _run_name(cli)
        evaluation = cli.evaluation()
        print_rank_zero(calibration_lines(evaluation))
        if cli.config.shift is not None:
            by_shift = accuracy_by_shift(cli.datamodule, cli.test_on, evaluation.accuracy, cli.config.shift)
            shifts[path if name in shifts else name] = by_shift
        if cli.config.robust:
            robust[path if name in robust else name] = measure(cli, cli.test_on, evaluation)
        evaluations[path] = _mean_of_views(cli, evaluation) if cli.config.tta else evaluation
    if len(clis) > 1:
        accuracies = [100 * evaluation.accuracy for evaluation in evaluations.values()]
        spread = f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} %"
        print_rank_zero(f"\nMean and standard deviation of these {len(clis)}\naccuracy    {spread}")
        evaluations[ENSEMBLE] = Evaluation.ensemble(list(evaluations.values()))
        _print_evaluation(f"Ensemble of these {len(clis)}, the mean of their probabilities", evaluations[ENSEMBLE])
    if shifts:
        print_rank_zero(shift_table(shifts))
    if robust:
        print_rank_zero(robustness_lines(robust))
    if folder and is_rank_zero():
        report = _write_report(folder, clis[0], evaluations, shifts, robust)
        print_rank_zero(f"report      {relative_path(report)}")
    print_rank_zero(f"try it      {shlex.join(_draw_command(clis))}")


def _draw_command(clis: Sequence[EvaluateCLI]) -> list[str]:
    """The command that makes a page of the same checkpoints, with the user's own classes."""
    *words, script = command_words("evaluate")
    paths, typed, is_class = [cli.checkpoint_path for cli in clis], list[str](), False
    for word in clis[0].args:
        if word.startswith("-"):
            is_class = word.startswith(("--model", "--data", "--config"))
        if is_class and Path(word) not in paths:
            typed.append(word)
    return [*words, str(Path(script).with_stem("draw")), *map(relative_path, paths), *typed]


def _check_comparable(clis: Sequence[EvaluateCLI]) -> None:
    """Refuse checkpoints whose results could not be compared."""
    paths = [cli.checkpoint_path.resolve() for cli in clis]
    names, sizes = {}, {}
    for path, cli in zip(paths, clis, strict=True):
        shown = relative_path(cli.checkpoint_path)
        if paths.count(path) > 1:
            raise UsageError(f"{shown} is named twice: name each checkpoint once")
        names[name_of(cli.datamodule)] = sizes[getattr(cli.datamodule, "batch_size", None)] = shown
    if len(names) > 1:
        listed = ", ".join(f"{path} of {name}" for name, path in names.items())
        raise UsageError(f"{listed}: expected checkpoints of one dataset, or choose one with --data")
    limits = [name for name in ("fast_dev_run", "limit_test_batches") if clis[0].config.trainer[name]]
    if len(sizes) > 1 and limits:
        listed = ", ".join(f"{size} in {path}" for size, path in sizes.items())
        raise UsageError(
            f"--trainer.{limits[0]} would test each checkpoint on other images because their batch sizes differ "
            f"({listed}): give all one --data.batch_size"
        )


def _report_folder(cli: EvaluateCLI) -> Path | None:
    """The folder of the report, which does not exist yet; None for no report."""
    report = cli.config.report
    if report is False:
        return None
    if report is True:
        home = run_of(cli.checkpoint_path) or cli.checkpoint_path.parent
        return home / next_name(home, "report")
    return new_path("--report", report, "folder")


def _run_name(cli: EvaluateCLI) -> str:
    """A short name of a checkpoint, with the shift that it was trained with."""
    run, stem = run_of(cli.checkpoint_path), cli.checkpoint_path.stem
    name = f"{run.parent.name}/{run.name}" if run else relative_path(cli.checkpoint_path)
    if run and stem != "best":
        name += f", {stem}"
    shift = cli.datamodule.hparams.get("shift")
    return f"{name}, --data.shift {shift}" if shift else name


def _mean_of_views(cli: EvaluateCLI, evaluation: Evaluation) -> Evaluation:
    """Average the probabilities over an image, the image shifted by a pixel in each direction, and all flipped."""
    images, _ = cli.datamodule.part("test")
    starts = [
        (1, 1),
        (0, 1),
        (2, 1),
        (1, 0),
        (1, 2),
    ]  # in an image with a pixel added on every side
    flips = (0, 1) if getattr(cli.datamodule, "can_flip", False) else (0,)
    change = FlipAndShift(flip=True, shift=1)
    draws = [torch.tensor((flip, *start)) for flip in flips for start in starts]
    views = [evaluation, *(cli.test_on(change(images, draw.expand(len(images), 3))) for draw in draws[1:])]
    mean = Evaluation.ensemble(views)
    _print_evaluation(
        f"The same with test-time augmentation, the mean of the probabilities of {len(views)} views", mean
    )
    return mean


def _print_evaluation(what: str, evaluation: Evaluation) -> None:
    print_rank_zero(f"\n{what}\naccuracy    {evaluation.accuracy:.2%} ({evaluation.correct:,}/{evaluation.total:,})")
    print_rank_zero(f"loss        {evaluation.loss:.4f}")


def _write_report(
    folder: Path,
    cli: EvaluateCLI,
    evaluations: Mapping[str, Evaluation],
    shifts: Mapping[str, AccuracyByShift],
    robust: Mapping[str, Robustness],
) -> Path:
    # Imported here, because matplotlib is slow and only reports need it.
    from cnn_lightning.reporting import plots, report

    data, run = cli.datamodule, run_of(cli.checkpoint_path)
    images, example = None, cli.kept.example
    if has_parts(data):
        images, _ = data.part("test")
        example = data.normalize(images[:1])[0]
    else:
        print_rank_zero(f"The report has no misclassified images, because {MISSING.format(name_of(data))}: {TO_ADD}")
    facts = facts_of_checkpoint(cli.checkpoint, cli.checkpoint_path, run)
    if cli.config.tta:
        facts["probabilities"] = "means over an image, the same shifted by a pixel and, except for digits, flipped"
    net, scalars = cli.model.net.eval(), plots.read_scalars(run) if run else None
    figures = write_robustness(folder, data, robust) if robust else None
    return report.write_report(
        folder, name_of(data), net, evaluations, images, example, facts, scalars, shifts, figures
    )
