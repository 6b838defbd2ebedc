import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch.utils.tensorboard import SummaryWriter

from cnn_lightning.reporting import palette, plots
from cnn_lightning.reporting.cost_plot import accuracy_by_cost
from cnn_lightning.reporting.evaluation import Evaluation

STEPS = {
    "train/loss": [(step, 2 / step) for step in range(1, 90)],
    "train/acc": [(step, 1 - 1 / step) for step in range(1, 90)],
    "val/loss": [(45, 0.4), (89, 0.3)],
    "val/acc": [(45, 0.8), (89, 0.9)],
}
EPOCHS = {
    "epoch/train_loss": [(1, 0.5), (2, 0.3)],
    "epoch/train_acc": [(1, 0.7), (2, 0.85)],
    "epoch/val_loss": [(1, 0.4), (2, 0.3)],
    "epoch/val_acc": [(1, 0.8), (2, 0.9)],
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when they were saved."""
    figures, save = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def lines(axes):
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


def test_accuracy_by_cost(drawn, tmp_path):
    results = {
        ("M", "$a_1"): {"weights": 1000, "seconds": 60.0, "test_acc": 0.99, "test_acc_sd": 0.01},
        ("M", "b"): {"weights": 9000, "seconds": 90.0, "test_acc": 0.995, "test_acc_sd": None},
        ("F", "b"): {"weights": 9000, "seconds": 80.0, "test_acc": 0.9, "test_acc_sd": 0.02},
    }
    accuracy_by_cost(results, tmp_path / "plot.png")
    small_png(tmp_path / "plot.png")
    assert len(drawn[0].axes) == 4
    points = [[tuple(container.lines[0].get_xydata()[0]) for container in axes.containers] for axes in drawn[0].axes]
    assert points == [[(1000, 0.99), (9000, 0.995)], [(60, 0.99), (90, 0.995)], [(9000, 0.9)], [(80, 0.9)]]
    assert [axes.get_xlabel() for axes in drawn[0].axes[:2]] == ["parameters", "training in s"]


def test_published_results_stand_next_to_those_of_their_dataset(drawn, tmp_path):
    row = {"weights": 1000, "seconds": 60.0, "test_acc": 0.99, "test_acc_sd": 0.01}
    published = [{"data": "M", "variant": "theirs", "weights": 20, "test_acc": 0.97}]
    accuracy_by_cost({("M, last epoch", "a"): row, ("F", "a"): row}, tmp_path / "plot.png", published)
    crosses = [[tuple(x.get_xydata()[0]) for x in axes.lines if x.get_marker() == "x"] for axes in drawn[0].axes]
    assert crosses == [[(20, 0.97)], [], [], []]
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["theirs"]
    assert drawn[0].axes[0].get_xlim()[0] < 20
    accuracy_by_cost({("last epoch", "a"): row}, tmp_path / "plot.png", [published[0] | {"data": ""}])
    assert [text.get_text() for text in drawn[1].axes[0].texts] == [
        "theirs"
    ]  # of a recipe's dataset, which has no name
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "published"]


def test_variants_without_ideas_have_a_colour_each(drawn, tmp_path):
    row = {"weights": 1000, "seconds": 60.0, "test_acc": 0.99, "test_acc_sd": 0.01}
    accuracy_by_cost({("M", name): row for name in ("$a_1$", "b", "c")}, tmp_path / "plot.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["$a_1$", "b", "c"]
    assert len({line.get_color() for line in legend.legend_handles}) == 3


def test_marker_is_the_network_and_colour_is_the_idea(drawn, tmp_path):
    row = {"weights": 1000, "seconds": 60.0, "test_acc": 0.99, "test_acc_sd": None}
    ideas = ["", " + dropout", " + batch norm", " + one-cycle", " + all"]
    variants = [f"{network}{idea}" for network in ("LeNetCNN", "MLP") for idea in ideas]
    accuracy_by_cost({("M", variant): row for variant in variants}, tmp_path / "plot.png")
    looks = {}
    for variant, container in zip(variants, drawn[0].axes[1].containers, strict=True):
        line = container.lines[0]
        looks[variant] = line.get_marker(), (line.get_color(), line.get_markerfacecolor()), line.get_fillstyle()
    for part, first, second in ((0, "LeNetCNN", "MLP"), (1, "MLP", "MLP + dropout")):
        assert looks[first][part] != looks[second][part]
    assert {marker for variant, (marker, *_) in looks.items() if variant.startswith("MLP")} == {looks["MLP"][0]}
    for idea in ideas:
        assert looks[f"LeNetCNN{idea}"][1:] == looks[f"MLP{idea}"][1:]
    assert len({colour for _, colour, _ in looks.values()}) == len({look[1:] for look in looks.values()}) == len(ideas)
    networks, meanings = drawn[0].legends
    assert networks.get_title().get_text() == "marker: network"
    assert [text.get_text() for text in networks.get_texts()] == ["LeNetCNN", "MLP"]
    assert "colour: idea" in meanings.get_title().get_text()
    names = ["network alone", *(idea.strip() for idea in ideas[1:])]
    assert [text.get_text() for text in meanings.get_texts()] == names
    # Ideas with the same number of parameters do not cover each other.
    places = [c.lines[0].get_transform().transform((1000, 0.99))[0] for c in drawn[0].axes[0].containers]
    assert len(set(places)) == len(ideas)


def small_png(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
        assert path.stat().st_size < 60_000
        return image.size


def has_colour(path, colour):
    """Whether at least a few pixels have a colour, up to the rounding of the palette."""
    with Image.open(path) as image:
        distance = np.abs(np.asarray(image.convert("RGB")).astype(int) - ImageColor.getrgb(colour))
    return (distance.max(axis=-1) < 12).sum() > 10


def test_curves_against_steps_and_epochs(tmp_path, drawn):
    path = tmp_path / "curves.png"
    plots.curves(STEPS | EPOCHS | {"lr-AdamW": [(1, 0.001)]}, path)
    assert small_png(path) == (640, 520)
    axes = drawn[0].axes
    assert [(a.get_xlabel(), a.get_ylabel()) for a in axes] == [
        ("optimizer step", "loss"),
        ("optimizer step", "accuracy"),
        ("epoch", "loss"),
        ("epoch", "accuracy"),
    ]
    assert lines(axes[1]) == {"training": STEPS["train/acc"], "validation": STEPS["val/acc"]}
    assert lines(axes[2]) == {"training": EPOCHS["epoch/train_loss"], "validation": EPOCHS["epoch/val_loss"]}


def test_older_runs_have_only_the_row_of_steps(tmp_path, drawn):
    plots.curves(STEPS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["optimizer step"] * 2


def test_nothing_to_draw_leaves_no_file(tmp_path):
    plots.curves({"hp_metric": [(0, -1.0)], "val/loss": []}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_a_run_of_one_epoch_is_a_point_that_can_be_seen(tmp_path, drawn):
    plots.curves({"epoch/val_loss": [(1, 0.4)]}, tmp_path / "point.png")
    assert has_colour(tmp_path / "point.png", palette.ORANGE)
    assert not has_colour(tmp_path / "point.png", palette.BLUE)
    axes = drawn[0].axes[0]
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]


def test_a_loss_that_is_not_a_number_is_a_gap(tmp_path):
    for number, losses in enumerate(([(1, 2.0), (2, float("nan")), (3, float("nan"))], [(1, float("nan"))])):
        plots.curves({"train/loss": losses}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").is_file()


def test_reliability(tmp_path, drawn):
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.75, 1.0], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    evaluation = Evaluation(labels, torch.stack([confidence, 1 - confidence], dim=1), ("a", "b"))
    plots.reliability(evaluation, tmp_path / "reliability.png")
    small_png(tmp_path / "reliability.png")
    above, below = drawn[0].axes
    dots = np.array(lines(above)["images of one bin"])
    assert dots == pytest.approx(np.array([(0.55, 0), (0.75, 1), (0.96, 0.8)]))
    assert [bar.get_height() for bar in below.patches] == evaluation.bins["images"].tolist()
    assert f"{100 * evaluation.calibration_error:.2f} %" in above.get_title()


def test_accuracy_by_shift(tmp_path, drawn):
    points = {"up to": [(0, 0.9), (1, 0.8)], "corner": [(0, 0.9), (1, 0.7)]}
    plots.accuracy_by_shift({"a $\\net$": points, "b": {"up to": [(0, 0.5)]}}, tmp_path / "shift.png")
    small_png(tmp_path / "shift.png")
    first, second, third = drawn[0].axes[0].lines
    assert [line.get_linestyle() for line in (first, second, third)] == ["-", "--", "-"]
    assert first.get_color() == second.get_color() != third.get_color()
    assert list(second.get_ydata()) == [0.9, 0.7]
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names[2:] == ["a $\\net$", "b"]


def test_reads_back_what_was_logged(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(2000):  # more than TensorBoard keeps by default
            writer.add_scalar("train/loss", step / 4, step)
        writer.add_scalar("epoch/val_acc", 0.5, 1)
    scalars = plots.read_scalars(tmp_path)
    assert scalars == {"train/loss": [(step, step / 4) for step in range(2000)], "epoch/val_acc": [(1, 0.5)]}


def test_former_names_of_tags(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for epoch in (1, 2, 3):
            writer.add_scalar("epoch/seconds", epoch, epoch)
        writer.add_scalar("time/seconds", 9.0, 3)  # by a version that resumed the run after the second epoch
        writer.add_scalar("epoch/images_per_second", 5.0, 1)
    scalars = plots.read_scalars(tmp_path)
    assert scalars == {"time/seconds": [(1, 1.0), (2, 2.0), (3, 9.0)], "time/images_per_second": [(1, 5.0)]}


def test_a_resumed_run_shows_no_point_twice(tmp_path, caplog):
    with SummaryWriter(str(tmp_path), filename_suffix=".0") as writer:
        for step in (10, 20, 30, 40):
            writer.add_scalar("train/loss", 1.0, step)
        for epoch in (1, 2, 3):
            writer.add_scalar("epoch/val_loss", 1.0, epoch)
    with SummaryWriter(str(tmp_path), purge_step=21, filename_suffix=".1") as writer:  # after epoch 1, and it stops
        writer.add_scalar("train/loss", 0.5, 30)
        writer.add_scalar("epoch/val_loss", 0.5, 2)
    scalars = plots.read_scalars(tmp_path)
    assert scalars == {"train/loss": [(10, 1.0), (20, 1.0), (30, 0.5)], "epoch/val_loss": [(1, 1.0), (2, 0.5)]}
    assert not caplog.records


@pytest.mark.parametrize("folder", [".", "missing"])
def test_a_folder_without_events_has_no_curves(tmp_path, folder):
    assert plots.read_scalars(tmp_path / folder) == {}


def test_pyplot_is_not_asked(tmp_path):
    import matplotlib.pyplot as plt

    plots.curves(STEPS, tmp_path / "curves.png")
    assert plt.get_fignums() == []
