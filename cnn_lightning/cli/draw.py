"""``scripts/draw.py``: write a page on which one draws a digit and sees what every layer of the network makes of it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.checkpointing.settings import epoch_of, run_of
from cnn_lightning.cli.exit_codes import command
from cnn_lightning.cli.run_folders import make_folder
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.cli.tested_cli import TestedCLI
from cnn_lightning.data.decoding import ToSquare
from cnn_lightning.data.photos import SIZE, Preparation
from cnn_lightning.data.scale_shift import scale_and_shift
from cnn_lightning.draw.page import choose_images, model_of, packed_images, render_page
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import class_names_of, has_parts, name_of


class DrawCLI(TestedCLI):
    """Builds what a page shows of a checkpoint."""

    DESCRIPTION = "Write a page, one HTML file, that runs the network in the browser: draw a digit, see each layer."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the page."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--output", type=str | None, help="The new HTML file. Default: draw.html in the folder of the run."
        )
        parser.add_argument(
            "--half", type=bool, default=False, help="Store the parameters as float16: half the size, less exact."
        )


@command
def draw(args: Sequence[str]) -> None:
    """Write the page of one or several checkpoints.

    Args:
        args: Command-line arguments. Defaults to those of this process.
    """
    clis = DrawCLI.for_each(args)
    path = _new_file(clis[0])
    models = [_model(cli) for cli in clis]
    make_folder(path.parent, "--output")
    page = render_page(models[0]["title"], models)
    try:
        write_file(path, page.encode(errors="replace"))  # names of files need not be UTF-8
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): change --output") from error
    print(f"\npage        {relative_path(path)} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser")


def _new_file(cli: DrawCLI) -> Path:
    """Path of the page, which does not exist yet."""
    path = cli.new_output("draw", ".html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {path}: expected a name that ends with .html")
    return path


def _model(cli: DrawCLI) -> dict[str, Any]:
    """Describe a checkpoint's network, its dataset and some test images for the page."""
    data, net = cli.datamodule, cli.model.net
    name, run = relative_path(cli.checkpoint_path), run_of(cli.checkpoint_path)
    cli.check_normalize()
    cli.check_risk()
    cli.model.load_state_dict(cli.checkpoint["state_dict"])
    shape = cli.image_shape()
    try:
        model = model_of(net.eval(), *scale_and_shift(data.normalize, shape), shape, cli.config.half)
    except UsageError as error:
        advice = "change --half" if error.argument == "half" else "docs/draw.md lists what it can"
        raise UsageError(f"no page of {name}: {error}; {advice}") from error
    images, accuracy = _test_images(cli)
    parameters = sum(weight.numel() for weight in net.parameters())
    classes = model["layers"][-1]["shape"][0]
    calibration = cli.calibration
    is_calibrated = calibration.risk is not None
    calibrated = f"calibrated (temperature {calibration.temperature:.2f})" if is_calibrated else "not calibrated"
    return {
        "title": f"{type(net).__name__} on {name_of(data)}",
        "dataset": name_of(data),
        # Without the folders above the run: the page may be mailed.
        "source": f"{run.parent.name}/{run.name}/{cli.checkpoint_path.name}" if run else cli.checkpoint_path.name,
        "facts": [f"epoch {epoch_of(cli.checkpoint)}", f"{parameters:,} parameters", *accuracy, calibrated],
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "classes": class_names_of(data, classes)[:classes],
        "pad": getattr(data, "pad", 0),
        "preparation": _preparation(data, shape),
        "images": images,
        **model,
    }


def _test_images(cli: DrawCLI) -> tuple[dict[str, Any] | None, list[str]]:
    """Test the network; return test images for the page and the accuracy, neither if the dataset is not at hand."""
    data = cli.datamodule
    if not cli.read_test_images("the page has no test images") or not cli.test(cli.checkpoint_path):
        return None, []
    evaluation = cli.evaluation()
    accuracy = [f"{evaluation.accuracy:.2%} of {evaluation.total:,} test images right"]
    if not has_parts(data):
        return None, accuracy
    chosen = choose_images(evaluation.labels, evaluation.probabilities)
    images, _ = data.part("test")
    return packed_images(images[chosen], evaluation.labels[chosen], evaluation.predicted[chosen]), accuracy


def _preparation(data: Any, shape: Sequence[int]) -> dict[str, Any] | None:
    """Describe how the dataset prepares pictures, if the page can do the same; otherwise they are only resized."""
    preparation, side = getattr(data, "preparation", None), shape[1] - 2 * getattr(data, "pad", 0)
    if isinstance(preparation, Preparation) and (shape[0], side) == (1, SIZE):
        return {"kind": "Preparation", **asdict(preparation)}
    if isinstance(preparation, ToSquare) and (shape[0], side) == (1 if preparation.grey else 3, preparation.side):
        return {"kind": "ToSquare", **asdict(preparation)}
    return None
