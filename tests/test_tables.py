import csv
from pathlib import Path

import pytest
import yaml

from cnn_lightning.cli.grid import grid_cells
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.tables import COLUMNS, Results, as_csv, as_markdown, read_published, summarize
from tests.conftest import REPOSITORY

KEYS = [(name, data, seed, "0") for name in ("a", "b") for data in ("M", "F") for seed in ("0", "1", "2")]


def row(key, acc, loss, seconds=60.0, test="best"):
    values = (
        {"test": test}
        | dict(zip(COLUMNS, key, strict=False))
        | {"test_acc": acc, "test_loss": loss, "seconds": seconds}
    )
    values |= {"weights": 9406, "val_acc": 0.9, "epoch": 2, "images_per_second": 1000, "threads": 1}
    values |= {"options": "--x", "jobs": 1, "processor": "p", "torch": "2", "finished": "now"}
    return {name: str(values[name]) for name in COLUMNS}


def test_table_has_mean_and_sample_standard_deviation():
    Path("mine").mkdir()
    results = Results(Path("mine/runs.csv"), KEYS)
    accuracies = (0.99, 0.98, 0.97, 0.5, 0.5, 0.5, 0.9)
    rows = [row(key, acc, 1 - acc) for key, acc in zip(KEYS, accuracies, strict=False)]
    results.save(rows)
    lines = Path("mine/table.md").read_text().splitlines()
    assert "| a | 98.00 ± 1.00 % | 0.0200 | 9,406 | 1.0 min | 1,000 | 3 |" in lines
    assert "| a | 50.00 ± 0.00 % | 0.5000 | 9,406 | 1.0 min | 1,000 | 3 |" in lines
    assert "| b | 90.00 % | 0.1000 | 9,406 | 1.0 min | 1,000 | 1 |" in lines
    assert [line for line in lines if line.startswith(("| M", "| F"))] == [
        f"| {data}, variant | test accuracy | test loss | parameters | training | images/s | seeds |" for data in "MF"
    ]
    smaller = Results(Path("mine/runs.csv"), KEYS[:2])  # the rows of others stay
    smaller.save([row(KEYS[0], 0.5, 0.5), *rows[1:]])
    with Path("mine/runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    assert "| a | 74.00 ± 33.94 % |" in Path("mine/table.md").read_text()


def test_no_table_mixes_best_and_last_epochs():
    Path("mine").mkdir()
    results = Results(Path("mine/runs.csv"), KEYS)
    accuracies = zip(KEYS, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), ("best", "last") * 3, strict=False)
    results.save([row(key, acc, 0.1, test=test) for key, acc, test in accuracies])
    best, last, *_ = Path("mine/table.md").read_text().split("\n\n")
    assert best.startswith("| M, variant |")
    assert "| a | 80.00 ± 14.14 % |" in best
    assert last.startswith("| M, last epoch, variant |")
    assert "| a | 80.00 % |" in last
    assert "F, last epoch" in Path("mine/table.csv").read_text()
    assert Results(Path("mine/runs.csv"), KEYS).all == results.all


def test_results_of_others_stand_next_to_the_table():
    Path("mine").mkdir()
    Path("mine/published.csv").write_text(
        "data,variant,weights,test_acc,epoch,source\nM,theirs,697,0.9903,best on the test set,https://example.org/x\n"
    )
    Results(Path("mine/runs.csv"), KEYS).save([row(KEYS[0], 0.9, 0.1, test="last")])
    table = Path("mine/table.md").read_text()
    assert "| M, published | test accuracy | parameters | epoch |" in table
    assert "| [theirs](https://example.org/x) | 99.03 % | 697 | best on the test set |" in table
    assert "theirs" not in Path("mine/table.csv").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data,variant,weights\nM,a,1\n",
        "data,variant,weights,test_acc,epoch,source\nM,a,many,0.9,x,y\n",
        "data,variant,weights,test_acc,epoch,source\nM,a,697,99.03,x,y\n",
        "data,variant,weights,test_acc,epoch,source\nM,a,697,0.99\n",
    ],
)
def test_published_results_of_another_form_are_a_usage_error(text):
    Path("mine").mkdir()
    Path("mine/published.csv").write_text(text)
    with pytest.raises(UsageError, match=r"^mine/published.csv: expected the columns data,variant,weights,test_acc,"):
        Results(Path("mine/runs.csv"), KEYS)


def test_rows_of_earlier_versions_are_of_the_best_epoch():
    folder = Path("mine")
    folder.mkdir()
    results = Results(folder / "runs.csv", KEYS)
    results.save([row(KEYS[0], 0.9, 0.1)])
    rows = [{name: value for name, value in values.items() if name != "test"} for values in results.all.values()]
    (folder / "old.csv").write_bytes(as_csv(rows))
    old = Results(folder / "old.csv", KEYS)
    assert old.all == results.all
    assert [*old.all[KEYS[0]]] == [*COLUMNS]


def test_time_is_estimated_from_other_seeds_of_a_run_or_from_all_rows():
    Path("mine").mkdir()
    results = Results(Path("mine/runs.csv"), KEYS)
    assert results.seconds(KEYS[0]) == 0
    results.save([row(KEYS[0], 0.9, 0.1, seconds=30.0), row(KEYS[3], 0.9, 0.1, seconds=90.0)])
    assert [results.seconds(KEYS[index]) for index in (1, 4, 6)] == [30, 90, 60]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (REPOSITORY / "docs/results").glob("*/grid.yaml")))
def test_published_tables_follow_from_their_rows(name):
    """Nothing is left to train in docs/results: a recipe whose settings change is another run."""
    folder = REPOSITORY / "docs/results" / name
    path = folder / "grid.yaml"
    cells = grid_cells(yaml.safe_load(path.read_text()), path)
    rows = Results(folder / "runs.csv", [cell.key for cell in cells]).rows
    assert len(rows) == len(cells)
    summaries = summarize(rows.values())
    assert as_markdown(summaries, read_published(folder / "published.csv")) == (folder / "table.md").read_text()
    assert as_csv(summaries.values()) == (folder / "table.csv").read_bytes()


def test_run_that_took_no_time_has_a_place_in_the_plot():
    """Rounded to a tenth of a second; a log axis warns of 0, and warnings are errors here."""
    Path("mine").mkdir()
    Results(Path("mine/runs.csv"), KEYS).save([row(KEYS[0], 0.9, 0.1, seconds=0.0)])
    assert Path("mine/accuracy.png").stat().st_size > 1000
