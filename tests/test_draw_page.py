"""The page of scripts/draw.py in a browser: what one does and sees there."""

import base64
import functools
import io
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from cnn_lightning.data.decoding import ToSquare
from cnn_lightning.data.mnist import MNIST
from cnn_lightning.draw.page import model_of, packed_images, render_page
from cnn_lightning.reporting.calibration import Calibration
from tests.browser import By, Keys, Page, PointerInput, Select, needs_browser

pytestmark = needs_browser

EVIL = "<script>alert(1)</script>"
LONG = "a class whose name has more than fifty letters in it, indeed"
CLASSES = ["0", "1", "2", LONG, EVIL]
THRESHOLD = 0.49
SEVEN = [(60, 50), (110, 52), (160, 50), (130, 110), (100, 180)]
LINE = [(60, 60), (150, 150)]


class TinyNet(nn.Module):
    """Convolution, ReLU, pooling and a linear layer, with weights that no pixel leaves without effect."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 4, 5)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(4 * ((side - 4) // 2) ** 2, classes)

    def forward(self, x):
        return self.linear(self.pool(self.relu(self.conv(x))).flatten(1))


NET = TinyNet(1, 28, len(CLASSES)).eval()


def normalize(images):
    return images / 127.5 - 1


@functools.cache
def five_images():
    """Five digits of a class each, the last of which is misclassified."""
    images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
    for k in range(5):
        images[k, 0, 6:22, 4 + 3 * k : 8 + 3 * k] = 255
    return images


@pytest.fixture(scope="module")
def page_url(tmp_path_factory):
    names = {"facts": ["3 parameters"], "pad": 0, "temperature": 0.1, "threshold": THRESHOLD}
    grey = {
        "title": f"TinyNet on MNIST {EVIL}",
        "dataset": "MNIST",
        "source": f"{EVIL}.ckpt",
        "classes": CLASSES,
        "preparation": {"kind": "Preparation", **asdict(MNIST.preparation)},
        "images": packed_images(five_images(), torch.arange(5), torch.tensor([0, 1, 2, 3, 0])),
        **model_of(NET, [1 / 127.5], [-1], (1, 28, 28), half=False),
    }
    colour = {
        "title": "TinyNet on photos",
        "dataset": "photos",
        "source": "b.ckpt",
        "classes": [f"class {k}" for k in range(14)],
        "preparation": {"kind": "ToSquare", **asdict(ToSquare(32, False, "crop"))},
        "images": None,
        **model_of(TinyNet(3, 32, 14).eval(), [1 / 127.5] * 3, [-1] * 3, (3, 32, 32), half=False),
    }
    path = tmp_path_factory.mktemp("draw") / "page.html"
    path.write_text(render_page(grey["title"], [grey | names, colour | names]))
    return path.as_uri()


@pytest.fixture
def page(browser, page_url):
    page = Page(browser, page_url)
    page.settle()
    yield page
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def logits(images):
    with torch.no_grad():
        return NET(normalize(images.float()))


def test_bars_move_while_one_draws_and_nothing_else_does(page):
    assert page["hint"].is_displayed()
    assert page.scores() is None
    assert sum(page.bars()) == 0
    places = [page[name].rect for name in ("bars", "layers", "panel", "sees")]
    page.stroke(SEVEN[:2])
    first = page.bars()
    page.stroke(SEVEN[1:])
    assert [page[name].rect for name in ("bars", "layers", "panel", "sees")] == places
    assert sum(first) == pytest.approx(100, abs=0.5)
    assert page.bars() != first
    assert not page["hint"].is_displayed()
    assert torch.allclose(page.scores(), logits(page.feed()[None])[0], atol=1e-4)
    top = CLASSES[int(page.scores().argmax())]
    assert page["#verdict b"].text == top
    page.until(lambda: page["said"].get_attribute("textContent").startswith(top))
    assert page.js("return draw.latencies.length") >= 2


def test_what_the_network_sees_is_the_drawing_prepared_as_the_dataset_was(page):
    page.stroke(SEVEN)
    png = page.browser.execute_script("return document.querySelector('#pad').toDataURL()").split(",")[1]
    drawn = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    assert (page.feed().int() - MNIST.preparation(drawn).int()).abs().max() <= 1
    prepared = page.feed()
    page["prepare"].click()
    page.settle()
    rows, _ = np.nonzero(page.feed()[0].numpy() > 127)
    assert not torch.equal(page.feed(), prepared)
    assert rows.mean() == pytest.approx(np.nonzero(np.array(drawn.convert("L")) > 127)[0].mean() / 8, abs=1)
    assert np.ptp(rows) < 20  # it is only resized


def test_undo_clear_and_widths_of_the_pen(page):
    inks = []
    for pen in page.all("#pens button"):
        pen.click()
        page.stroke(LINE)
        inks.append(page.ink())
        page["undo"].click()
        page.settle()
        assert page.ink() == 0
    assert inks[0] < inks[1] < inks[2]
    page.stroke(LINE)
    page["clear"].click()
    page.settle()
    assert page.ink() == 0
    assert page.scores() is None
    assert not page.all("#bars .top")
    page["#undo"].send_keys(Keys.CONTROL, "z")  # takes the clearing back
    page.settle()
    assert page.ink() == inks[2]
    page.keys(Keys.CONTROL, "z")
    assert page.ink() == 0


def test_picture_from_a_file(page, tmp_path):
    photo = Image.new("RGB", (150, 90), "#f0ead8")
    ImageDraw.Draw(photo).line([(60, 15), (62, 45), (90, 70)], "#203080", 7)
    photo.save(tmp_path / "digit.png")
    page.choose(tmp_path / "digit.png")
    page.until(lambda: page.feed() is not None)
    assert (page.feed().int() - MNIST.preparation(photo).int()).abs().max() <= 1
    (tmp_path / "text.png").write_text("not a picture")
    page.choose(tmp_path / "text.png")
    page.until(lambda: "text.png cannot be read" in page["error"].text)
    Image.new("L", (60, 60), 200).save(tmp_path / "blank.png")
    page.choose(tmp_path / "blank.png")
    page.until(lambda: "Nothing but background" in page["error"].text)
    assert page.scores() is None
    page["undo"].click()
    page.until(lambda: page.feed() is not None)
    assert page["error"].text == ""


def test_dragging_moves_the_prepared_image_by_whole_pixels(page):
    page.stroke(SEVEN)
    before = page.feed()
    page["drag"].send_keys(Keys.SPACE)
    page["feed"].send_keys(Keys.RIGHT, Keys.RIGHT, Keys.UP)
    page.settle()
    moved = torch.zeros_like(before)
    moved[:, :27, 2:] = before[:, 1:, :26]
    assert torch.equal(page.feed(), moved)
    assert "2 right, −1 down" in page["moved"].text
    page["centre"].click()
    page.settle()
    assert torch.equal(page.feed(), before)
    page.drag(page["feed"], [(0.5, 0.5), (0.5, 0.6), (0.5, 0.5 + 3.5 / 28)])
    assert torch.equal(page.feed()[:, 3:], before[:, :25])
    page["drag"].click()
    page.settle()
    assert torch.equal(page.feed(), before)


def test_test_images_by_class(page):
    unsure = []
    for button, image in zip(page.all("#images button"), five_images(), strict=True):
        button.click()
        page.settle()
        assert torch.equal(page.feed(), image)
        assert torch.allclose(page.scores(), logits(image[None])[0], atol=1e-4)
        (probabilities,) = Calibration(temperature=0.1).apply(logits(image[None]).softmax(1)).tolist()
        assert page.bars() == pytest.approx([100 * each for each in probabilities], abs=0.06)
        assert f"{max(probabilities):.1%}" in page["verdict"].text
        unsure.append(max(probabilities) < THRESHOLD)
        assert (f"unsure: below {THRESHOLD:.1%}" in page["verdict"].text) == unsure[-1]
    assert set(unsure) == {True, False}
    assert page["limit"].text == f"unsure below {THRESHOLD:.1%}"
    assert page["about"].text == f"Test image: label {EVIL}, predicted 0"
    Select(page["classes"]).select_by_visible_text("misclassified")
    (wrong,) = page.all("#images button")
    assert wrong.get_attribute("className") == "wrong"
    page.stroke(LINE)  # over the image
    assert page["about"].text == ""


def test_value_pointed_at_is_explained_in_numbers_that_add_up(page):
    page.all("#images button")[1].click()
    page.settle()
    page.drag(page.all(".layer")[0].find_elements(By.CSS_SELECTOR, ".map")[2], [(0.5, 0.5)])
    layer, channel, y, x = page.js("const s = app.layers.selected; return [s.view.index, s.channel, s.y, s.x]")
    with torch.no_grad():
        value = NET.conv(normalize(five_images()[1:2].float()))[0, channel, y, x].item()
    assert (layer, channel) == (0, 2)
    assert page["#panel h3"].text == f"conv, channel 2, row {y}, column {x}: {value:.3f}".replace("-", "−")
    tables = [[float(cell.text.replace("−", "-")) for cell in table.find_elements(By.TAG_NAME, "td")]
              for table in page.all("#panel table")]  # fmt: skip
    inputs, kernel, products = map(np.array, tables)
    assert inputs.shape == (25,)
    assert np.allclose(inputs * kernel, products, atol=2e-3)
    assert products.sum() + NET.conv.bias[2].item() == pytest.approx(value, abs=0.02)
    assert len(page.all("#eye .frame")) == 1
    page.click(page.all(".layer")[-1].find_element(By.CSS_SELECTOR, ".map"))
    assert "score of" in page["#panel h3"].text


def test_channel_off_changes_the_prediction(page):
    page.all("#images button")[3].click()
    page.settle()
    before = page.scores()
    page.js("app.layers.views[0].mapOf(0).focus()")
    page.keys(Keys.ARROW_RIGHT, shift=True)
    page.keys("x")
    with torch.no_grad():
        values = NET.conv(normalize(five_images()[3:4].float()))
        values[:, 1] = 0
        expected = NET.linear(NET.pool(NET.relu(values)).flatten(1))[0]
    assert torch.allclose(page.scores(), expected, atol=1e-4)
    assert "off" in page.js("return document.activeElement.className")
    assert "1 of 4 off" in page[".layer"].text
    assert "all channels on: " in page["verdict"].text
    page["all-on"].click()
    page.settle()
    assert torch.allclose(page.scores(), before)
    page.click(page.all(".layer")[0].find_elements(By.CSS_SELECTOR, ".map")[3])
    page["#panel header button"].click()
    page.settle()
    assert not torch.allclose(page.scores(), before)


def test_occlusion_map_until_the_drawing_changes(page):
    assert not page["occlude"].is_enabled()
    page.stroke(SEVEN)
    page["occlude"].click()
    page.until(page["heat"].is_displayed)
    assert f"probability of {CLASSES[int(page.scores().argmax())]}" in page["legend"].text
    heat = "return [...document.querySelector('#heat').getContext('2d').getImageData(0,0,28,28).data]"
    assert np.array(page.js(heat))[3::4].max() > 200
    page.stroke(LINE)
    assert not page["heat"].is_displayed()
    assert page["legend"].text == ""


def test_other_network_keeps_the_drawing(page):
    page.stroke(SEVEN)
    ink = page.ink()
    Select(page["models"]).select_by_index(1)
    page.until(lambda: page["title"].text == "TinyNet on photos")
    assert page.ink() == ink
    assert page.feed(3).shape == (3, 32, 32)
    assert len(page.bars()) == 10  # of 14 classes, in order
    assert page.bars() == sorted(page.bars(), reverse=True)
    Select(page["models"]).select_by_index(0)
    page.until(lambda: page["title"].text != "TinyNet on photos")
    page.until(lambda: page.all("#images button"))[2].click()
    page.settle()
    Select(page["models"]).select_by_index(1)
    page.until(lambda: page["title"].text == "TinyNet on photos")
    assert page.feed(3).float().mean((1, 2)).unique().numel() == 1  # the grey image of the other dataset
    assert page["error"].text == ""


def test_keyboard_alone(page):
    def tab_to(selector):
        for _ in range(60):
            page.keys(Keys.TAB)
            if page.js("return document.activeElement.matches(arguments[0])", selector):
                return
        pytest.fail(f"the tab key does not reach {selector}")

    page.js("document.activeElement.blur()")
    for selector in ("#pens button", "#choose", "#prepare", "#drag", "#classes", "#images button"):
        tab_to(selector)
    page.keys(Keys.ENTER)
    assert torch.equal(page.feed(), five_images()[0])
    tab_to(".map")
    page.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert "row 14, column 11" in page["#panel h3"].text
    page.keys(Keys.ESCAPE)
    assert page.js("return app.layers.selected") is None
    tab_to(".strip")
    assert "value 0" in page["#panel h3"].text


def test_finger_draws_and_does_not_scroll(page):
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    page.js("scrollTo(0, 30)")
    before = page.js("return scrollY")
    page.drag(page["pad"], [(0.4, 0.8), (0.4, 0.5), (0.4, 0.2)], PointerInput("touch", "finger"))
    page.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert page.ink() > 1000
    assert page.js("return scrollY") == before == 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_fits_the_window(page, width, scheme):
    size = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page.stroke(SEVEN)
        page.js("app.layers.held = true; app.layers.select({ view: app.layers.views[0], channel: 3, y: 2, x: 2 })")
        assert page.js("return document.documentElement.scrollWidth") <= width
        light = page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light == (scheme == "light")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_names_are_texts_and_nothing_is_requested(page):
    assert page["title"].text == f"TinyNet on MNIST {EVIL}"
    assert page.all("#bars li")[4].text.startswith(EVIL)
    assert len(page.all("script")) == 4  # the data, the packed program, what unpacks it, and the program
    assert page.js("return performance.getEntriesByType('resource').length") == 0
    requests = [
        entry["message"] for entry in page.browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]
    ]
    assert all(
        '"url":"file:' in request or '"url":"data:' in request or '"url":"blob:' in request for request in requests
    )
    assert "default-src 'none'" in page.all("meta[http-equiv]")[0].get_attribute("content")
    assert page.browser.execute_async_script(
        "document.addEventListener('securitypolicyviolation', (e) => arguments[0](e.violatedDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => 0)"
    ) == "connect-src"  # fmt: skip
    page.browser.get_log("browser")  # says so too
