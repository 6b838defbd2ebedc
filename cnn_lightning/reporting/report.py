"""A report of a test: one HTML page with everything in it, and its numbers and pictures as files."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image
from torch import Tensor

from cnn_lightning.reporting import images as pictures
from cnn_lightning.reporting import plots
from cnn_lightning.reporting.evaluation import ENSEMBLE, Evaluation
from cnn_lightning.reporting.plots import Points

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { max-width: 58rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
h1, h2 { overflow-wrap: anywhere; }
p { max-width: 40rem; margin: .3rem 0 .8rem; }
.headline { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: 1.2rem 0; list-style: none; }
.headline li { flex: 1 1 10rem; padding: .7rem 1rem; border-left: 4px solid #0072b2; background: #f3f6f9;
  font-size: .9rem; }
.headline b { display: block; font-size: 1.6rem; line-height: 1.3; }
.wide { overflow-x: auto; }
.wide + p { margin-top: 1.2rem; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: #555; font-weight: 600; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td:first-child { color: #555; }
.facts td:last-child, .checkpoints td:first-child { min-width: 10rem; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  table { font-size: .82rem; }
  th, td { padding-right: .5rem; }
}
@media print {
  body { max-width: none; font-size: .85rem; }
  .wide { overflow: visible; }
  img { max-width: 100%; max-height: 22cm; }
  section, tr { break-inside: avoid; }
  .headline li { print-color-adjust: exact; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


@dataclass(frozen=True)
class Picture:
    """A picture of the report, also saved as a file of its own.

    Attributes:
        name: Name of the file, without ``.png``.
        heading: What it shows.
        text: How to read it, one or two sentences.
        image: The image; None if the file lies in the folder of the report already.
    """

    name: str
    heading: str
    text: str
    image: Image.Image | None = None

    def html(self, folder: Path) -> str:
        """Save the picture, and make the part of the page with the picture inside."""
        path = folder / f"{self.name}.png"
        if self.image is not None:
            self.image.save(path, optimize=True)
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<div class="wide"><img alt="{escape(self.heading)}" src="data:image/png;base64,{data}"></div>'
        return _section(self.heading, _text(self.text), image)


def write_report(
    folder: Path,
    title: str,
    evaluations: Mapping[str, Evaluation],
    images: Tensor,
    facts: Mapping[str, str],
    scalars: Mapping[str, Points] | None = None,
    further: Iterable[Picture] = (),
) -> Path:
    """Write a report into a folder; ``report.html`` comes last, so that it is there only if all else is.

    Args:
        folder: An empty folder.
        title: Heading of the report.
        evaluations: Name of a checkpoint -> what it gives for the test images, and "ensemble" -> what several give
            together. The first is shown in detail, the others beside it.
        images: (N, C, H, W) uint8: the test images.
        facts: What was tested: label -> text.
        scalars: Curves of the first checkpoint's run, as ``plots.read_scalars`` gives them.
        further: Pictures that follow ours.

    Returns:
        The path of ``report.html``.
    """
    files = _write_csvs(folder, evaluations)
    name, evaluation = next(iter(evaluations.items()))
    shown = [*_pictures(folder, evaluation, images, scalars or {}), *further]
    figures = {name: one.figures() for name, one in evaluations.items()}
    text = json.dumps({"title": title, "facts": dict(facts), "checkpoints": figures}, indent=1, ensure_ascii=False)
    (folder / "figures.json").write_text(text + "\n", encoding="utf-8")

    headline, tested = _headline(evaluation), _table((), facts.items(), "facts")
    if len(evaluations) > 1:
        top = [tested, _side_by_side(evaluations, files), _heading(f"In detail: {name}"), headline]
    else:
        top = [headline, tested]
    body = [*top, _by_class(evaluation), *(picture.html(folder) for picture in shown), _files(files)]
    page = folder / "report.html"
    page.write_text(PAGE.substitute(title=escape(title), body="\n".join(body)), encoding="utf-8")
    return page


def _write_csvs(folder: Path, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """Write predictions.csv, predictions_2.csv, ...; returns name of a checkpoint -> name of its file."""
    files = {}
    for number, (name, evaluation) in zip(_numbers(evaluations), evaluations.items(), strict=True):
        files[name] = "predictions.csv" if number == "1" else f"predictions_{number}.csv"
        evaluation.write_csv(folder / files[name])
    return files


def _numbers(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The checkpoints by number, for their names are too long for a column; the ensemble keeps its name."""
    return [name if name == ENSEMBLE else str(number) for number, name in enumerate(evaluations, 1)]


