"""``scripts/export.py``: write a trained network for programs without this package, and verify every file."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from cnn_lightning.checkpointing.settings import epoch_of
from cnn_lightning.cli.calibrating import ensure_calibration
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import device_name, relative_path
from cnn_lightning.cli.tested_cli import TestedCLI, named_checkpoints
from cnn_lightning.data.scale_shift import scale_and_shift
from cnn_lightning.errors import UsageError
from cnn_lightning.export.deployed import Deployed
from cnn_lightning.export.folder import (
    INT8,
    Exported,
    new_folder,
    random_images,
    times,
    write_files,
    write_texts,
)
from cnn_lightning.export.onnx_model import to_onnx
from cnn_lightning.export.verify import Outputs, run_torch
from cnn_lightning.facts import class_names_of, facts_of, has_parts, name_of
from cnn_lightning.reporting.evaluation import Evaluation

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "safetensors")  # of the extra ``export``
TRAINING_IMAGES = 1000  # that the ranges of int8 activations are measured on


class ExportCLI(TestedCLI):
    """Builds what exports a checkpoint."""

    DESCRIPTION = "Write ONNX, safetensors and a model card of a checkpoint, verified on the test set."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the export."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str | None, help="The new folder. Default: export in the folder of the run."
        )
        parser.add_argument(
            "--int8", type=bool, default=False, help="Also write int8.onnx, a quarter of the size and less exact."
        )

    def before_instantiate_classes(self) -> None:
        """Test on the CPU in float32, which the files are compared with."""
        super().before_instantiate_classes()
        self.config.trainer.accelerator, self.config.trainer.precision = "cpu", "32-true"


@command
def export(args: Sequence[str]) -> None:
    """Write a folder with a checkpoint's network for other programs.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    cli = ExportCLI(args)
    if len(named_checkpoints(cli.config)) > 1:
        raise UsageError("several checkpoints are named: name one, each export has a folder of its own")
    _check_packages()
    folder = cli.new_output("export")
    what = f"{type(cli.model.net).__name__} on {name_of(cli.datamodule)}"
    print(f"Exporting {what}, device {device_name(cli.trainer)}")
    ensure_calibration(cli)
    deployed, shape = _deployed(cli)
    try:
        training_images = _training_images(cli)
        model = to_onnx(deployed, shape)  # before the test, which takes longer
        evaluation = _tested(cli)
        images, labels, expected = _images(cli, deployed, shape, evaluation)
        config = _config(cli, deployed, shape, evaluation, expected.scores.shape[1])
        make_folder(folder.parent, "--output")
        with new_folder(folder) as part:
            files = write_files(part, model, deployed, expected, images, labels, training_images)
            verified, int8 = _sentences(files, labels)
            write_texts(part, config, deployed, images, verified, int8)
            milliseconds = times(part, deployed, [file.name for file in files if file.outputs], shape)
    except UsageError as error:
        message = f"no export of {relative_path(cli.checkpoint_path)}: {error}"
        advice = {"int8": "leave out --int8", "output": "change --output"}
        if error.argument in advice:
            raise UsageError(f"{message}; {advice[error.argument]}") from error
        raise UsageError(message, error.argument) from error
    print(f"\n{_table(files, milliseconds)}")
    if int8:
        print(f"\nint8.onnx   {int8}")
    print(f"\nexported    {relative_path(folder)}: README.md shows how to use it")


def _check_packages() -> None:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        packages = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise UsageError(f"export needs {packages}: install with pip install 'cnn-lightning[export]'")


def _deployed(cli: ExportCLI) -> tuple[Deployed, list[int]]:
    """The network of the checkpoint, and the (C, H, W) of an image without padding."""
    data = cli.datamodule
    cli.check_normalize()
    cli.model.load_state_dict(cli.checkpoint["state_dict"])
    channels, height, width = cli.image_shape()
    pad = getattr(data, "pad", 0)
    scale, shift = scale_and_shift(data.normalize, (channels, height, width))
    deployed = Deployed(cli.model.net.cpu().float(), scale, shift, pad, cli.calibration.temperature)
    return deployed, [channels, height - 2 * pad, width - 2 * pad]


def _tested(cli: ExportCLI) -> Evaluation | None:
    """Test the network; None, after a line that says so, if the dataset is not at hand."""
    if not cli.read_test_images("the accuracy is not measured"):
        return None
    return cli.evaluation() if cli.test(cli.checkpoint_path) else None


