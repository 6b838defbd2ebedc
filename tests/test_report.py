import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from cnn_lightning import MLP, TwoLayerCNN
from cnn_lightning.reporting.evaluation import Evaluation
from cnn_lightning.reporting.report import write_report

NAMES = ("T-shirt/top", "<i>trouser</i>", "Dress & co")
SHIFTS = {"a & b": {"up to": [(0, 0.9), (1, 0.8)], "corner": [(0, 0.9), (1, 0.7)]}}
SCALARS = {"train/loss": [(10, 1.0), (20, 0.5)], "val/acc": [(20, 0.8)]}


class Page(HTMLParser):
    """What is in a page: tags with attributes, the rows of its tables, its text."""

    VOID = {"meta", "img"}  # noqa: RUF012

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.text, self.open = [], [], "", []
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data.replace("\N{NO-BREAK SPACE}", " "))
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def evaluation(seed=0, strength=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(120) % 3
    scores = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    scores[torch.arange(120), labels] += strength
    return Evaluation(labels, scores.softmax(1), NAMES)


def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (120, 1, 28, 28), dtype=np.uint8))


def write(folder, evaluations=None, net=None, channels=1, **more):
    facts = {"checkpoint": "logs/a&b.ckpt", "saved": "<script>alert(1)</script>"}
    net = net or TwoLayerCNN(channels, num_classes=3).eval()
    shown = images().expand(-1, channels, -1, -1)
    evaluations = evaluations or {"best": evaluation()}
    path = write_report(folder, "<s>Data</s> & co", net, evaluations, shown, shown[0].float(), facts, **more)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def files(folder):
    return {path.name for path in folder.iterdir()}


PICTURES = {f"{name}.png" for name in ("confusion_matrix", "reliability", "mistakes", "filters", "feature_maps")}
PICTURES |= {"risk_coverage.png"}
BASIC = PICTURES | {"predictions.csv", "figures.json", "report.html"}


def test_one_checkpoint(tmp_path):
    page, one = write(tmp_path, scalars=SCALARS), evaluation()
    assert files(tmp_path) == BASIC | {"curves.png"}
    assert ["checkpoint", "logs/a&b.ckpt"] in page.rows
    assert f"{100 * one.accuracy:.2f} %" in page.text
    assert f"{one.correct} of 120 images" in page.text
    assert f"{one.loss:.4f}" in page.text
    assert f"{100 * one.calibration_error:.2f} %" in page.text
    shares = [f"{100 * share[2]:.2f} %" for share in (one.by_class[name] for name in ("precision", "recall", "f1"))]
    assert ["Dress & co", *shares, "40"] in page.rows
    means = [f"{100 * one.by_class[name].mean():.2f} %" for name in ("recall", "f1")]
    assert ["mean of the classes", *means] in page.rows
    assert "Side by side" not in page.text


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path):
    page = write(tmp_path, scalars=SCALARS)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a", "i"})
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 7
    assert all(picture["src"].startswith("data:image/png;base64,") and picture["alt"] for picture in pictures)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", html)


def test_all_texts_are_shown_as_they_are(tmp_path):
    page = write(tmp_path, {"<u>": evaluation(), "&amp;": evaluation(1), '"{{ 1 }}"': evaluation(2)})
    texts = ("<s>Data</s> & co", "<script>alert(1)</script>", "<u>", "&amp;", "<i>trouser</i>", '"{{ 1 }}"')
    for text in texts:
        assert text in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "s", "u", "i"})


def test_json_has_the_figures(tmp_path):
    write(tmp_path)
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["title"] == "TwoLayerCNN on <s>Data</s> & co"
    assert list(written["facts"]) == ["network", "dataset", "checkpoint", "saved"]
    assert written["facts"]["network"] == "TwoLayerCNN, 17,955 parameters"
    assert written["facts"]["dataset"] == "<s>Data</s> & co, 120 test images"
    assert written["facts"]["checkpoint"] == "logs/a&b.ckpt"
    assert written["checkpoints"] == {"best": evaluation().figures()}


