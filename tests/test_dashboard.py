import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData
from tensorboard.util.tensor_util import make_ndarray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnn_lightning import MLP, MNIST, FashionMNIST, ImageClassifier
from cnn_lightning.callbacks.dashboard import CHARTS, _layers_table
from cnn_lightning.checkpointing.main_settings import MAIN
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.data.loader import TensorLoader
from cnn_lightning.nets import ConvNet
from cnn_lightning.reporting import images
from tests.conftest import scalars
from tests.test_nets import NETS

CLASSES = [str(digit) for digit in range(10)]
PICTURES = {f"images/{name}" for name in ("training_images", "confusion_matrix", "mistakes", "filters", "feature_maps")}


def events(run):
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    return accumulator.Reload()


def text(accumulator, tag):
    return make_ndarray(accumulator.Tensors(f"{tag}/text_summary")[-1].tensor_proto).item().decode()


def picture(accumulator, tag, index=-1):
    return np.asarray(Image.open(io.BytesIO(accumulator.Images(tag)[index].encoded_image_string)))


@pytest.fixture(autouse=True)
def dashboard(train):
    train.dashboard = "true"


@pytest.fixture
def run(train):
    return train("--trainer.max_epochs=3", "--model.optimizer.lr=0.001", "--data=MNIST", "--data.batch_size=40")


def test_a_run_fills_every_tab(run):
    read = events(run)
    tags = read.Tags()
    assert set(tags["images"]) == PICTURES
    for tag in PICTURES:
        assert [event.step for event in read.Images(tag)] == [1, 2, 3], tag
    assert {f"pr_curve/{name}" for name in CLASSES} <= set(tags["tensors"])
    assert {f"{name}/text_summary" for name in ("settings", "layers", "how_to_read")} <= set(tags["tensors"])
    assert tags["graph"]
    assert {"features", "head"} <= {node.name.split("/")[1].split("[")[-1].rstrip("]") for node in graph(read).node if "/" in node.name}  # fmt: skip  # noqa: E501


def graph(read):
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    return read.Graph() if isinstance(read.Graph(), GraphDef) else GraphDef.FromString(read.Graph())


def test_text_is_the_configuration_the_layers_and_how_to_read(run):
    read = events(run)
    table, _, config = text(read, "settings").removesuffix("```").partition("All settings:\n```yaml\n")
    assert yaml.safe_load(config) == yaml.safe_load((run / "config.yaml").read_text())
    assert table.split("\n")[2:8] == [
        "| network | TwoLayerCNN |", "| dataset | MNIST |", "| optimizer | AdamW |", "| lr | 0.001 |",
        "| batch_size | 40 |", "| epochs | 3 |",
    ]  # fmt: skip
    assert "| features.0 | Conv2d | (28 - 5 + 2·2) / 1 + 1 = 28 | 16 × 28 × 28 | 416 |" in text(read, "layers")
    assert "| features.4 | MaxPool2d | (14 - 2 + 2·0) / 2 + 1 = 7 | 32 × 7 × 7 | 0 |" in text(read, "layers")
    assert "optimizer steps made" in text(read, "how_to_read")
    tabs = [tag for tag in read.Tags()["tensors"] if tag.endswith("/text_summary")]
    assert min(tabs) == "how_to_read/text_summary"  # TensorBoard sorts them


def test_every_curve_is_explained(run):
    explained = text(events(run), "how_to_read")
    for tag in scalars(run):
        group = tag.split("/")[0]
        assert f"`{tag}`" in explained or f"`{group}/*`" in explained or tag.startswith("lr-"), tag


