"""``evaluate.py --robust``: accuracy on corrupted and attacked test images, and detection of other images."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cnn_lightning.cli.terminal import print_rank_zero
from cnn_lightning.cli.tested_cli import TestedCLI
from cnn_lightning.data import MNIST, FashionMNIST, ImageDataModule
from cnn_lightning.data.scale_shift import scale_and_shift
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import class_names_of, name_of
from cnn_lightning.reporting.evaluation import Evaluation
from cnn_lightning.reporting.tables import as_csv
from cnn_lightning.robustness.attacks import BATCH, EPSILONS, STEPS, attack, logits_of
from cnn_lightning.robustness.baseline import relative_error
from cnn_lightning.robustness.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from cnn_lightning.robustness.detection import Detection, detect, noise

ATTACKED = 1000  # images; an attack takes as long as 10 tests
MOST_NOISE = 10_000  # images

TestOn = Callable[[Tensor, Tensor], Evaluation]


@dataclass(frozen=True)
class Robustness:
    """What was measured of a network.

    Args:
        dataset: Name of its dataset.
        accuracies: Corruption -> accuracy in [0, 1] in each strength.
        scores: Source of images, the dataset's test images first -> (N,) float64: highest calibrated probabilities.
        threshold: Answers with a lower score are withheld.
        attacks: Attack -> (epsilon, accuracy); empty where attacks are not possible.
    """

    dataset: str
    accuracies: Mapping[str, Sequence[float]]
    scores: Mapping[str, Tensor]
    threshold: float
    attacks: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def means(self) -> dict[str, float]:
        """Mean accuracy of each corruption."""
        return {name: mean(accuracies) for name, accuracies in self.accuracies.items()}

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over all corruptions and strengths."""
        return mean(self.means.values())

    @property
    def worst(self) -> tuple[float, str, int]:
        """The lowest accuracy, with its corruption and strength."""
        return min(
            (accuracy, name, strength)
            for name, accuracies in self.accuracies.items()
            for strength, accuracy in zip(STRENGTHS, accuracies, strict=True)
        )

    @property
    def detections(self) -> dict[str, Detection]:
        """How well each other source of images is detected."""
        (_, known), *others = self.scores.items()
        return {source: detect(known, scores, self.threshold) for source, scores in others}

    def figures(self) -> dict[str, Any]:
        """All figures as plain values, for JSON."""
        accuracy, name, strength = self.worst
        return {
            "mean_accuracy": self.mean_accuracy,
            "worst": {"accuracy": accuracy, "corruption": name, "strength": strength},
            "relative_error": relative_error(self.dataset, self.accuracies),
            "corruptions": {name: list(accuracies) for name, accuracies in self.accuracies.items()},
            "detection": {source: asdict(detection) for source, detection in self.detections.items()},
            "attacks": {name: list(map(list, points)) for name, points in self.attacks.items()},
        }


def measure(cli: TestedCLI, test_on: TestOn, evaluation: Evaluation) -> Robustness:
    """Measure the robustness of a network that was tested just now.

    Args:
        cli: Its dataset, with ``part`` and ``normalize``, is set up.
        test_on: Tests the network on (N, C, H, W) images and (N,) labels.
        evaluation: Of the test images as they are.
    """
    data, device = cli.datamodule, cli.trainer.strategy.root_device
    images, labels = (tensor.to(device) for tensor in data.part("test"))
    # The border is added again after each change, so that networks with and without it meet the same images.
    bare, border = _without_border(data, images), getattr(data, "pad", 0)
    accuracies = {}
    print_rank_zero("\nAccuracy on corrupted test images")
    print_rank_zero(f"{'strength':<18}" + "".join(f"{strength:>8}" for strength in (*STRENGTHS, "mean")))
    for name in CORRUPTIONS:
        changed = (pad(corrupt(bare, name, strength), [border] * 4) for strength in STRENGTHS)
        accuracies[name] = [test_on(batch, labels).accuracy for batch in changed]
        print_rank_zero(f"{name:<18}{_percent([*accuracies[name], mean(accuracies[name])])}")
    scores = {name_of(data): evaluation.calibrated.confidence}
    for source, others in _other_images(data, bare):
        zeros = torch.zeros(len(others), dtype=torch.int64)
        scores[source] = test_on(pad(others, [border] * 4), zeros).calibrated.confidence
    attacks = _attacks(cli, bare[:ATTACKED], labels[:ATTACKED], border)
    return Robustness(name_of(data), accuracies, scores, evaluation.calibration.threshold, attacks)


def robustness_lines(measured: Mapping[str, Robustness]) -> str:
    """Sum up the results of several networks, by name, in lines of text."""
    lines = list[str]()
    for network, robustness in measured.items():
        accuracy, worst, strength = robustness.worst
        lines += ["", f"Robustness of {network}"]
        lines.append(
            f"corruptions mean {robustness.mean_accuracy:.2%}, worst {accuracy:.2%} ({worst}, strength {strength})"
        )
        relative = relative_error(robustness.dataset, robustness.accuracies)
        if relative is not None:
            lines.append(f"            {relative:.1%} of LeNetCNN's error, mean of the corruptions")
        for source, found in robustness.detections.items():
            lines.append(
                f"detection   {source}, by the highest calibrated probability: AUROC {found.auroc:.2%}, "
                f"FPR95 {found.fpr95:.2%}, answered {found.answered:.2%}"
            )
    return "\n".join(lines)


