import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cnn_lightning.cli import compare as compare_module
from cnn_lightning.cli.grid import grid_cells, read_grid
from cnn_lightning.cli.sweep import sweep
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.tables import COLUMNS
from cnn_lightning.studies.storage import StudySource
from tests.conftest import REPOSITORY, scalars

PACE = ("seconds", "images_per_second")  # of training
OPTIONS = "--trainer.accelerator cpu --trainer.enable_model_summary false --dashboard false --trainer.max_epochs 2"


@pytest.fixture(scope="module")
def script():
    return compare_module


def rows(path="mine/runs.csv"):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestRuns:
    @pytest.mark.slow
    def test_every_result_is_that_of_its_run_and_nothing_is_run_twice(self, script, capsys):
        asked = ("mine", "--nets", "MLP", "NoNet", "--data", "Digits", "--seeds", "3", "--options", OPTIONS)
        with pytest.raises(SystemExit) as end:
            script.compare([*asked, "--jobs", "2"])
        assert end.value.code == 1
        output, errors = capsys.readouterr()
        assert "MLP on Digits, seed 3: " in output
        assert "NoNet on Digits, seed 3: error: --model.net NoNet: there is no such class" in errors
        (row,) = rows()
        (run,) = Path("logs/compare").glob("MLP-*/*/version_0")
        curves = {tag: points[-1][1] for tag, points in scalars(run).items()}
        assert float(row["test_acc"]) == pytest.approx(curves["test/acc"], abs=1e-6)
        assert float(row["val_acc"]) == pytest.approx(curves["epoch/val_acc"], abs=1e-6)
        assert float(row["test_loss"]) == pytest.approx(curves["test/loss"], abs=1e-6)
        assert (row["epoch"], row["test"]) == ("2", "best")
        seconds, speeds = ([value for _, value in scalars(run)[f"time/{name}"]] for name in PACE)
        assert float(row["seconds"]) == pytest.approx(sum(seconds), abs=0.06)
        images = 2 * 1293  # of Digits' 1,797, without a fifth for tests and a tenth of the rest for validation
        assert sum(a * b for a, b in zip(seconds, speeds, strict=True)) == pytest.approx(images, rel=1e-4)
        assert float(row["images_per_second"]) == pytest.approx(images / sum(seconds), rel=0.01)
        assert (row["variant"], row["data"], row["seed"], row["weights"]) == ("MLP", "Digits", "3", "101770")
        assert "seed_everything: 3" in (run / "config.yaml").read_text()
        assert f"{100 * curves['test/acc']:.2f} %" in Path("mine/table.md").read_text()
        assert (Path("mine/accuracy.png")).stat().st_size > 1000

        variants = {"variants": {"MLP": "--model.net MLP"}}  # the grid is now without the one that failed
        grid = yaml.safe_load(Path("mine/grid.yaml").read_text()) | variants
        Path("mine/grid.yaml").write_text(yaml.safe_dump(grid))
        # Older versions of filelock touch a lock that they take.
        files = [path for path in Path("logs").rglob("*") if path.is_file() and path.name != ".lock"]
        before = Path("mine/table.csv").read_bytes(), {path: path.stat().st_mtime_ns for path in files}
        script.compare(["mine"])
        assert "1 runs, 1 of them done" in capsys.readouterr().out
        # Older versions of filelock touch a lock that they take.
        files = [path for path in Path("logs").rglob("*") if path.is_file() and path.name != ".lock"]
        assert (Path("mine/table.csv").read_bytes(), {path: path.stat().st_mtime_ns for path in files}) == before

    def test_row_that_arrives_while_its_cell_waits_is_not_measured_again(self, script, capsys):
        """As by git, where the journal file of the folder is not."""
        asked = ("mine", "--nets", "MLP", "--data", "Digits", "--options", OPTIONS)
        script.compare([*asked, "--seeds", "0"])
        text = Path("mine/runs.csv").read_text()
        Path("other").mkdir()
        grid = yaml.safe_load(Path("mine/grid.yaml").read_text())
        Path("other/grid.yaml").write_text(yaml.safe_dump(grid | {"seeds": [0, 1]}))
        cells = read_grid(Path("other/grid.yaml"), {})
        source = StudySource("other/journal.log", "other", "maximize")
        script.Grid(source, Path("logs/other"), Path("other"), cells, 1).enqueue_missing(source.open())
        Path("other/runs.csv").write_text(text)
        capsys.readouterr()
        script.compare(["other", "--logs", "logs/other"])
        assert "2 runs, 1 of them done" in capsys.readouterr().out
        assert Path("other/runs.csv").read_text().startswith(text)
        assert len(rows("other/runs.csv")) == 2
        assert len([*Path("logs/other").glob("MLP-*")]) == 1

    @pytest.mark.parametrize("value", ["nan", "", "high"])
    def test_row_that_was_edited_counts_as_done(self, script, capsys, value):
        Path("mine").mkdir()
        grid = {"variants": {"MLP": "--model.net MLP"}, "data": ["Digits"], "seeds": [0]}
        Path("mine/grid.yaml").write_text(yaml.safe_dump(grid))
        (cell,) = read_grid(Path("mine/grid.yaml"), {})
        row = dict.fromkeys(COLUMNS, "1") | dict(zip(COLUMNS, cell.key, strict=False))
        with Path("mine/runs.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerow(row | {"test": "best", "val_acc": value})
        script.compare(["mine"])
        assert "1 runs, 1 of them done" in capsys.readouterr().out

    def test_last_epoch_is_tested_where_the_options_say_so(self, script):
        options = f"{OPTIONS} --model.optimizer.lr 0.05 --model.lr_schedule null --trainer.max_epochs 8 --test last"
        script.compare(["mine", "--nets", "MLP", "--data", "Digits", "--seeds", "0", "--options", options])
        (row,) = rows()
        (run,) = Path("logs/compare").glob("MLP-*/*/version_0")
        curves = scalars(run)
        assert (row["epoch"], row["test"]) == ("8", "last")
        assert float(row["val_acc"]) == pytest.approx(curves["val/acc"][-1][1], abs=1e-6)
        assert min(loss for _, loss in curves["val/loss"]) < curves["val/loss"][-1][1]
        assert Path("mine/table.md").read_text().startswith("| Digits, last epoch, variant |")

    def test_last_epoch_without_a_validation_has_the_validation_before(self, script):
        options = f"{OPTIONS} --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2 --test last"
        script.compare(["mine", "--nets", "MLP", "--data", "Digits", "--seeds", "0", "--options", options])
        (row,) = rows()
        (run,) = Path("logs/compare").glob("MLP-*/*/version_0")
        ((_, accuracy),) = scalars(run)["val/acc"]
        assert row["epoch"] == "3"
        assert float(row["val_acc"]) == pytest.approx(accuracy, abs=1e-6)

    @pytest.mark.slow
    def test_resumes_where_it_was_stopped(self, script, capsys):
        """With the result of a comparison that nothing stopped."""
        settings = f"{OPTIONS} --trainer.max_epochs 16"
        options = ["--nets", "MLP", "--data", "Digits", "--seeds", "0", "--options", settings]

        def start(*args):
            command = [sys.executable, REPOSITORY / "scripts/compare.py", *args]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        process = start("mine", *options)
        deadline = time.monotonic() + 120
        while not list(Path("logs").glob("**/last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert not Path("mine/runs.csv").exists()
        other = start("other", *options, "--logs", "other_logs")
        script.compare(["mine"])
        _, errors = other.communicate(timeout=120)
        assert other.returncode == 0, errors
        (output,) = Path("logs").glob("**/output.txt")
        assert "Resuming from" in output.read_text()
        (stopped,), (whole,) = rows(), rows("other/runs.csv")
        same = stopped.keys() - {*PACE, "finished"}
        assert {name: stopped[name] for name in same} == {name: whole[name] for name in same}


class TestGrid:
    def cells(self, script, **grid):
        return grid_cells(grid, Path("mine/grid.yaml"))

    def folder(self, script, cell):
        source = StudySource("journal.log", "mine", "maximize")
        return script.Grid(source, Path("logs"), Path(), [cell], 1).folder(cell.name)

    def test_has_every_variant_on_every_dataset_with_every_seed(self, script):
        variants = {"a": "--x 1", "b": {"M": "--y m", "F": "--y f"}}
        cells = self.cells(script, variants=variants, data=["M", "F"], seeds=[4, 7])
        assert [(cell.seed, cell.data, cell.variant, cell.asked) for cell in cells] == [
            (seed, data, name, options)
            for seed in (4, 7)
            for data in ("M", "F")
            for name, options in (("a", "--x 1"), ("b", f"--y {data.lower()}"))
        ]
        assert len({self.folder(script, cell) for cell in cells}) == 8

    def test_variant_overrides_options_but_not_its_recipe(self, script):
        variants = {"a": "--data D --x 1", "b": "--config cnn_lightning/recipes/fast_mnist.yaml --x 2"}
        cells = self.cells(script, variants=variants, options="--x 0", seeds=[0])
        assert [cell.asked for cell in cells] == ["--x 0 --data D --x 1", "--config fast_mnist.yaml --x 0 --x 2"]
        words = cells[1].words()
        assert words[0] == f"--config={REPOSITORY}/cnn_lightning/recipes/fast_mnist.yaml"  # found from anywhere
        assert words[1:5] == ["--x", "0", "--x", "2"]

    def test_other_options_or_another_recipe_are_another_run(self, script):
        recipe = Path("recipe.yaml")
        recipe.write_text("# Measured: 1 %\ntrainer:\n  max_epochs: 3\n")

        def made(options):
            (cell,) = self.cells(script, variants={"a": options}, seeds=[0])
            return cell.key, self.folder(script, cell)

        same = [made(options) for options in ("--config recipe.yaml", "--config  recipe.yaml")]
        assert same[0] == same[1]
        recipe.write_text("# Measured: 2 %\ntrainer:\n  max_epochs: 3\n")
        assert made("--config recipe.yaml") == same[0]
        recipe.write_text("# Measured: 2 %\ntrainer:\n  max_epochs: 4\n")
        others = [made(options) for options in ("--config recipe.yaml", "--data=D --x 1", "--data=D --x 2")]
        for part in (0, 1):
            assert len({made[part] for made in (same[0], *others)}) == 4

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            (None, "nothing to compare: name --nets or --recipes, or write mine/grid.yaml"),
            ("[1, 2", "mine/grid.yaml is not valid YAML"),
            ("variants: [a]", "mine/grid.yaml: expected variants, with names and options"),
            ("variants: {a: --x}\nseed: [1]", "mine/grid.yaml: expected variants"),
            (
                "variants: {a: {MNIST: --x}}\ndata: [Digits]",
                "grid.yaml: a for Digits: expected options as text (they are None)",
            ),
            ("variants: {a: '--x \"b'}", "a: expected options as text (No closing quotation)"),
            ("variants: {a: --x}\noptions: 3", "all: expected options as text"),
            ("variants: {a: --x}", "a: expected data, like [MNIST], or --data"),
            ("variants: {a: --config none.yaml}", "a: there is no recipe none.yaml"),
            ("variants: {a: --config=some.yaml}\ndata: [M]", "a for M: expected one --config, at the beginning"),
            (
                "variants: {a: --x}\noptions: -c some.yaml\ndata: [M]",
                "a for M: expected one --config, at the beginning",
            ),
            ("variants: {a: --x}\nseeds: [one]", "expected different numbers as seeds"),
            ("variants: {a: --x}\nseeds: 3", "expected different numbers as seeds"),
            ("variants: {a: --x}\nseeds: [0, 0]", "expected different numbers as seeds"),
            ("variants: {a: --x}\ndata: MNIST", "expected different names as data"),
            ("variants: {}", "expected variants, with names and options"),
            ("variants: {a: --x, a: --y}\ndata: [M]", "mine/grid.yaml: a is given twice, in line 1 again"),
        ],
    )
    def test_mistakes_are_said_in_one_line(self, script, error_of, grid, message):
        Path("mine").mkdir()
        if grid is not None:
            Path("mine/grid.yaml").write_text(grid)
        assert message in error_of(script.compare, "mine")

    def test_a_grid_that_is_there_stays(self, script, error_of):
        Path("mine").mkdir()
        Path("mine/grid.yaml").write_text("# mine\nvariants: {a: --x}\ndata: [M]\nseeds: [0]\n")
        message = error_of(script.compare, "mine", "--seeds", "1")
        assert "mine/grid.yaml has other seeds: change it there, or name another folder" in message
        assert Path("mine/grid.yaml").read_text().startswith("# mine\n")
        new = ("new", "--nets", "MLP", "--data", "MNIST")
        assert "expected different numbers" in error_of(script.compare, *new, "--seeds", "1", "1")
        assert not Path("new").exists()
        assert "nothing to compare" in error_of(script.compare, "typo", "--status")
        assert not Path("typo").exists()

    def test_the_default_seeds_may_be_named(self):
        Path("grid.yaml").write_text("variants: {a: --x}\ndata: [M]\n")
        assert len(read_grid(Path("grid.yaml"), {"seeds": [0, 1, 2]})) == 3
        with pytest.raises(UsageError, match="has other seeds"):
            read_grid(Path("grid.yaml"), {"seeds": [0, 1]})

    def test_one_study_has_one_folder_of_runs_and_one_command(self, script, error_of):
        """Where two commands look for locks in different folders, each takes the other's trials for dead."""
        asked = ("mine", "--nets", "MLP", "--data", "Digits", "--status")
        script.compare([*asked, "--logs", "logs/a"])
        script.compare([*asked, "--logs", str(Path("logs/a").absolute())])
        message = error_of(script.compare, *asked, "--logs", "logs/b")
        assert "the study mine began with --logs logs/a: give the same, or name another --study" in message
        script.compare([*asked, "--logs", "logs/b", "--study", "other"])
        search = ("--search", "model.optimizer.lr: log 1e-4 1e-1", "--metric", "val/acc")
        message = error_of(sweep, "mine", *search, "--status")
        assert "the study mine is of compare.py: name another --study" in message

    def test_other_mistakes(self, script, error_of):
        assert "argument --jobs: 0, expected at least 1" in error_of(script.compare, "mine", "--jobs", "0")
        assert "--help" in error_of(script.compare, "mine", "--net", "MLP")
        Path("file").touch()
        assert "cannot write to file" in error_of(script.compare, "file", "--nets", "MLP", "--data", "MNIST")
        Path("mine").mkdir()
        asked = ("--nets", "MLP", "--data", "MNIST")
        names = ",".join(COLUMNS)
        for damaged in (b"a,b\n1,2\n", b"", b"\xff\n", f"{names}\nMLP,MNIST\n".encode()):
            Path("mine/runs.csv").write_bytes(damaged)
            assert "mine/runs.csv has other columns" in error_of(script.compare, "mine", *asked)
        assert "is not a URL of a database" in error_of(script.compare, "other", *asked, "--storage", "x://")
        unreachable = "postgresql://nobody@127.0.0.1:1/none"
        message = error_of(script.compare, "other", *asked, "--storage", unreachable)
        assert "the database cannot be reached" in message
        assert "change --storage" in message

    def test_a_recipe_that_changes_meanwhile_is_not_trained(self, script):
        recipe = Path("recipe.yaml")
        recipe.write_text("model:\n  net: MLP\n")
        (cell,) = self.cells(script, variants={"a": "--config recipe.yaml"}, seeds=[0])
        recipe.write_text("model:\n  net: LeNetCNN\n")
        source = StudySource("journal.log", "mine", "maximize")
        grid = script.Grid(source, Path("logs"), Path(), [cell], 1)
        study = source.open()
        grid.enqueue_missing(study)
        with pytest.raises(UsageError, match=r"recipe.yaml changed during the comparison"):
            grid.words(study.ask())
        assert not Path("logs").exists()


def test_a_run_that_left_no_result_says_what_is_missing(script, monkeypatch):
    monkeypatch.setattr(script, "newest_tested", lambda folders: Path("run/version_0/checkpoints/best.ckpt"))
    monkeypatch.setattr(script, "read_run_checkpoint", lambda path: {})
    with pytest.raises(UsageError, match=r"run has no test/acc, time/seconds, val/acc: keep tests, checkpoints and"):
        script.read_run(Path("run"))
