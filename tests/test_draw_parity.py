"""Pages in a browser, offline: each test image gets PyTorch's class, each drawing and photo Python's preparation."""

import base64
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_lightning import ImageClassifier
from cnn_lightning.cli.draw import draw
from cnn_lightning.cli.fit import fit
from cnn_lightning.data import MNIST, Digits, FashionMNIST, ImageFolder
from cnn_lightning.data.photos import read_photo
from tests import composed_photos, docs_page
from tests.browser import Page, needs_browser
from tests.test_draw_prepare import drawn_picture

pytestmark = [pytest.mark.campaign, needs_browser]

CLASSIFY = """
const [packed, length, done] = arguments;
(async () => {
  const images = await inflate(packed), scores = [], started = performance.now();
  for (let i = 0; i < images.length; i += length) {
    scores.push(...(await draw.classify(images.subarray(i, i + length))));
  }
  return [scores, (performance.now() - started) / (images.length / length)];
})().then(done, (error) => done(String(error)));
"""


def check(browser, tmp_path, data, options, half=False):
    """Train for an epoch, write the page, and compare all test images; print what came out."""
    fit([*options, "--trainer.max_epochs=1", "--dashboard=false", f"--trainer.default_root_dir={tmp_path}"])
    draw([f"--trainer.default_root_dir={tmp_path}", f"--output={tmp_path}/page.html", f"--half={str(half).lower()}"])
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    net = ImageClassifier.load_from_checkpoint(checkpoint).net.eval()
    data.prepare_data()
    data.setup("test")
    images, _ = data.part("test")
    with torch.no_grad():
        expected = torch.cat([net(data.normalize(batch)) for batch in images.split(500)])
    browser.set_network_conditions(offline=True, latency=0, throughput=0)
    Page(browser, (tmp_path / "page.html").as_uri())
    browser.set_script_timeout(1800)
    found, times = [], []
    for batch in images.split(1000):
        packed = base64.b64encode(zlib.compress(batch.numpy().tobytes())).decode()
        scores, time = browser.execute_async_script(CLASSIFY, packed, batch[0].numel())
        found.append(torch.tensor(scores).view(len(batch), -1))
        times.append(time)
    scores = torch.cat(found)
    same, difference = int((scores.argmax(1) == expected.argmax(1)).sum()), (scores - expected).abs().max().item()
    size = (tmp_path / "page.html").stat().st_size
    kind = f"{type(net).__name__} {type(data).__name__}{' half' if half else ''}"
    print(f"\n{kind}: {same:,} of {len(images):,}, {difference:.1e}, {np.median(times):.2f} ms, {size:,} bytes")
    return same, len(images), difference


NETS = {
    "SigmoidCNN": [],
    "MLP": [],
    "LeNetCNN": ["--model.net.batch_norm=true"],
    "TwoLayerCNN": ["--model.net.batch_norm=true"],
    "FastCNN": [],
    "VGGCNN": [],
    "ResNetCNN": [],
    "DropoutCNN": [],
    "WideCNN": [],
    "DeepCNN": [],
}


@pytest.mark.real_data
@pytest.mark.parametrize("net", NETS)
def test_all_mnist_test_images(net, browser, tmp_path):
    same, total, difference = check(browser, tmp_path, MNIST(), ["--data=MNIST", f"--model.net={net}", *NETS[net]])
    assert (same, total) == (10_000, 10_000)
    assert difference < 1e-4


@pytest.mark.real_data
@pytest.mark.parametrize("net", ["LeNetCNN", "TwoLayerCNN"])
def test_half_precision(net, browser, tmp_path):
    same, _, difference = check(browser, tmp_path, MNIST(), ["--data=MNIST", f"--model.net={net}"], half=True)
    assert same >= 9_990
    assert difference < 0.02


@pytest.mark.real_data
def test_all_fashion_mnist_test_images(browser, tmp_path):
    same, total, difference = check(browser, tmp_path, FashionMNIST(pad=2), ["--data=FashionMNIST", "--data.pad=2"])
    assert (same, total) == (10_000, 10_000)
    assert difference < 1e-4


def test_digits(browser, tmp_path):
    same, total, difference = check(browser, tmp_path, Digits(), ["--data=Digits"])
    assert same == total == 360
    assert difference < 1e-4


def test_pictures_in_colour(browser, tmp_path):
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 60, 60)), ("green", (60, 200, 60)), ("blue", (60, 60, 200))):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = np.clip(random.normal(colour, 90, (40, 52, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    root = tmp_path / "pictures"
    options = ["--data=ImageFolder", f"--data.root={root}", "--data.image_size=32", "--model.net=ResNetCNN"]
    same, total, difference = check(browser, tmp_path, ImageFolder(root, image_size=32), options)
    assert same == total == 18
    assert difference < 1e-4


def difference(page, picture):
    """Largest difference of what the page feeds the network from what Python makes of a picture."""
    return (page.feed().int() - MNIST.preparation(picture).int()).abs().max().item()


def test_drawings_are_prepared_as_in_python(browser):
    page, differences, latencies = Page(browser, docs_page.PAGE.as_uri()), [], []
    for number in range(200):
        rng = np.random.default_rng(number)
        page.all("#pens button")[number % 3].click()
        strokes = composed_photos.written(number % 10, number % 8, rng)
        points = np.concatenate(strokes)
        low, size, side = points.min(0), np.ptp(points, axis=0).max(), rng.uniform(70, 180)
        corner = rng.uniform(15, 209 - side, 2)
        for stroke in strokes:
            page.stroke([tuple(point) for point in (stroke - low) / size * side + corner])
        pixels = page.js("return [...byId('pad').getContext('2d').getImageData(0, 0, PAPER, PAPER).data]")
        picture = Image.fromarray(np.array(pixels, np.uint8).reshape(196, 196, 4)[..., :3])
        differences.append(difference(page, picture))
        latencies += page.js("return draw.latencies.splice(0)")
        page["clear"].click()
    counts = np.bincount(differences)
    print(
        f"\ndrawings by largest difference: {counts}; {np.median(latencies):.1f} ms, {np.quantile(latencies, 0.9):.1f}"
    )
    assert max(differences) <= 1


@pytest.mark.real_data
def test_photos_are_prepared_as_in_python(browser, tmp_path):
    page, differences = Page(browser, docs_page.PAGE.as_uri()), []
    for number in range(100):
        path = tmp_path / f"{number}.png"
        photo = drawn_picture(number) if number % 2 else composed_photos.compose(number)[0]
        photo.save(path)
        feed = page.feed()
        page.choose(path)
        page.until(lambda feed=feed: page.feed() is not None and (feed is None or not torch.equal(page.feed(), feed)))
        differences.append(difference(page, read_photo(path)))
    print(f"\nphotos by largest difference: {np.bincount(differences)}")
    assert max(differences) <= 1
