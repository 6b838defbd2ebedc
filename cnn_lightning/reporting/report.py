"""A report of a test: one self-contained HTML page, and its figures and pictures as files."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template
from torch import Tensor, nn

from cnn_lightning.reporting import images as drawings
from cnn_lightning.reporting import palette, plots, robustness_plots
from cnn_lightning.reporting.evaluation import ENSEMBLE, Evaluation
from cnn_lightning.reporting.plots import Points, Shifts
from cnn_lightning.reporting.tables import as_csv


def write_report(
    folder: Path,
    dataset: str,
    net: nn.Module,
    evaluations: Mapping[str, Evaluation],
    images: Tensor | None,
    example: Tensor,
    facts: Mapping[str, str],
    scalars: Mapping[str, Points] | None = None,
    shifts: Shifts | None = None,
    robustness: Mapping[str, Any] | None = None,
) -> Path:
    """Write a report and return the path of ``report.html``, which is written last: it exists only if all else does.

    Args:
        folder: An empty folder.
        dataset: Name of the dataset.
        net: Network of the first checkpoint, in evaluation mode.
        evaluations: Checkpoint, or "ensemble", -> its evaluation. The first is shown in detail.
        images: (N, C, H, W) uint8: the test images, or more; None leaves out the misclassified images.
        example: (C, H, W) float: the image for the feature maps, normalised as in training, on the network's device.
        facts: What else to say about the first checkpoint: label -> text.
        scalars: Curves of the first checkpoint's run, from ``plots.read_scalars``.
        shifts: Accuracy on moved test images, as ``plots.accuracy_by_shift`` takes it; also saved as ``shift.csv``.
        robustness: Figures of corruptions, other images and attacks by network; their tables and pictures are in the
            folder already.
    """
    network, evaluation = type(net).__name__, next(iter(evaluations.values()))
    title, parameters = f"{network} on {dataset}", sum(weight.numel() for weight in net.parameters())
    facts = {
        "network": f"{network}, {parameters:,} parameters",
        "dataset": f"{dataset}, {evaluation.total:,} test images",
        **facts,
    }
    numbers = {name: name if name == ENSEMBLE else str(number) for number, name in enumerate(evaluations, 1)}
    files = {name: f"predictions_{number}.csv".replace("_1.csv", ".csv") for name, number in numbers.items()}
    for name, one in evaluations.items():
        one.write_csv(folder / files[name])
    figures = {name: one.figures() for name, one in evaluations.items()}
    content = {"title": title, "facts": facts, "checkpoints": figures}
    content |= {"robustness": robustness} if robustness else {}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / "figures.json").write_text(text + "\n", encoding="utf-8")

    names = evaluation.class_names
    wrong = None
    if images is not None:
        wrong = drawings.misclassified(images, evaluation.labels, evaluation.probabilities, names)
    pictures = {
        "confusion_matrix": drawings.confusion_matrix(evaluation.confusion_matrix.numpy(), names),
        "mistakes": wrong,
        "filters": drawings.filters(net, example),
        "feature_maps": drawings.feature_maps(net, example),
    }
    for name, picture in pictures.items():
        if picture is not None:
            picture.save(folder / f"{name}.png", optimize=True)
    plots.reliability(evaluation, folder / "reliability.png")
    robustness_plots.risk_coverage(evaluation, folder / "risk_coverage.png")
    plots.curves(scalars or {}, folder / "curves.png")
    if shifts:
        plots.accuracy_by_shift(shifts, folder / "shift.png")
        rows = [
            {"network": name, "moved": moved, "pixels": pixels, "accuracy": accuracy}
            for name, lines in shifts.items()
            for moved, points in lines.items()
            for pixels, accuracy in points
        ]
        (folder / "shift.csv").write_bytes(as_csv(rows))

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = Template(template, autoescape=True, undefined=StrictUndefined, trim_blocks=True).render(
        {"title": title, "facts": facts, "files": files, "numbers": numbers, "palette": palette},
        evaluations=evaluations,
        evaluation=evaluation,
        robustness=robustness,
        png={path.stem: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.png")},
        percent=lambda share: f"{100 * share:.2f}\N{NO-BREAK SPACE}%",
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