@pytest.mark.parametrize(("options", "changed"), [([], []), (["--data.shift=1", "--seed_everything=2"], ["data.shift", "seed_everything"])])  # fmt: skip  # noqa: E501
def test_hparams_are_the_settings_and_the_metrics_have_values(train, options, changed):
    run = train(
        "--trainer.max_epochs=3", "--model.optimizer.lr=0.001", "--data=MNIST", "--data.batch_size=40", *options
    )
    metadata = events(run).summary_metadata
    content = {
        tag: HParamsPluginData.FromString(data.plugin_data.content)
        for tag, data in metadata.items()
        if data.plugin_data.plugin_name == "hparams"
    }
    columns = content["_hparams_/experiment"].experiment.hparam_infos
    # TensorBoard sorts them like this.
    first, *_ = ordered = sorted(columns, key=lambda column: (not column.differs, column.name))
    assert first.name == "0_network"
    assert [column.display_name for column in ordered[:7]] == [*MAIN, ""]
    assert [column.name for column in ordered if column.differs][6:] == changed
    assert not {column.name for column in columns} & set(MAIN.values())
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
    assert [settings[column.name].string_value for column in ordered[:3]] == ["TwoLayerCNN", "MNIST", "AdamW"]
    assert [settings[column.name].number_value for column in ordered[3:6]] == [0.001, 40, 3]
    assert settings["model.net"].string_value == "TwoLayerCNN"
    assert settings["model.optimizer.lr"].number_value == 0.001
    assert settings["data.batch_size"].number_value == 40
    assert settings["trainer.max_epochs"].number_value == 3
    assert settings["data.drop_last"].string_value == "False"
    assert not any("root" in name for name in settings)
    values = scalars(run)
    metrics = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    assert "test/acc" in metrics
    assert all(np.isfinite(values[metric][-1][1]) for metric in metrics)


def test_curves_over_epochs_are_means_of_the_epoch(run):
    values = scalars(run)
    assert "epoch" not in values
    names = [f"epoch/{name}" for name in ("train_loss", "train_acc", "val_loss", "val_acc")]
    for tag in (*names, "time/images_per_second", "time/seconds"):
        assert [step for step, _ in values[tag]] == [1, 2, 3], tag
    assert min(values) == "epoch/train_acc"  # the first chart, because TensorBoard sorts them
    for name in ("loss", "acc"):
        assert [value for _, value in values[f"epoch/val_{name}"]] == [value for _, value in values[f"val/{name}"]]
        assert [step for step, _ in values[f"val/{name}"]] == [9, 18, 27]
        # An epoch of 9 steps of 40 images is drawn at its end alone, or at step 10 and its end.
        first = values[f"train/{name}"][0]
        assert first[0] == 9
        assert values[f"epoch/train_{name}"][0][1] == pytest.approx(first[1])
        (step, a), (end, b) = values[f"train/{name}"][1:3]
        assert (step, end) == (10, 18)
        assert values[f"epoch/train_{name}"][1][1] == pytest.approx((a + 8 * b) / 9, rel=1e-5)
    assert all(value > 0 for _, value in values["train/images_per_second"])


def test_training_images_are_those_of_the_first_batch(run, tiny_root):
    data = MNIST(tiny_root, batch_size=40)
    data.setup("fit")
    torch.manual_seed(0)
    loader = data.train_dataloader()
    shown = picture(events(run), "images/training_images", 1)
    loader.sampler.set_epoch(1)
    image = next(iter(loader))[0][0, 0]
    expected = (image - image.min()) / (image.max() - image.min()) * 255
    assert np.abs(shown[2:86:3, 2:86:3, 0] - expected.numpy()).max() <= 1.5


def test_augmentation_is_shown_next_to_the_originals(train, tiny_root):
    run = train("--data=FashionMNIST", "--data.flip=true", "--data.rotate=20", "--data.erase=1", "--data.batch_size=40")
    (event,) = events(run).Images("images/augmentation")
    assert event.step == 1
    shown = picture(events(run), "images/augmentation")
    data = FashionMNIST(tiny_root)
    data.setup("fit")
    heights = shown.shape[0] // 4
    for row in range(4):
        top = row * heights + 2
        tiles = [shown[top : top + 84 : 3, left : left + 84 : 3, 0] for left in range(2, 8 * 88, 88)]
        assert np.array_equal(tiles[0], data.part("train")[0][row, 0])
        assert len({tile.tobytes() for tile in tiles}) == 8  # each in its own way


def test_without_augmentation_there_is_no_picture_of_it(run):
    assert "images/augmentation" not in events(run).Tags()["images"]


def test_precision_recall_curves_are_those_of_the_validation_images(run, tiny_root):
    read = events(run)
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/last.ckpt", weights_only=True).eval()
    data = MNIST(tiny_root)
    data.setup("fit")
    images, labels = data.part("val")
    with torch.no_grad():
        probabilities = model.predict_step(data.normalize(images))
    for index in (0, 7):
        event = read.Tensors(f"pr_curve/{index}")[-1]
        true_positives, false_positives = make_ndarray(event.tensor_proto)[:2]
        thresholds = PrCurvePluginData.FromString(read.summary_metadata[f"pr_curve/{index}"].plugin_data.content)
        assert thresholds.num_thresholds == 127
        half = 63  # of 127 thresholds
        taken = probabilities[:, index] >= half / 126
        assert abs(true_positives[half] - (taken & (labels == index)).sum().item()) <= 1
        assert abs(false_positives[half] - (taken & (labels != index)).sum().item()) <= 1
        assert true_positives[0] == (labels == index).sum()


