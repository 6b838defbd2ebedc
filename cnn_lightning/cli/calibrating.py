"""``evaluate.py`` on calibration: fit what a checkpoint lacks, and say what it is worth on the test images."""

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cnn_lightning.checkpointing.settings import describes_images
from cnn_lightning.cli.terminal import print_rank_zero, relative_path
from cnn_lightning.cli.tested_cli import TestedCLI
from cnn_lightning.errors import UsageError
from cnn_lightning.lightning_fixes import keyboard_interrupt
from cnn_lightning.reporting.calibration import RISK, UNCALIBRATED, calibrate, calibration_file, save_calibration
from cnn_lightning.reporting.evaluation import Evaluation


def ensure_calibration(cli: TestedCLI) -> None:
    """Calibrate a checkpoint on its validation images and save the file, if it has none or one of another risk."""
    risk = cli.config.risk or cli.calibration.risk or RISK
    if risk == cli.calibration.risk or cli.config.trainer.fast_dev_run or cli.trainer.limit_val_batches != 1:
        return
    if not describes_images(cli.checkpoint, cli.datamodule):
        # Other validation images may be ones that the network was trained with.
        print_rank_zero("Not calibrated, because the settings of --data differ from those in training.")
        return
    try:
        with keyboard_interrupt(cli.trainer):
            cli.trainer.validate(
                cli.model, cli.datamodule, ckpt_path=cli.checkpoint_path, weights_only=True, verbose=False
            )
    except (UsageError, MisconfigurationException) as error:  # no validation images on this machine, or none at all
        print_rank_zero(f"Not calibrated: {str(error).splitlines()[0]}")
        return
    calibration = calibrate(cli.kept.logits, cli.kept.labels, risk)
    if calibration == UNCALIBRATED:
        return  # the test says that the network gives NaN
    cli.calibration, path = calibration, relative_path(calibration_file(cli.checkpoint_path))
    try:
        save_calibration(calibration, cli.checkpoint_path)
        print_rank_zero(f"Calibrated on {calibration.images:,} validation images, saved as {path}")
    except OSError as error:
        print_rank_zero(
            f"Calibrated on {calibration.images:,} validation images, not saved in {path}: {error.strerror}"
        )


def calibration_lines(evaluation: Evaluation) -> str:
    """Describe in lines of text what the probabilities of a test are worth."""
    calibrated, calibration = evaluation.calibrated, evaluation.calibration
    error, area = f"{evaluation.calibration_error:.2%} error", evaluation.area_under_risk_coverage
    if calibration.risk is not None:
        error += f"; {calibrated.calibration_error:.2%} with temperature {calibration.temperature:.2f}"
    lines = [f"Brier       {evaluation.brier_score:.4f}", f"calibration {error}"]
    lines.append(f"risk        {area:.5f}, area under the risk-coverage curve")
    if calibration.risk is not None:
        given, wrong = answers_texts(evaluation)
        lines += [f"answers     {given}", f"            {wrong}"]
    return "\n".join(lines)


def answers_texts(evaluation: Evaluation) -> tuple[str, str]:
    """Say how many answers are given at the threshold of a calibrated network, and how many of them are wrong."""
    calibration, answered, wrong = evaluation.calibration, evaluation.answered, evaluation.wrong_answers
    low, high = evaluation.risk_interval()
    share = f"{wrong / answered:.2%}" if answered else "none"
    given = f"{answered / evaluation.total:.1%} given: those with a probability of {calibration.threshold:.2%} or more"
    text = f"{share} of them wrong ({wrong:,}/{answered:,}, 95 % interval {low:.2%} to {high:.2%}), "
    text += f"asked for {calibration.risk:.2%}"
    if not calibration.is_reached:
        text += f", which {calibration.images:,} validation images are too few to show"
    return given, text