def write_robustness(folder: Path, data: Any, measured: Mapping[str, Robustness]) -> dict[str, Any]:
    """Write tables and pictures into the folder of a report, and return all figures by network.

    Args:
        folder: Gets corruptions.csv, detection.csv and attacks.csv, corruptions.png, robustness.png and attack.png.
        data: The dataset, set up; its first test image is shown.
        measured: Name of a network -> what was measured.
    """
    # Imported here, because matplotlib is slow and only reports need it.
    from cnn_lightning.reporting import robustness_plots as plots

    rows: dict[str, list[dict[str, Any]]] = {"corruptions": [], "detection": [], "attacks": []}
    for network, one in measured.items():
        named = {"network": network}
        for name, accuracies in one.accuracies.items():
            for strength, accuracy in zip(STRENGTHS, accuracies, strict=True):
                row = {"corruption": name, "strength": strength, "accuracy": accuracy}
                rows["corruptions"].append(named | row)
        for source, scores in one.scores.items():
            rows["detection"] += [
                named | {"source": source, "index": index, "score": score}
                for index, score in enumerate(scores.tolist())
            ]
        for name, points in one.attacks.items():
            rows["attacks"] += [
                named | {"attack": name, "epsilon": epsilon, "accuracy": accuracy} for epsilon, accuracy in points
            ]
    for name, table in rows.items():
        if table:
            (folder / f"{name}.csv").write_bytes(as_csv(table))
    image = _without_border(data, data.part("test")[0][:1])
    examples = {name: torch.cat([corrupt(image, name, strength) for strength in STRENGTHS]) for name in CORRUPTIONS}
    plots.corruptions(examples).save(folder / "corruptions.png", optimize=True)
    plots.accuracy_by_corruption({network: one.means for network, one in measured.items()}, folder / "robustness.png")
    if attacks := {network: one.attacks for network, one in measured.items() if one.attacks}:
        plots.accuracy_by_attack(attacks, folder / "attack.png")
    return {network: one.figures() for network, one in measured.items()}


def _without_border(data: Any, images: Tensor) -> Tensor:
    """Remove the border of the option ``pad`` from (N, C, H, W) images."""
    border, (height, width) = getattr(data, "pad", 0), images.shape[2:]
    return images[..., border : height - border, border : width - border]


def _other_images(data: Any, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield names and (M, C, H, W) uint8 images of what the dataset has no class for, as far as they are on disk."""
    shape = tuple(images.shape[1:])
    names = {*class_names_of(data, 0)}
    for cls in (MNIST, FashionMNIST):
        if names & {*cls.class_names}:
            continue  # the dataset itself, or other digits
        if shape != (cls.in_channels, cls.SIDE, cls.SIDE):
            print_rank_zero(f"{cls.__name__} is not used as other images, because those of {name_of(data)} are {shape}")
            continue
        roots = dict.fromkeys([getattr(data, "root", None), None])  # None: the default folder
        found = [other.part("test")[0] for root in roots if (other := _on_disk(cls, root))]
        if found:
            yield cls.__name__, found[0]
        else:
            print_rank_zero(f"{cls.__name__} is not used as other images, because it is not on disk")
    yield "noise", noise(min(len(images), MOST_NOISE), shape)


def _on_disk(cls: type[ImageDataModule], root: str | None) -> ImageDataModule | None:
    """Set up the test images of a dataset; None if a file is missing."""
    data = cls(root, download=False)
    try:
        data.prepare_data()
        data.setup("test")
    except UsageError:
        return None
    return data


def _attacks(cli: TestedCLI, images: Tensor, labels: Tensor, border: int) -> dict[str, list[tuple[float, float]]]:
    """Measure accuracy under attack, in float32; none if the network is given more than scaled and shifted pixels."""
    try:
        scale, shift = scale_and_shift(cli.datamodule.normalize, images.shape[1:])
    except UsageError as error:
        print_rank_zero(f"No attacks: {error}")
        return {}
    # A copy, because the report draws the network on the CPU.
    net, attacks = copy.deepcopy(cli.model.net).eval().to(images.device), dict[str, list[tuple[float, float]]]()
    print_rank_zero(f"\nAccuracy on the first {len(images):,} test images under attack")
    print_rank_zero(f"{'epsilon':<18}" + "".join(f"{epsilon:>8}" for epsilon in EPSILONS))
    for name, steps in STEPS.items():
        points = []
        for epsilon in EPSILONS:
            attacked = attack(net, images, labels, scale, shift, epsilon, steps, border=border)
            with torch.inference_mode():
                logits = torch.cat([logits_of(net, batch, scale, shift, border) for batch in attacked.split(BATCH)])
            points.append((epsilon, (logits.argmax(dim=1) == labels).double().mean().item()))
        print_rank_zero(f"{name:<18}{_percent([accuracy for _, accuracy in points])}")
        attacks[name] = points
    return attacks


def _percent(accuracies: Sequence[float]) -> str:
    return "".join(f"{accuracy:>8.2%}" for accuracy in accuracies)
