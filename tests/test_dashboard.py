import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData
from tensorboard.util.tensor_util import make_ndarray

from cnn_lightning import MNIST, ImageClassifier
from tests.conftest import REPOSITORY, scalars

CLASSES = [str(digit) for digit in range(10)]
PICTURES = {f"images/{name}" for name in ("training_images", "confusion_matrix", "mistakes", "filters", "feature_maps")}


def events(run):
    accumulator = EventAccumulator(str(run), size_guidance={"images": 0, "tensors": 0})
    return accumulator.Reload()


def text(accumulator, tag):
    return make_ndarray(accumulator.Tensors(f"{tag}/text_summary")[-1].tensor_proto).item().decode()


def picture(accumulator, tag, index=-1):
    return np.asarray(Image.open(io.BytesIO(accumulator.Images(tag)[index].encoded_image_string)))


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
    assert {f"{name}/text_summary" for name in ("config", "layers", "how_to_read")} <= set(tags["tensors"])
    assert tags["graph"]
    assert {"features", "head"} <= {node.name.split("/")[1].split("[")[-1].rstrip("]") for node in graph(read).node if "/" in node.name}  # fmt: skip  # noqa: E501


def graph(read):
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    return read.Graph() if isinstance(read.Graph(), GraphDef) else GraphDef.FromString(read.Graph())


def test_text_is_the_configuration_the_layers_and_how_to_read(run):
    read = events(run)
    config = yaml.safe_load(text(read, "config").removeprefix("```yaml").removesuffix("```"))
    assert config == yaml.safe_load((run / "config.yaml").read_text())
    assert "| features.0 | Conv2d | (28 - 5 + 2·2) / 1 + 1 = 28 | 16 × 28 × 28 | 416 |" in text(read, "layers")
    assert "| features.4 | MaxPool2d | (14 - 2 + 2·0) / 2 + 1 = 7 | 32 × 7 × 7 | 0 |" in text(read, "layers")
    assert "optimizer steps made" in text(read, "how_to_read")


def test_every_curve_is_explained(run):
    explained = text(events(run), "how_to_read")
    for tag in scalars(run):
        group = tag.split("/")[0]
        assert f"`{tag}`" in explained or f"`{group}/*`" in explained or tag.startswith("lr-"), tag


def test_hparams_are_the_settings_and_the_metrics_have_values(run):
    metadata = events(run).summary_metadata
    content = {
        tag: HParamsPluginData.FromString(data.plugin_data.content)
        for tag, data in metadata.items()
        if data.plugin_data.plugin_name == "hparams"
    }
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
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
    for name in ("train_loss", "train_acc", "val_loss", "val_acc", "images_per_second"):
        assert [step for step, _ in values[f"epoch/{name}"]] == [1, 2, 3], name
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


def test_a_run_that_goes_on_has_one_point_for_every_epoch(train):
    settings = ("--data=MNIST", "--model.lr_schedule=null")
    train(*settings, "--trainer.max_epochs=2")
    run = train(*settings, "--trainer.max_epochs=3", "--ckpt_path=last")
    values = scalars(run)
    assert [step for step, _ in values["epoch/val_loss"]] == [1, 2, 3]
    assert [step for step, _ in values["val/loss"]] == [6, 12, 18]
    steps = [step for step, _ in values["train/loss"]]
    assert steps == sorted(set(steps))
    assert [event.step for event in events(run).Images("images/confusion_matrix")] == [1, 2, 3]


def test_several_processes_draw_one_dashboard_of_all_images(tiny_root, tmp_path):
    """The confusion matrix has the images of both processes, and its numbers are those of one."""
    pictures = []
    for devices in (1, 2):
        command = [
            sys.executable, REPOSITORY / "scripts/fit.py", "--data=MNIST", f"--data.root={tiny_root}",
            "--data.batch_size", str(40 // devices), "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices == 2 else 'auto'}",
            f"--trainer.default_root_dir={tmp_path / str(devices)}", "--trainer.enable_progress_bar=false",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        run = tmp_path / str(devices) / "TwoLayerCNN-MNIST/version_0"
        assert set(events(run).Tags()["images"]) == PICTURES
        pictures.append(picture(events(run), "images/confusion_matrix"))
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 2
