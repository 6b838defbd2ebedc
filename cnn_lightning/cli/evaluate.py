"""``scripts/evaluate.py``: test checkpoints and report on them."""

import csv
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from cnn_lightning.cli import run_folders as runs
from cnn_lightning.cli.classifier_cli import EvaluateCLI, test_checkpoint
from cnn_lightning.cli.exit_codes import command, ctrl_c_as_usual
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import device_name, print_rank_zero, relative_path
from cnn_lightning.data.augment import FlipAndShift
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images as pictures
from cnn_lightning.reporting.evaluation import ENSEMBLE, Evaluation

# Name of a network -> "up to" and "corner" -> (pixels, accuracy).
Shifts = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


@command
def evaluate(args: Sequence[str] | None = None) -> None:
    """Test checkpoints on the official test images of their dataset, and write a report.

    Args:
        args: Command-line arguments. Default: those of this process.
    """
    clis = [EvaluateCLI(args)]
    clis += [EvaluateCLI(args, index) for index in range(1, len(clis[0].config.ckpt_path))]
    _check_go_together(clis)
    folder = _report_folder(clis[0])
    for cli in clis:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("test")
        if cli.config.shift is not None:
            _check_room(cli)
    if folder:
        make_folder(folder, "--report")  # now, because tests may take long
    try:
        _test_and_report(clis, folder)
    finally:
        if folder:
            rank_zero_only(runs.remove_if_empty)(folder)


def _test_and_report(clis: Sequence[EvaluateCLI], folder: Path | None) -> None:
    evaluations, shifts = {}, {}
    for cli in clis:
        what = f"{type(cli.model.net).__name__} on {type(cli.datamodule).__name__}"
        print_rank_zero(f"Testing {what}, device {device_name(cli.trainer)}")
        if not test_checkpoint(cli, cli.ckpt_path):
            return
        path, name = relative_path(cli.ckpt_path), _run_name(cli)
        evaluation = _evaluation(cli)
        if cli.config.shift is not None:
            shifts[path if name in shifts else name] = _accuracy_by_shift(cli, evaluation.accuracy)
        evaluations[path] = _mean_of_views(cli, evaluation) if cli.config.tta else evaluation
    if len(clis) > 1:
        accuracies = [100 * evaluation.accuracy for evaluation in evaluations.values()]
        spread = f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} %"
        print_rank_zero(f"\nMean and standard deviation of these {len(clis)}\naccuracy    {spread}")
        evaluations[ENSEMBLE] = Evaluation.ensemble(list(evaluations.values()))
        _say_evaluation(f"Ensemble of these {len(clis)}, the mean of their probabilities", evaluations[ENSEMBLE])
    if shifts:
        _say_shifts(shifts)
    if folder:
        print_rank_zero(f"report      {relative_path(_write_report(folder, clis[0], evaluations, shifts))}")


def _check_go_together(clis: Sequence[EvaluateCLI]) -> None:
    paths = [cli.ckpt_path.resolve() for cli in clis]
    for path, cli in zip(paths, clis, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{relative_path(cli.ckpt_path)} is named twice: name each checkpoint once")
    names = {type(cli.datamodule).__name__: relative_path(cli.ckpt_path) for cli in clis}
    if len(names) > 1:
        listed = ", ".join(f"{path} of {name}" for name, path in names.items())
        raise UsageError(f"{listed}: expected checkpoints of one dataset, or choose one with --data")
    sizes = {cli.datamodule.batch_size: relative_path(cli.ckpt_path) for cli in clis}
    limits = [name for name in ("fast_dev_run", "limit_test_batches") if clis[0].config.trainer[name]]
    if len(sizes) > 1 and limits:
        listed = ", ".join(f"{size} in {path}" for size, path in sizes.items())
        raise UsageError(
            f"--trainer.{limits[0]} would test each checkpoint on other images, for its batches are of another "
            f"size ({listed}): give all one --data.batch_size"
        )


def _report_folder(cli: EvaluateCLI) -> Path | None:
    """The folder of the report, which does not exist yet; None for no report."""
    report = cli.config.report
    if report is False:
        return None
    if report is True:
        home = runs.run_of(cli.ckpt_path) or cli.ckpt_path.parent
        return home / runs.next_number(home, "report")
    if Path(report).exists():
        raise UsageError(f"--report {report} is there already: name a folder that is not, or move that one away")
    return Path(report)


def _run_name(cli: EvaluateCLI) -> str:
    """A short name of a checkpoint, with what it learnt about moved images."""
    run = runs.run_of(cli.ckpt_path)
    stem = cli.ckpt_path.stem
    name = (
        f"{run.parent.name}/{run.name}{'' if stem == 'best' else f', {stem}'}" if run else relative_path(cli.ckpt_path)
    )
    shift = cli.datamodule.hparams["shift"]
    return f"{name}, --data.shift {shift}" if shift else name


def _check_room(cli: EvaluateCLI) -> None:
    """Refuse to move the test images so far that they are cut."""
    most, data = cli.config.shift, cli.datamodule
    drawn = data.part("test")[0].amax(dim=(0, 1)) > 0
    rows, columns = drawn.any(dim=1), drawn.any(dim=0)
    room = min(line.nonzero().min().item() for line in (rows, rows.flip(0), columns, columns.flip(0)))
    if most < 1:
        raise UsageError(f"--shift is {most}, expected at least 1")
    if most > room:
        pad = data.pad + most - room
        raise UsageError(
            f"--shift {most} would cut the test images at the edge, from which they are {room} pixels away: take "
            f"a network that was trained with --data.pad {pad} --model.net.image_size {data.SIDE + 2 * pad}"
        )


def _mean_of_views(cli: EvaluateCLI, evaluation: Evaluation) -> Evaluation:
    """Average the probabilities of an image, of it moved by a pixel in each direction, and of all these mirrored."""
    images, _ = cli.datamodule.part("test")
    moves = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]  # where to begin in an image with a pixel added on every side
    mirrored = (0, 1) if cli.datamodule.can_flip else (0,)
    change = FlipAndShift(flip=True, shift=1)
    draws = [torch.tensor((flip, *move)) for flip in mirrored for move in moves]
    others = [_evaluate_on(cli, change(images, draw.expand(len(images), 3))) for draw in draws[1:]]
    views = [evaluation, *others]
    mean = Evaluation.ensemble(views)
    _say_evaluation(f"The same with test-time augmentation, the mean of the probabilities of {len(views)} views", mean)
    return mean


