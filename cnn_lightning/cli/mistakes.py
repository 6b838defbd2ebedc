"""Our remaining mistakes on MNIST, next to the labels that are known to be wrong.

    python scripts/evaluate.py A.ckpt B.ckpt C.ckpt --tta true --report logs/ensemble
    python scripts/mistakes.py logs/ensemble/predictions_ensemble.csv --into docs/results/mnist_mistakes

Makes a page, mistakes.md, and a picture of all mistakes. Northcutt, Athalye and Mueller (2021, "Pervasive label errors
in test sets destabilize machine learning benchmarks", arXiv 2103.14749) had five people look at every test image whose
label their method doubted; of 15 images fewer than three confirmed the label. A network that is right about these has
learnt the noise of the labels, or was lucky.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.data import MNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images as pictures


class Votes(NamedTuple):
    """What five people saw in a test image: the label, the digit that was proposed to them instead, or neither."""

    label: int
    proposed: str
    other: int
    neither: int

    def __str__(self) -> str:
        return f"{self.label} the label, {self.other} a {self.proposed}, {self.neither} neither"


# From mturk/mnist_mturk.json of github.com/cleanlab/label-errors: all of which fewer than three confirmed the label.
WRONG_LABELS = {
    947: Votes(0, "9", 5, 0),
    1621: Votes(2, "6", 3, 0),
    1901: Votes(2, "4", 3, 0),
    2130: Votes(2, "9", 2, 1),
    2462: Votes(0, "0", 4, 1),
    2597: Votes(0, "3", 4, 1),
    2654: Votes(0, "1", 2, 3),
    3520: Votes(2, "4", 0, 3),
    3558: Votes(1, "0", 4, 0),
    5937: Votes(1, "3", 3, 1),
    6651: Votes(0, "6", 5, 0),
    6783: Votes(2, "6", 3, 0),
    8527: Votes(2, "9", 2, 1),
    9679: Votes(2, "3", 0, 3),
    9729: Votes(2, "6", 3, 0),
}


@command
def mistakes(args: Sequence[str]) -> None:
    """Write the page and the picture."""
    parser = OptionParser(__doc__)
    parser.add_argument("predictions", type=Path, help="predictions.csv of a report of scripts/evaluate.py on MNIST")
    parser.add_argument("--into", type=Path, required=True, help="folder of the page")
    options = parser.parse_args(args)
    path, picture = options.into / "mistakes.md", options.into / "mistakes.png"
    for file in (path, picture):
        if file.exists():
            raise UsageError(f"{file} is there already: change --into, or move it away")
    rows = read_predictions(options.predictions)
    wrong = [row for row in rows if row["correct"] == "0"]
    data = MNIST()
    data.prepare_data()
    images, _ = data.read(train=False)
    make_folder(options.into, "--into")
    if wrong:
        captions = [
            f"{row['index']}{'*' * (int(row['index']) in WRONG_LABELS)}\n{row['predicted']}, label {row['true']}"
            for row in wrong
        ]
        shown_images = images[[int(row["index"]) for row in wrong], 0].numpy()
        pictures.grid(shown_images, captions, columns=10).save(picture, optimize=True)
    write_file(path, page(rows, wrong).encode())
    print(f"{len(wrong)} mistakes in {relative_path(path)}")


def read_predictions(path: Path) -> list[dict[str, str]]:
    """Read what a network made of the 10,000 test images.

    Raises:
        UsageError: The file is none that ``scripts/evaluate.py`` writes for MNIST.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if len(rows) != 10_000 or {"index", "true", "predicted", "correct", *map(str, range(10))} - rows[0].keys():
        raise UsageError(f"{path} is no predictions.csv of scripts/evaluate.py on MNIST, with its 10,000 test images")
    return rows


def page(rows: Sequence[dict[str, str]], wrong: Sequence[dict[str, str]]) -> str:
    """The page, in Markdown."""
    doubtful = [row for row in rows if int(row["index"]) in WRONG_LABELS]
    hit = [row for row in doubtful if row["correct"] == "0"]
    agreed = [row for row in hit if row["predicted"] == WRONG_LABELS[int(row["index"])].proposed]
    lines = [
        "# The mistakes that remain on MNIST",
        "",
        f"Of 10,000 test images, {len(wrong)} are taken for another digit than their label says, "
        f"{1 - len(wrong) / 10_000:.2%} right. {len(hit)} of these are among the {len(WRONG_LABELS)} whose label fewer "
        f"than three of five people confirmed ([Northcutt et al. 2021](https://arxiv.org/abs/2103.14749)); in "
        f"{len(agreed)} of them the network says what was proposed to these people instead. With the other "
        f"{len(doubtful) - len(hit)} doubtful labels it agrees.",
        "",
        "![All mistakes; * has a doubtful label](mistakes.png)" if wrong else "",
        "",
        *table(wrong),
        "",
        "The doubtful labels with which the network agrees:",
        "",
        *table([row for row in doubtful if row not in hit]),
    ]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """The lines of a table, an image in each."""
    return [
        "| test image | label | network says | how sure | what five people saw |",
        "| ---: | ---: | ---: | ---: | --- |",
        *(
            f"| {row['index']} | {row['true']} | {row['predicted']} | {float(row[row['predicted']]):.0%} | "
            f"{WRONG_LABELS.get(int(row['index']), '')} |"
            for row in rows
        ),
    ]