def _images(
    cli: ExportCLI, deployed: Deployed, shape: Sequence[int], evaluation: Evaluation | None
) -> tuple[Tensor, Tensor | None, Outputs]:
    """Images to verify the files on, without padding, their labels if known, and what PyTorch computes for them."""
    data = cli.datamodule
    if evaluation is None or not has_parts(data):
        images = random_images(shape)
        print(f"Verifying on {len(images)} random images, because there are no test images at hand")
        expected = run_torch(deployed, images)
        if not expected.scores.isfinite().all():
            raise UsageError("the network gives NaN: its training has diverged, choose another checkpoint")
        return images, None, expected
    # The logits of the official test, which prepared the images as in training.
    expected = Outputs(cli.kept.logits, evaluation.calibrated.probabilities)
    return _unpadded(cli, data.part("test")[0])[: evaluation.total], evaluation.labels, expected


def _training_images(cli: ExportCLI) -> Tensor | None:
    """Training images, spread over the whole set, if --int8 needs them."""
    if not cli.config.int8:
        return None
    data = cli.datamodule
    if not has_parts(data):
        raise UsageError(f"{name_of(data)} does not hand out its training images", "int8")
    data.prepare_data()
    data.setup("fit")
    images, _ = data.part("train")
    return _unpadded(cli, images[:: max(1, len(images) // TRAINING_IMAGES)][:TRAINING_IMAGES])


def _unpadded(cli: ExportCLI, images: Tensor) -> Tensor:
    pad = getattr(cli.datamodule, "pad", 0)
    return images[:, :, pad : images.shape[2] - pad, pad : images.shape[3] - pad].contiguous()


def _config(
    cli: ExportCLI, deployed: Deployed, shape: Sequence[int], evaluation: Evaluation | None, classes: int
) -> dict[str, Any]:
    """Content of config.json."""
    net, facts, calibration = cli.config.model.net, facts_of(cli.datamodule), cli.calibration
    test = None
    if evaluation:
        calibrated = evaluation.calibrated
        test = {"images": evaluation.total, "correct": evaluation.correct, "accuracy": evaluation.accuracy}
        test |= {name: getattr(calibrated, name) for name in ("loss", "brier_score", "calibration_error")}
        test |= {"answered": evaluation.answered, "wrong": evaluation.wrong_answers}
    return {
        "network": {"class_path": net.class_path, "init_args": dict(net.get("init_args") or {})},
        "parameters": sum(weight.numel() for weight in deployed.net.parameters()),
        "epoch": epoch_of(cli.checkpoint),
        "dataset": facts.name,
        "classes": class_names_of(cli.datamodule, classes)[:classes],
        "image_shape": list(shape),
        "pad": deployed.pad,
        "mean": facts.mean,
        "std": facts.std,
        "scale": deployed.scale.flatten().tolist(),
        "shift": deployed.shift.flatten().tolist(),
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "risk": calibration.risk,
        "test": test,
    }


def _sentences(files: Sequence[Exported], labels: Tensor | None) -> tuple[str, str | None]:
    """What the card says of the verification: of all files, and of int8.onnx."""
    found = {file.name: file for file in files}
    exact = files[0].comparison
    assert exact
    what = "random images" if labels is None else "test images"
    verified = (
        f"`model.onnx` was compared with PyTorch on {exact.images:,} {what}: {exact.equal:,} have the same class, and "
        f"probabilities differ by at most {exact.probability_difference:.1g}."
    )
    return verified, _int8_sentence(found[INT8], labels) if INT8 in found else None


def _int8_sentence(file: Exported, labels: Tensor | None) -> str:
    assert file.outputs
    assert file.comparison
    predicted = file.outputs.scores.argmax(dim=1)
    text = f"Same class for {file.comparison.equal:,} of {file.comparison.images:,} images"
    if labels is not None:
        correct = int((predicted == labels).sum())
        text += f", accuracy {100 * correct / len(labels):.2f} % ({correct:,})"
    return f"{text}; {file.constants:,} bytes of weights, biases and scales."


def _table(files: Sequence[Exported], milliseconds: Mapping[str, Sequence[float]]) -> str:
    head = ("", "same class", "scores", "probabilities", "1 image", "256 images", "bytes")
    rows = [head, ("PyTorch", "", "", "", *_times(milliseconds["PyTorch"]), "")]
    for file in files:
        found = [""] * 3
        if each := file.comparison:
            found = [f"{each.equal:,}/{each.images:,}", f"±{each.score_difference:.1g}"]
            found.append(f"±{each.probability_difference:.1g}")
        rows.append((file.name, *found, *_times(milliseconds.get(file.name, ())), f"{file.size:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows)
    return "\n".join(line.rstrip() for line in lines)


def _times(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f} ms" for value in values] or ["", ""]
