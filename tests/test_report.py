import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_lightning.reporting.evaluation import Evaluation
from cnn_lightning.reporting.report import Picture, write_report

NAMES = ("T-shirt/top", "<i>trouser</i>", "Dress & co")
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


def write(folder, evaluations=None, **more):
    folder.mkdir(exist_ok=True)
    facts = {"checkpoint": "logs/a&b.ckpt", "network": "<script>alert(1)</script>"}
    path = write_report(folder, "<s>Net</s> & co", evaluations or {"best": evaluation()}, images(), facts, **more)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def files(folder):
    return {path.name for path in folder.iterdir()}


BASIC = {"predictions.csv", "confusion_matrix.png", "reliability.png", "mistakes.png", "figures.json", "report.html"}


def test_one_checkpoint(tmp_path):
    page, one = write(tmp_path, scalars=SCALARS), evaluation()
    assert files(tmp_path) == BASIC | {"curves.png"}
    assert ["checkpoint", "logs/a&b.ckpt"] in page.rows
    assert f"{100 * one.accuracy:.2f} %" in page.text
    assert f"{one.correct} of 120 images" in page.text
    assert f"{one.loss:.4f}" in page.text
    assert f"{100 * one.calibration_error:.2f} %" in page.text
    shares = [f"{100 * share[2]:.2f} %" for share in (one.precision, one.recall, one.f1)]
    assert ["Dress & co", *shares, "40"] in page.rows
    assert "Side by side" not in page.text


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path):
    page = write(tmp_path, scalars=SCALARS)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a", "i"})
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(picture["src"].startswith("data:image/png;base64,") and picture["alt"] for picture in pictures)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", html)


def test_all_texts_are_shown_as_they_are(tmp_path):
    further = [Picture("more", '<s>"more"</s>', "<s>1 & $title</s>", Image.new("RGB", (3, 3)))]
    page = write(tmp_path, {"<u>": evaluation(), "&amp;": evaluation(1)}, further=further)
    texts = ("<s>Net</s> & co", "<script>alert(1)</script>", "<u>", "&amp;", "<i>trouser</i>", "<s>1 & $title</s>")
    for text in (*texts, '<s>"more"</s>'):
        assert text in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "s", "u", "i"})
    assert '<s>"more"</s>' in [attributes.get("alt") for _, attributes in page.tags]


def test_json_has_the_figures(tmp_path):
    write(tmp_path)
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["title"] == "<s>Net</s> & co"
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
    assert ["Dress & co", *(f"{100 * shown.recall[2]:.2f} %" for shown in (one, two, both))] in page.rows
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["checkpoints"] == {"one": one.figures(), "two": two.figures(), "ensemble": both.figures()}
    two.write_csv(tmp_path / "two.csv")
    assert (tmp_path / "predictions_2.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_no_mistake_is_said(tmp_path):
    page = write(tmp_path, {"best": evaluation(strength=50)})
    assert files(tmp_path) == BASIC
    assert "It made 0 mistakes" in page.text


def test_further_pictures_are_saved_and_shown(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    Image.new("RGB", (7, 7), "red").save(folder / "shift.png")
    further = [
        Picture("filters", "Filters", "What the first layer looks for.", Image.new("RGB", (3, 3))),
        Picture("shift", "Shift", "Already there."),
    ]
    page = write(folder, further=further)
    sizes = []
    for name in ("filters", "shift"):
        with Image.open(folder / f"{name}.png") as image:
            sizes.append(image.size)
    assert sizes == [(3, 3), (7, 7)]
    assert page.text.index("What the first layer looks for.") < page.text.index("Already there.")
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 5


def test_an_error_leaves_no_page(tmp_path):
    broken = Picture("broken", "Broken", "Its file is missing.")
    with pytest.raises(FileNotFoundError):
        write(tmp_path, further=[broken])
    assert "report.html" not in files(tmp_path)


def test_colour_images(tmp_path):
    write_report(tmp_path, "Colour", {"best": evaluation()}, images().expand(-1, 3, -1, -1), {})
    assert files(tmp_path) == BASIC
