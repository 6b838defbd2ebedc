"""``evaluate.py`` on calibration: fit what a checkpoint lacks, and describe what it does on the test images."""

from cnn_lightning.checkpointing.settings import describes_images
from cnn_lightning.cli.terminal import is_rank_zero, print_rank_zero, relative_path
from cnn_lightning.cli.tested_cli import TestedCLI
from cnn_lightning.data import ImageDataModule
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import name_of
from cnn_lightning.lightning_fixes import keyboard_interrupt
from cnn_lightning.reporting.calibration import (
    RISK,
    UNCALIBRATED,
    Calibration,
    calibrate,
    calibration_file,
    save_calibration,
    sha256_of,
)
from cnn_lightning.reporting.evaluation import Evaluation


def ensure_calibration(cli: TestedCLI) -> None:
    """Calibrate a checkpoint on its validation images and save the file, if it has none or one of another risk.

    Raises:
        UsageError: The checkpoint was saved anew meanwhile.
    """
    risk, path = cli.config.risk or cli.calibration.risk or RISK, cli.checkpoint_path
    if risk == cli.calibration.risk:
        return
    if reason := _reason_against(cli):
        print_rank_zero(f"Not calibrated for a risk of {risk:.2%}: {reason}")
        return
    before = sha256_of(path)
    with keyboard_interrupt(cli.trainer):
        cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=path, weights_only=True, verbose=False)
    if sha256_of(path) != before:
        raise UsageError(f"{path} changed while this command ran: run the command again")
    calibration = calibrate(cli.kept.logits, cli.kept.labels, risk)
    if calibration == UNCALIBRATED:
        return  # the test says that the network gives NaN
    cli.calibration = calibration
    if is_rank_zero():
        _save(calibration, cli)


def _reason_against(cli: TestedCLI) -> str:
    """Why the validation images of a checkpoint are not at hand; "" if they are."""
    data = cli.datamodule
    if cli.trainer.limit_val_batches != 1.0 or isinstance(cli.trainer.limit_val_batches, int):  # 1 is one batch
        return "--trainer.limit_val_batches or fast_dev_run leaves out validation images"
    # Other validation images than in training may be ones that the network was trained with.
    if not isinstance(data, ImageDataModule):
        return f"{name_of(data)} does not state its split, so only fit.py knows the validation images"
    if not describes_images(cli.checkpoint, data):
        return "the settings of --data differ from those in training"
    try:
        data.prepare_data()
        data.setup("validate")
    except UsageError as error:
        return str(error)
    return ""


def _save(calibration: Calibration, cli: TestedCLI) -> None:
    file = relative_path(calibration_file(cli.checkpoint_path))
    try:
        save_calibration(calibration, cli.checkpoint_path)
        print(f"Calibrated on {calibration.images:,} validation images, saved as {file}")
    except OSError as error:
        print(f"Calibrated on {calibration.images:,} validation images, not saved in {file}: {error.strerror}")


def calibration_lines(evaluation: Evaluation) -> str:
    """Describe in lines of text what the probabilities of a test are worth."""
    calibrated, calibration = evaluation.calibrated, evaluation.calibration
    brier, error = f"{evaluation.brier_score:.4f}", f"{evaluation.calibration_error:.2%} error"
    if calibration.risk is not None:
        brier += f"; {calibrated.brier_score:.4f} with temperature {calibration.temperature:.2f}"
        error += f"; {calibrated.calibration_error:.2%} with temperature {calibration.temperature:.2f}"
    lines = [f"Brier       {brier}", f"calibration {error}"]
    lines.append(f"risk        {calibrated.area_under_risk_coverage:.5f}, area under the risk-coverage curve")
    if calibration.risk is not None:
        given, wrong = _answers(evaluation)
        lines += [f"answers     {given}", f"            {wrong}"]
    return "\n".join(lines)


def _answers(evaluation: Evaluation) -> tuple[str, str]:
    """Say how many answers a calibrated network gives, and how many of them are wrong."""
    calibration, answered, wrong = evaluation.calibration, evaluation.answered, evaluation.wrong_answers
    asked = f"asked for {calibration.risk:.2%}"
    if not calibration.is_reached:
        asked += f", which {calibration.images:,} validation images are too few to show"
    if not answered:
        return "none given", asked
    low, high = evaluation.risk_interval()
    given = f"{answered / evaluation.total:.1%} given: those with a probability of {calibration.threshold_text} or more"
    interval = f"95 % interval {low:.2%} to {high:.2%}"
    return given, f"{wrong / answered:.2%} of them wrong ({wrong:,}/{answered:,}, {interval}), {asked}"