def test_several_checkpoints_side_by_side(tmp_path):
    one, two = evaluation(0), evaluation(1, strength=2)
    both = Evaluation.ensemble([one, two])
    page = write(tmp_path, {"one": one, "two": two, "ensemble": both})
    assert files(tmp_path) == BASIC | {"predictions_2.csv", "predictions_ensemble.csv"}
    for name, file, shown in (("1. one", "predictions.csv", one), ("2. two", "predictions_2.csv", two)):
        figures = [f"{100 * shown.accuracy:.2f} %", f"{shown.loss:.4f}", f"{100 * shown.calibration_error:.2f} %"]
        assert [name, *figures, file] in page.rows
    assert any(row[:2] == ["ensemble", f"{100 * both.accuracy:.2f} %"] for row in page.rows)
    assert ["Dress & co", *(f"{100 * shown.by_class['recall'][2]:.2f} %" for shown in (one, two, both))] in page.rows
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["checkpoints"] == {"one": one.figures(), "two": two.figures(), "ensemble": both.figures()}
    two.write_csv(tmp_path / "two.csv")
    assert (tmp_path / "predictions_2.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_no_misclassified_image_is_said(tmp_path):
    page = write(tmp_path, {"best": evaluation(strength=50)})
    assert files(tmp_path) == BASIC
    assert "It misclassified 0 images" in page.text


def test_shifts_are_drawn_and_saved(tmp_path):
    page = write(tmp_path, scalars=SCALARS, shifts=SHIFTS)
    assert files(tmp_path) == BASIC | {"curves.png", "shift.png", "shift.csv"}
    assert page.text.index("What the first layer looks for") < page.text.index("What moving the images does")
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 8
    lines = (tmp_path / "shift.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "network,moved,pixels,accuracy"
    assert lines[1:] == ["a & b,up to,0,0.9", "a & b,up to,1,0.8", "a & b,corner,0,0.9", "a & b,corner,1,0.7"]


class NoFilters(TwoLayerCNN):
    def __init__(self):
        super().__init__(num_classes=3)
        self.features, self.head = torch.nn.AvgPool2d(2), torch.nn.Linear(14 * 14, 3)


def test_a_first_layer_that_cannot_be_drawn_is_left_out(tmp_path):
    page = write(tmp_path, net=NoFilters().eval())
    assert files(tmp_path) == BASIC - {"filters.png"}
    assert "What the first layer looks for" not in page.text


def test_a_network_without_features_and_head(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3)).eval()
    page = write(tmp_path, net=net)
    assert files(tmp_path) == BASIC - {"feature_maps.png"}
    assert "What an image becomes" not in page.text
    assert ["network", "Sequential, 2,355 parameters"] in page.rows


def test_without_test_images(tmp_path):
    path = write_report(
        tmp_path, "Data", TwoLayerCNN(num_classes=3).eval(), {"best": evaluation()}, None, torch.rand(1, 28, 28), {}
    )
    assert files(tmp_path) == BASIC - {"mistakes.png"}
    assert "Its most confident mistakes" not in Page(path.read_text(encoding="utf-8")).text


def test_pictures_fit_a_narrow_screen(tmp_path):
    page = write(tmp_path, scalars=SCALARS, shifts=SHIFTS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"^img {.* max-width: min\(100%, \d+rem\);", html, re.MULTILINE)
    assert len(re.findall(r"<p>[^<]*</p>\n<img ", html)) == len([tag for tag, _ in page.tags if tag == "img"])


def test_metrics_that_count_classes_alike(tmp_path):
    page, one = write(tmp_path), evaluation()
    recall = (one.by_class["recall"] * 100).mean().item()
    f1 = (one.by_class["f1"] * 100).mean().item()
    assert ["mean of the classes", f"{recall:.2f} %", f"{f1:.2f} %"] in page.rows


class Broken(MLP):
    def forward(self, images):
        raise NameError("name 'widht' is not defined")


def test_an_error_leaves_no_page(tmp_path):
    with pytest.raises(NameError):
        write(tmp_path, net=Broken())
    assert "report.html" not in files(tmp_path)


def test_colour_images(tmp_path):
    write(tmp_path, channels=3)
    assert files(tmp_path) == BASIC
