"""Write the errors of LeNetCNN that ``evaluate.py --robust`` compares other networks with.

Train LeNetCNN with three seeds, evaluate the three checkpoints together, and give the table of the report:

    python scripts/evaluate.py A/best.ckpt B/best.ckpt C/best.ckpt --robust true --report REPORT
    python -m tests.baseline MNIST REPORT/corruptions.csv

Several tables may be given; the mean is over all networks in them. Rows of other datasets are kept.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from cnn_lightning.robustness.baseline import FILE

COLUMNS = ("dataset", "corruption", "strength", "error")


def update(dataset: str, tables: list[Path], path: Path = FILE) -> None:
    """Replace the rows of a dataset by the mean errors in the tables, and keep all others."""
    errors = defaultdict(list)
    for table in tables:
        for row in _rows(table):
            errors[row["corruption"], row["strength"]].append(1 - float(row["accuracy"]))
    kept = [[row[name] for name in COLUMNS] for row in _rows(path) if row["dataset"] != dataset]
    new = [[dataset, *key, f"{mean(values):.6f}"] for key, values in errors.items()]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept, *new])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    update(sys.argv[1], [Path(name) for name in sys.argv[2:]])