@pytest.mark.parametrize("net", ["DropoutCNN", "FastCNN"])
def test_to_look_changes_nothing(train, net):
    """Dropout draws random numbers, batch normalisation counts what it sees: neither may see the dashboard."""
    settings = (f"--model.net={net}", "--trainer.max_epochs=2", "--data=MNIST", "--data.shift=2")
    runs = [train(*settings, f"--dashboard={on}") for on in ("true", "false")]
    watched, alone = (torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    read = events(runs[1])
    assert not read.Tags()["images"]
    assert not read.Tags()["graph"]
    assert not read.Tags()["tensors"]
    assert set(scalars(runs[0])) == set(scalars(runs[1]))


def test_a_resumed_run_has_one_point_for_every_epoch(train):
    settings = ("--data=MNIST", "--model.lr_schedule=null")
    train(*settings, "--trainer.max_epochs=2")
    run = train(*settings, "--trainer.max_epochs=3", "--ckpt_path=last")
    values = scalars(run)
    assert [step for step, _ in values["epoch/val_loss"]] == [1, 2, 3]
    assert [step for step, _ in values["val/loss"]] == [6, 12, 18]
    steps = [step for step, _ in values["train/loss"]]
    assert steps == sorted(set(steps))
    assert [event.step for event in events(run).Images("images/confusion_matrix")] == [1, 2, 3]


def test_charts_are_of_curves_that_are_drawn(run):
    tags = [tag for charts in CHARTS.values() for _, tags in charts.values() for tag in tags]
    assert len(tags) == 10
    assert set(tags) <= set(scalars(run))


def test_test_results_are_a_line(run):
    """TensorBoard leaves the lowest and the highest of single points out of a chart."""
    points = scalars(run)["test/acc"]
    assert [step for step, _ in points] == [0, 27]
    assert points[0][1] == points[1][1]


def test_of_the_points_of_ten_runs_none_is_an_outlier():
    values = np.sort(np.repeat(np.linspace(0.8, 0.99, 10), 2))
    low, high = np.quantile(values, (0.05, 0.95))  # as d3 computes them
    assert ((low <= values) & (values <= high)).all()


class SameCNN(ConvNet):
    """What a size formula does not know, and a head that is made before the features."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.head = nn.Linear(4 * 3 * 3, num_classes)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 4, kernel_size=3, padding="same"),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, kernel_size=3, dilation=2),
            nn.AdaptiveMaxPool2d((3, 3)),
        )


class FlatNet(ConvNet):
    """Neither a convolution nor a linear layer sees the image first."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(nn.Flatten(2), nn.Conv1d(in_channels, 2, kernel_size=7, stride=7))
        self.head = nn.Linear(2 * image_size**2 // 7, num_classes)


@pytest.mark.parametrize("net", ["SameCNN", "FlatNet"])
def test_networks_of_ones_own(train, net):
    run = train(f"--model.net=tests.test_dashboard.{net}", "--trainer.max_epochs=2")
    missing = {"filters", "feature_maps"} if net == "FlatNet" else set()
    assert set(events(run).Tags()["images"]) == PICTURES - {f"images/{name}" for name in missing}
    lines = [line for line in train.errors.splitlines() if "TensorBoard shows" in line]
    if missing:
        (line,) = lines  # once, and not after each epoch
        assert "no filters, because the first layer with weights is neither" in line
        assert "no feature_maps, because no layer has an output of 4 dimensions" in line
    else:
        assert not lines
    evaluate(["--trainer.accelerator=cpu"])
    assert {path.stem for path in (run / "report_0").glob("*.png")} & {"filters", "feature_maps"} == {
        "filters", "feature_maps",
    } - missing  # fmt: skip
    rows = [row.split(" | ") for row in text(events(run), "layers").splitlines()[2:]]
    formulas = {row[0].removeprefix("| "): row[2] for row in rows}
    assert formulas["features.1"] == ("(28 - 2 + 2·0) / 2 + 1 = 14" if net == "SameCNN" else "")
    assert not any(formula for name, formula in formulas.items() if name != "features.1")


def test_averaged_weights_are_what_is_drawn(train):
    run = train("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9")
    net = ImageClassifier.load_from_checkpoint(run / "checkpoints/last.ckpt").net
    expected = np.asarray(images.filters(net.eval(), torch.zeros(1, 28, 28)))
    np.testing.assert_array_equal(picture(events(run), "images/filters"), expected)


class UntraceableNet(MLP):
    def forward(self, images):
        if torch.jit.is_tracing():
            raise RuntimeError("cannot\nbe traced")
        return super().forward(images)


def test_a_network_that_cannot_be_traced(train):
    run = train("--model.net=tests.test_dashboard.UntraceableNet")
    assert not events(run).Tags()["graph"]
    assert "Error occurs" not in train.output
    warning = "warning: no graph in TensorBoard, because the network cannot be traced: cannot"
    assert train.errors.splitlines().count(warning) == 1
    assert "be traced\n" not in train.errors


def test_a_run_that_diverges(train):
    with pytest.raises(SystemExit):
        train("--model.optimizer=SGD", "--model.optimizer.lr=1e30", "--model.lr_schedule=null")
    assert set(events(Path("logs/TwoLayerCNN-MNIST/version_0")).Tags()["images"]) == PICTURES


@pytest.mark.parametrize("net", NETS)
def test_every_formula_gives_the_side_of_the_output(net):
    for row in _layers_table(ImageClassifier(net())).splitlines()[2:]:
        _, _, formula, output, _ = row.split(" | ")
        assert not formula or formula.split(" = ")[1] == output.split(" × ")[1] == output.split(" × ")[2]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions(train, precision):
    run = train(f"--trainer.precision={precision}")
    assert set(events(run).Tags()["images"]) == PICTURES
    assert events(run).Tags()["graph"]


def test_validation_within_an_epoch_and_an_end_within_one(train):
    settings = ("--data=MNIST", "--trainer.max_epochs=-1", "--trainer.max_steps=9", "--model.lr_schedule=null")
    run = train(*settings, "--trainer.val_check_interval=0.5", "--trainer.log_every_n_steps=4")
    values = scalars(run)
    assert [step for step, _ in values["val/loss"]] == [3, 6, 9]
    # The second epoch has not ended: a resumed run draws its points.
    assert [step for step, _ in values["train/loss"]] == [4, 6, 8]
    assert [step for step, _ in values["epoch/train_loss"]] == [1]
    # What the last validation of the epoch gave.
    assert values["epoch/val_loss"] == [(1, values["val/loss"][1][1])]
    resumed = scalars(train(*settings[:2], "--trainer.max_steps=12", *settings[3:], "--trainer.val_check_interval=0.5",
                            "--trainer.log_every_n_steps=4", "--ckpt_path=last"))  # fmt: skip
    assert [step for step, _ in resumed["train/loss"]] == [4, 6, 8, 12]
    assert [step for step, _ in resumed["epoch/train_loss"]] == [1, 2]
    assert [value for _, value in resumed["epoch/val_loss"]] == [value for _, value in resumed["val/loss"][1::2]]


def test_epochs_without_validation_have_no_point_of_it(train):
    run = train("--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2", "--data=MNIST")
    assert [step for step, _ in scalars(run)["epoch/val_loss"]] == [2]
    assert [event.step for event in events(run).Images("images/mistakes")] == [2]


def test_other_loggers_count_steps_alone(train):
    run = train("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--trainer.max_epochs=2", "--data=MNIST")
    with next(Path("csv").rglob("metrics.csv")).open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert not list(run.glob("events*"))


class BrokenTrace(MLP):
    def forward(self, images):
        if torch.jit.is_tracing():
            return widht  # noqa: F821
        return super().forward(images)


def test_a_mistake_in_the_network_is_no_warning(train):
    with pytest.raises(NameError, match="widht"):
        train("--model.net=tests.test_dashboard.BrokenTrace")


def test_pictures_take_no_batch_of_their_own(train, monkeypatch):
    begun, iterate = [], TensorLoader.__iter__
    monkeypatch.setattr(TensorLoader, "__iter__", lambda self: begun.append(self) or iterate(self))
    train("--trainer.max_epochs=2", "--data=MNIST")
    with_pictures = len(begun)
    train.dashboard = "false"
    train("--trainer.max_epochs=2", "--data=MNIST")
    assert len(begun) == 2 * with_pictures


class OwnNet(nn.Module):
    """No ConvNet: its own forward, a layer that runs twice, one that does not run, and one with two outputs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3)
        self.stem = nn.Conv2d(3, width, kernel_size=3)
        self.body = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unused = nn.Conv2d(7, 7, kernel_size=3)

    def forward(self, images):
        x = self.body(self.body(self.stem(images)))
        maps, _ = self.pool(x)
        return self.head(maps.mean(dim=(2, 3)))


class PlainData(LightningDataModule):
    """Batches of images and labels, and nothing else."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def batches(self, count):
        generator = torch.Generator().manual_seed(count)
        labels = torch.arange(count) % 3
        pictures = torch.rand(count, 3, 12, 12, generator=generator)
        return DataLoader(TensorDataset(pictures, labels), self.batch_size)

    def train_dataloader(self):
        return self.batches(48)

    def val_dataloader(self):
        return self.batches(30)

    def test_dataloader(self):
        return self.batches(33)


class NamedData(PlainData):
    class_names = ("cat", "dog", "eel")


def fit_plain(capsys, data, *options):
    fit(["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=2",
         "--model.net=tests.test_dashboard.OwnNet", f"--data=tests.test_dashboard.{data}", *options])  # fmt: skip
    printed = capsys.readouterr()
    return next(Path("logs").glob("*/version_0")), printed.err


@pytest.mark.parametrize("data", ["PlainData", "NamedData"])
def test_any_network_and_any_data_module(capsys, data):
    run, errors = fit_plain(capsys, data)
    read = events(run)
    assert set(read.Tags()["images"]) == PICTURES
    names = list(NamedData.class_names) if data == "NamedData" else ["0", "1", "2"]
    assert {tag for tag in read.Tags()["tensors"] if tag.startswith("pr_curve")} == {f"pr_curve/{n}" for n in names}
    (line,) = [line for line in errors.splitlines() if "TensorBoard" in line]
    assert line.startswith("warning: TensorBoard shows no graph and no sizes of layers, because in_channels")
    assert line.endswith(f"; classes by number, because {data} has no class_names") == (data == "PlainData")
    assert not read.Tags()["graph"]
    table = text(read, "layers")
    assert "| stem | Conv2d |" in table
    assert "| unused | Conv2d |" in table
    # The mistakes are those of all validation images.
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/last.ckpt").eval()
    pictures, labels = (torch.cat(parts) for parts in zip(*PlainData().val_dataloader(), strict=True))
    with torch.no_grad():
        expected = images.misclassified(pictures, labels, model.predict_step(pictures), names)
    assert np.array_equal(picture(read, "images/mistakes"), np.asarray(expected))


def test_report_of_any_network_and_data_module(capsys, error_of):
    run, _ = fit_plain(capsys, "PlainData", "--dashboard=false")
    named = ["--trainer.accelerator=cpu", "--model.net=tests.test_dashboard.OwnNet",
             "--data=tests.test_dashboard.PlainData"]  # fmt: skip
    evaluate(named)
    output = capsys.readouterr().out
    report = run / "report_0"
    drawn = {"confusion_matrix", "reliability", "risk_coverage", "curves", "filters", "feature_maps"}
    assert {path.stem for path in report.glob("*.png")} == drawn
    line = (
        "The report has no misclassified images, because PlainData does not hand out its test images: add class_names"
    )
    assert [row for row in output.splitlines() if row.startswith(line)]
    with (report / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["true"] for row in table] == [str(number % 3) for number in range(33)]
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt").eval()
    pictures, _ = (torch.cat(parts) for parts in zip(*PlainData().test_dataloader(), strict=True))
    with torch.no_grad():
        probabilities = model.predict_step(pictures)
    assert [float(row["1"]) for row in table] == pytest.approx(probabilities[:, 1].tolist(), abs=1e-6)
    (run / "checkpoints/best.calibration.json").unlink()
    evaluate([*named, "--report=false"])
    reason = "PlainData does not state its split, so only fit.py knows the validation images"
    assert f"Not calibrated for a risk of 0.10%: {reason}" in capsys.readouterr().out
    for option in ("--shift=1", "--robust=true", "--tta=true"):
        message = error_of(evaluate, *named, option)
        assert message.startswith(f"error: {option.split('=')[0]} is not possible, because PlainData does not hand out")
