"""Tables of results: runs.csv has a row per run; table.csv, table.md and accuracy.png summarise them over the seeds.

Results of others can stand next to them: published.csv, written by hand, has a row for each.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.cost_plot import accuracy_by_cost, last_epoch

# Columns of runs.csv; the first four are the key of a run.
COLUMNS = (
    "variant", "data", "seed", "digest", "options", "test", "weights", "test_acc", "test_loss", "val_acc", "epoch",
    "seconds", "images_per_second", "threads", "jobs", "processor", "torch", "finished",
)  # fmt: skip
PUBLISHED = ("data", "variant", "weights", "test_acc", "epoch", "source")  # columns of published.csv
DECIMALS = {"test_acc": 6, "test_loss": 5, "seconds": 1, "images_per_second": None}  # of the means in table.csv
Key = tuple[str, ...]
Row = Mapping[str, str]
Summaries = dict[tuple[str, str], dict[str, Any]]  # by dataset and variant


class Results:
    """The rows of runs.csv, with tables and plot in the same folder.

    Args:
        path: The file, which need not exist yet.
        keys: The runs that are compared; rows of other runs are kept, but are in no table.

    Attributes:
        all: All rows by their keys.
    """

    def __init__(self, path: Path, keys: Sequence[Key]) -> None:
        self.path, self.keys = path, keys
        self.published = read_published(path.with_name("published.csv"))
        lines = _read_lines(path, COLUMNS)
        columns = tuple(lines[0]) if lines else ()
        before = tuple(name for name in COLUMNS if name != "test")  # when only the best epoch was ever tested
        if columns not in (COLUMNS, before) or any(len(line) != len(columns) for line in lines):
            raise UsageError(f"{path} has other columns than this version writes: move it away")
        rows = [{"test": "best"} | dict(zip(columns, line, strict=True)) for line in lines[1:]]
        self.all: dict[Key, Row] = {_key(row): {name: row[name] for name in COLUMNS} for row in rows}

    @property
    def rows(self) -> dict[Key, Row]:
        """The rows of the runs that are compared."""
        return {key: self.all[key] for key in self.keys if key in self.all}

    def save(self, rows: Iterable[Row]) -> None:
        """Add rows, or replace those of the same keys, and write the file if that changes anything, and the tables."""
        before, self.all = self.all, self.all | {_key(row): row for row in rows}
        if self.all != before:
            write_file(self.path, as_csv(self.all.values()))
        self.write_tables()

    def write_tables(self) -> None:
        """Write the tables and the plot, if there are rows."""
        if summaries := summarize(self.rows.values()):
            write_file(self.path.with_name("table.csv"), as_csv(summaries.values()))
            write_file(self.path.with_name("table.md"), as_markdown(summaries, self.published).encode())
            accuracy_by_cost(summaries, self.path.with_name("accuracy.png"), self.published)

    def seconds(self, key: Key) -> float:
        """Estimate the training time of a run from other seeds of it, else from all rows; 0 if there are none."""
        same = [row for other, row in self.all.items() if other[:2] == key[:2]]
        return mean([float(row["seconds"]) for row in same or self.all.values()] or [0.0])


def read_published(path: Path) -> list[dict[str, Any]]:
    """Read the results of others; there are none without the file.

    Raises:
        UsageError: A row is not of the form of ``PUBLISHED``, with an accuracy in [0, 1].
    """
    lines = _read_lines(path, PUBLISHED)
    try:
        rows: list[dict[str, Any]] = [dict(zip(PUBLISHED, line, strict=True)) for line in lines]
        numbers = [{"weights": int(row["weights"]), "test_acc": float(row["test_acc"])} for row in rows[1:]]
        if tuple(lines[0]) != PUBLISHED or not all(0 <= row["test_acc"] <= 1 <= row["weights"] for row in numbers):
            raise ValueError
    except (ValueError, IndexError) as error:
        expected = f"expected the columns {','.join(PUBLISHED)}, with whole weights and test_acc between 0 and 1"
        raise UsageError(f"{path}: {expected}") from error
    return [row | values for row, values in zip(rows[1:], numbers, strict=True)]


def _read_lines(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read a CSV file, with its header; a file that does not exist has only that."""
    return list(csv.reader(path.read_text("utf-8", "replace").splitlines())) if path.exists() else [[*columns]]


def summarize(rows: Iterable[Row]) -> Summaries:
    """Compute means over the seeds, and the sample standard deviation of the accuracy, None for one seed."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[_title(row), row["variant"]].append(row)
    summaries: Summaries = {}
    for (data, variant), runs in groups.items():
        values = {name: [float(run[name]) for run in runs] for name in DECIMALS}
        means = {name: round(mean(values[name]), decimals) for name, decimals in DECIMALS.items()}
        deviation = round(stdev(values["test_acc"]), 6) if len(runs) > 1 else None
        group = {"data": data, "variant": variant, "seeds": len(runs), "weights": int(runs[0]["weights"])}
        accuracy = {"test_acc": means.pop("test_acc"), "test_acc_sd": deviation}
        summaries[data, variant] = {**group, **accuracy, **means}
    return summaries


def _key(row: Row) -> Key:
    return tuple(row[name] for name in COLUMNS[:4])


def _title(row: Row) -> str:
    """Name the table of a row: no table mixes best and last epochs."""
    return row["data"] if row["test"] == "best" else last_epoch(row["data"])


def as_csv(rows: Collection[Mapping[str, Any]]) -> bytes:
    """Format rows, at least one, as a CSV file."""
    text = io.StringIO()
    table = csv.DictWriter(text, next(iter(rows)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def as_markdown(summaries: Summaries, published: Sequence[Mapping[str, Any]] = ()) -> str:
    """Format summaries as Markdown, one table for each dataset, then one for each dataset of published results."""
    tables = []
    for data in dict.fromkeys(data for data, _ in summaries):
        first = f"{data}, variant" if data else "variant"
        text = f"| {first} | test accuracy | test loss | parameters | training | images/s | seeds |\n"
        text += f"| --- |{' ---: |' * 6}\n"
        for row in (row for row in summaries.values() if row["data"] == data):
            sd = "" if row["test_acc_sd"] is None else f" ± {100 * row['test_acc_sd']:.2f}"
            text += f"| {row['variant']} | {100 * row['test_acc']:.2f}{sd} % | {row['test_loss']:.4f} | "
            text += f"{row['weights']:,} | {row['seconds'] / 60:.1f} min | {row['images_per_second']:,} | "
            text += f"{row['seeds']} |\n"
        tables.append(text)
    for data in dict.fromkeys(point["data"] for point in published):
        first = f"{data}, published".removeprefix(", ")
        text = f"| {first} | test accuracy | parameters | epoch |\n| --- | ---: | ---: | --- |\n"
        for point in (point for point in published if point["data"] == data):
            text += f"| [{point['variant']}]({point['source']}) | {100 * point['test_acc']:.2f} % | "
            text += f"{point['weights']:,} | {point['epoch']} |\n"
        tables.append(text)
    return "\n".join(tables)
