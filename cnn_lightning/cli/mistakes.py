"""Compare the misclassified MNIST test images with the labels that are known to be wrong.

    python scripts/evaluate.py A.ckpt B.ckpt C.ckpt --tta true --report logs/ensemble
    python scripts/mistakes.py logs/ensemble/predictions_ensemble.csv --into docs/results/mnist_mistakes

Writes a page, mistakes.md, and a picture of all misclassified images. Northcutt, Athalye and Mueller (2021, "Pervasive
label errors in test sets destabilize machine learning benchmarks", arXiv 2103.14749) showed every test image with a
suspicious label to five people; for 15 images fewer than three confirmed the label. A network that agrees with those
labels has memorised label noise, or was lucky.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.data import MNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images

# Votes of five people: the label, the digit proposed instead, or neither.
# Source: mturk/mnist_mturk.json of github.com/cleanlab/label-errors.
_VOTES = Path(__file__).with_name("wrong_labels.csv").read_text(encoding="utf-8")
WRONG_LABELS = {row["image"]: row for row in csv.DictReader(_VOTES.splitlines())}


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
            raise UsageError(f"{file} exists, expected a new file: change --into, or move it away")
    rows = _read_predictions(options.predictions)
    wrong = [row for row in rows if row["correct"] == "0"]
    doubtful = [row for row in rows if row["index"] in WRONG_LABELS]
    known = [row for row in wrong if row in doubtful]
    data = MNIST()
    data.prepare_data()
    digits, _ = data.read(train=False)
    make_folder(options.into, "--into")
    if wrong:
        shown = digits[[int(row["index"]) for row in wrong], 0].numpy()
        captions = [f"{row['index']}{'*' * (row in known)}\n{row['predicted']}, label {row['true']}" for row in wrong]
        images.grid(shown, captions).save(picture, optimize=True)
    template = Template(Path(__file__).with_name("mistakes.md").read_text(encoding="utf-8"), trim_blocks=True)
    page = template.render(
        wrong_labels=WRONG_LABELS,
        wrong=wrong,
        known=known,
        proposed=[row for row in known if row["predicted"] == WRONG_LABELS[row["index"]]["proposed"]],
        agreed=[row for row in doubtful if row not in known],
    )
    write_file(path, f"{page}\n".encode())
    print(f"{len(wrong)} misclassified images in {relative_path(path)}")


def _read_predictions(path: Path) -> list[dict[str, str]]:
    """Read the predictions for the 10,000 test images."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if len(rows) != 10_000 or {"index", "true", "predicted", "correct", *map(str, range(10))} - rows[0].keys():
        raise UsageError(f"{path} is not a predictions.csv of scripts/evaluate.py for the 10,000 test images of MNIST")
    return rows