def _say_evaluation(what: str, evaluation: Evaluation) -> None:
    print_rank_zero(f"\n{what}\naccuracy    {evaluation.accuracy:.2%} ({evaluation.correct:,}/{evaluation.total:,})")
    print_rank_zero(f"loss        {evaluation.loss:.4f}")


def _accuracy_by_shift(cli: EvaluateCLI, unmoved: float) -> dict[str, list[tuple[int, float]]]:
    """Accuracy on test images moved by up to n pixels in any direction at random, and by n pixels into a corner."""
    images, _ = cli.datamodule.part("test")
    points = {"up to": [(0, unmoved)], "corner": [(0, unmoved)]}
    for pixels in range(1, cli.config.shift + 1):
        shift = FlipAndShift(flip=False, shift=pixels)
        anywhere = shift.draw(len(images), np.random.default_rng((0, pixels)))
        corners = [
            torch.tensor([0, *corner]).expand(len(images), 3) for corner in itertools.product((0, 2 * pixels), repeat=2)
        ]
        points["up to"].append((pixels, _evaluate_on(cli, shift(images, anywhere)).accuracy))
        in_corners = [_evaluate_on(cli, shift(images, corner)).accuracy for corner in corners]
        points["corner"].append((pixels, float(np.mean(in_corners))))
    return points


def _evaluate_on(cli: EvaluateCLI, images: Tensor) -> Evaluation:
    """Test on changed test images."""
    if cli.trainer.progress_bar_callback:
        cli.trainer.progress_bar_callback.disable()  # there would be one for each of these tests
    data = cli.datamodule
    loader = TensorLoader(images, data.part("test")[1], data.batch_size, data.normalize)
    with ctrl_c_as_usual(cli.trainer):
        cli.trainer.test(cli.model, loader, verbose=False)
    return _evaluation(cli)


def _evaluation(cli: EvaluateCLI) -> Evaluation:
    """What the last test gave."""
    return Evaluation(cli.scores.labels, cli.scores.scores.double().softmax(dim=1), cli.datamodule.class_names)


def _say_shifts(shifts: Shifts) -> None:
    print_rank_zero("\nAccuracy on test images moved by n pixels")
    for name, lines in shifts.items():
        pixels = (f"{n:>8}" for n, _ in lines["up to"])
        print_rank_zero(f"{name}\n{'n':<12}{''.join(pixels)}")
        for kind, points in lines.items():
            print_rank_zero(f"{kind:<12}" + "".join(f"{accuracy:>8.2%}" for _, accuracy in points))


@rank_zero_only
def _write_report(folder: Path, cli: EvaluateCLI, evaluations: Mapping[str, Evaluation], shifts: Shifts) -> Path:
    # Here, not above, so that only who reports waits for matplotlib.
    from cnn_lightning.reporting import plots, report

    data, net = cli.datamodule, cli.model.net
    images, _ = data.part("test")
    evaluation = next(iter(evaluations.values()))
    images = images[: evaluation.total]
    facts = {
        "network": f"{type(net).__name__}, {sum(weight.numel() for weight in net.parameters()):,} weights",
        "dataset": f"{type(data).__name__}, {evaluation.total:,} test images",
        "checkpoint": relative_path(cli.ckpt_path),
        "saved": f"in epoch {runs.epoch_of(cli.checkpoint)}, after {cli.checkpoint['global_step']:,} optimizer steps",
    }
    if cli.config.tta:
        facts["probabilities"] = "means over an image, the same moved by a pixel, and, but for digits, mirrored"
    further = []
    if filters := pictures.filters(net):
        text = (
            "The weights of its filters: orange where bright pixels speak for the feature, blue where they speak "
            "against it."
        )
        further.append(report.Picture("filters", "What the first layer looks for", text, filters))
    text = (
        "The first test image, and below it what each layer makes of it in its first 16 channels, from black (lowest "
        "value of the layer) to white (highest)."
    )
    maps = pictures.feature_maps(net.eval(), data.normalize(images[:1])[0])
    further.append(report.Picture("feature_maps", "What an image becomes, layer by layer", text, maps))
    if shifts:
        with (folder / "shift.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["network", "moved", "pixels", "accuracy"])
            table.writerows(
                [name, kind, *point] for name, lines in shifts.items() for kind, line in lines.items() for point in line
            )
        plots.accuracy_by_shift(shifts, folder / "shift.png")
        text = (
            "The test images, moved by up to n pixels in any direction at random (solid), and by n pixels towards each "
            "of the four corners (dashed, mean of the four). None is cut at the edge. The numbers are in shift.csv."
        )
        further.append(report.Picture("shift", "What moving the images does", text))
    run = runs.run_of(cli.ckpt_path)
    return report.write_report(
        folder,
        f"{type(net).__name__} on {type(data).__name__}",
        evaluations,
        images,
        facts,
        plots.read_scalars(run) if run else None,
        further,
    )