def _pictures(folder: Path, evaluation: Evaluation, images: Tensor, scalars: Mapping[str, Points]) -> list[Picture]:
    """The pictures of every report; those of matplotlib lie in the folder then."""
    plots.reliability(evaluation, folder / "reliability.png")
    has_curves = plots.curves(scalars, folder / "curves.png")
    confusion = pictures.confusion_matrix(evaluation.confusion_matrix.numpy(), evaluation.class_names)
    shown = [
        Picture(
            "confusion_matrix",
            "Which classes are taken for which",
            "A row is a true class, a column what the network took it for. Right answers are on the diagonal, in "
            "blue; every orange field is a mistake, with the number of images that share it.",
            confusion,
        ),
        _mistakes(evaluation, images),
        Picture(
            "reliability",
            "Does it know when it is right?",
            "Of the images to which a network gives 80 % confidence, 80 % should be right: dots below the dashed "
            "line mean that it trusts itself too much, above it too little. The calibration error is the mean "
            "distance of the dots from the line, weighted by their numbers of images, which are below.",
        ),
    ]
    if has_curves:
        text = (
            "Training and validation of the run that left the checkpoint. Where validation loss rises while training "
            "loss still falls, the network learns its training images by heart."
        )
        shown.append(Picture("curves", "How it was trained", text))
    return shown


def _mistakes(evaluation: Evaluation, images: Tensor) -> Picture:
    picture = pictures.mistakes(images, evaluation.labels, evaluation.probabilities, evaluation.class_names)
    text = (
        f"It made {evaluation.total - evaluation.correct:,} mistakes; here are those of which it was surest. Below an "
        "image: what it took it for and how sure it was, and what it is by its label, which may be wrong."
    )
    return Picture("mistakes", "Its most confident mistakes", text, picture)


def _headline(evaluation: Evaluation) -> str:
    items = (
        ("accuracy", _percent(evaluation.accuracy), f"{evaluation.correct:,} of {evaluation.total:,} images"),
        ("loss", f"{evaluation.loss:.4f}", "mean cross-entropy, in nats"),
        ("calibration error", _percent(evaluation.calibration_error), "between confidence and accuracy"),
    )
    cells = "".join(f"<li>{name} <b>{figure}</b> {what}</li>" for name, figure, what in items)
    return f'<ul class="headline">{cells}</ul>'


def _side_by_side(evaluations: Mapping[str, Evaluation], files: Mapping[str, str]) -> str:
    """Two tables: all checkpoints and their ensemble, and their recall of every class."""
    numbers, compared = _numbers(evaluations), list(evaluations.values())
    overall = [
        (
            name if name == ENSEMBLE else f"{number}. {name}",
            _percent(one.accuracy),
            f"{one.loss:.4f}",
            _percent(one.calibration_error),
            files[name],
        )
        for number, (name, one) in zip(numbers, evaluations.items(), strict=True)
    ]
    by_class = zip(compared[0].class_names, *(one.recall for one in compared), strict=True)
    recall = [(name, *map(_percent, values)) for name, *values in by_class]
    return _section(
        "Side by side",
        _text("The ensemble takes the mean of the probabilities that the checkpoints give an image."),
        _table(("checkpoint", "accuracy", "loss", "calibration error", "file"), overall, "checkpoints"),
        _text("Recall, the share of the images of a class that is found:"),
        _table(("class", *numbers), recall),
    )


def _by_class(evaluation: Evaluation) -> str:
    columns = (evaluation.precision, evaluation.recall, evaluation.f1)
    rows = [
        (name, *map(_percent, shares), f"{images:,}")
        for name, *shares, images in zip(evaluation.class_names, *columns, evaluation.support, strict=True)
    ]
    explanation = (
        "Precision is the share that is right of what the network takes for a class, recall the share of a class "
        "that it finds, F1 their harmonic mean."
    )
    table = _table(("class", "precision", "recall", "F1", "images"), rows)
    return _section("Class by class", _text(explanation), table)


def _files(files: Mapping[str, str]) -> str:
    names = ", ".join(files.values())
    text = (
        f"{names}: every test image with its true and its predicted class and all probabilities, from which every "
        "figure here can be computed again. figures.json: these figures. The pictures are PNG files of their own."
    )
    return _section("Files beside this page", _text(text))


def _section(heading: str, *parts: str) -> str:
    return "\n".join(("<section>", _heading(heading), *filter(None, parts), "</section>"))


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "figures") -> str:
    """A table of texts, with or without a header."""
    lines = [("th", header)] if header else []
    lines += [("td", row) for row in rows]
    body = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) for tag, cells in lines)
    body = "\n".join(f"<tr>{line}</tr>" for line in body)
    return f'<div class="wide"><table class="{kind}">\n{body}\n</table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"
