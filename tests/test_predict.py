import csv
import os
import re
import shutil
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from pillow_heif import register_heif_opener

from cnn_lightning import Digits, ImageClassifier
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import _natural_key, predict
from cnn_lightning.data.picture_formats import SUFFIXES
from cnn_lightning.reporting.calibration import load_calibration

CPU = "--trainer.accelerator=cpu"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A run on Digits, whose networks know real digits after two epochs."""
    root = tmp_path_factory.mktemp("logs")
    settings = ["--data=Digits", "--trainer.max_epochs=2", "--model.optimizer.lr=0.01", "--dashboard=false"]
    fit([CPU, *settings, f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"])
    return root


@pytest.fixture
def run(logs):
    """The folder of this run, in a folder where it is the newest one."""
    shutil.copytree(logs, "logs")
    return Path("logs/TwoLayerCNN-Digits/version_0")


@pytest.fixture
def digits():
    """Twenty test images of Digits, dark on white, in a folder, with their labels."""
    data = Digits()
    data.setup("test")
    images, labels = data.part("test")
    folder = Path("photos/more")
    folder.mkdir(parents=True)
    for index, image in enumerate(images[:20, 0].numpy()):
        Image.fromarray(255 - image).save(folder.parent / f"{'more/' * (index % 2)}{index:02}.png")
    return {f"{index:02}.png": str(label) for index, label in enumerate(labels[:20].tolist())}


def table(output):
    """File -> class, probability in percent, second class, probability in percent, unsure."""
    rows = re.findall(r"^(\S+\.\w+) +(\d) +(\S+)% +(\d) +(\S+)%(  unsure)?$", output, re.MULTILINE)
    return {
        Path(file).name: (first, float(p), second, float(q), bool(flag)) for file, first, p, second, q, flag in rows
    }


def test_names_what_pictures_in_a_folder_show(run, digits, capsys):
    predict([CPU, "photos"])
    output = capsys.readouterr().out
    threshold = float(re.search(r"^Unsure below (\S+)%", output, re.MULTILINE)[1])
    shown = table(output)
    assert shown.keys() == digits.keys()
    right = sum(shown[name][0] == digits[name] for name in digits)
    assert right >= 17
    for first, p, second, q, unsure in shown.values():
        assert first != second
        assert p >= q
        assert p + q <= 100.11
        assert unsure == (p < threshold) or p == pytest.approx(threshold, abs=0.051)


def test_csv_and_picture(run, digits, capsys):
    Path("photos/note.txt").write_text("not a picture, and not taken for one")
    Path("photos/bad.png").write_text("text")
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "photos", "--csv=out.csv", "--picture=seen.png"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: photos/bad.png: is not a picture")
    shown = table(captured.out)
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert rows.keys() == digits.keys() | {"bad.png"}
    assert rows["bad.png"]["error"].startswith("is not a picture")
    assert rows["bad.png"]["class"] == ""
    for name, (first, p, second, q, unsure) in shown.items():
        row = rows[name]
        assert (row["class"], row["second_class"], row["unsure"]) == (first, second, str(int(unsure)))
        assert float(row["probability"]) * 100 == pytest.approx(p, abs=0.051)
        assert float(row["second_probability"]) * 100 == pytest.approx(q, abs=0.051)
        assert sum(float(row[f"p({digit})"]) for digit in range(10)) == pytest.approx(1, abs=1e-5)
    with Image.open("seen.png") as picture:
        seen = np.asarray(picture)
    # The first picture, a dark digit on white, and next to it what the network sees, white on black.
    assert seen[2:86, 2:86].mean() > 128 > seen[2:86, 86:170].mean()


@pytest.fixture
def captions(monkeypatch):
    """Captions of --picture."""
    from cnn_lightning.cli import predictions as module

    kept, draw = [], module.grid
    monkeypatch.setattr(module, "grid", lambda images, texts, **more: kept.extend(texts) or draw(images, texts, **more))
    return kept


def test_class_and_percentage_are_told_apart(run, digits, captions, capsys):
    predict([CPU, "photos", "--picture=seen.png"])
    shown = table(capsys.readouterr().out)
    lines = dict(text.split("\n") for text in captions)
    assert lines.keys() == digits.keys()
    for name, (first, p, *_) in shown.items():
        assert lines[name] in {f"{first} ({share:.0f}%)" for share in (p - 0.05, p, p + 0.05)}


def test_what_classifies_is_said_first(train, run, digits, capsys, error_of):
    predict([CPU, "photos", "--csv=out.csv"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Classifying with {run}/checkpoints/best.ckpt: TwoLayerCNN, trained on Digits, epoch 2"
    assert lines[1].startswith("Unsure below ")
    message = error_of(predict, CPU, "photos", "--risk=0.2")
    assert message.endswith("is calibrated for a risk of 0.10%: run evaluate.py with --risk 0.2 first")
    assert lines[2] == ""
    assert lines[3].startswith("file ")
    assert Path("out.csv").read_text().startswith("file,class,probability")
    clothes = train("--data=FashionMNIST", "--model.net=MLP") / "checkpoints/last.ckpt"
    predict([CPU, "photos"])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"Classifying with {clothes.with_name('best.ckpt')}: MLP, trained on FashionMNIST, epoch 1"
    predict([CPU, "photos", "--data=MNIST", f"--ckpt_path={clothes}"])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"Classifying with {clothes}: MLP, trained on FashionMNIST, epoch 1; pictures prepared as for MNIST"


OWN = """
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

class Colours(LightningDataModule):
    class_names = ("red", "green", "blue wool")
    num_classes, in_channels, image_size = 3, 3, 16

    def loader(self):
        labels = torch.arange(60) % 3
        images = 100 * torch.rand(60, 3, 16, 16)
        images[torch.arange(60), labels] += 155
        return torch.utils.data.DataLoader([*zip(self.normalize(images), labels)], batch_size=6)

    train_dataloader = val_dataloader = test_dataloader = loader

    def normalize(self, images):
        return images.float() / 255 - 0.5

    def preparation(self, photo):
        return pil_to_tensor(photo.convert("RGB").resize((16, 16)))

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 3)

    def forward(self, images):
        return self.layer(images.flatten(1))
"""


@pytest.fixture
def colours(monkeypatch, capsys):
    """A run of a plain network on a plain data module, both in a file of the user's; returns the module."""
    Path("own_colours.py").write_text(OWN)
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "own_colours", raising=False)
    own = ["--data=own_colours.Colours", "--model.net=own_colours.Tiny", "--trainer.enable_progress_bar=false"]
    fit([CPU, *own, "--trainer.max_epochs=2", "--model.optimizer.lr=0.01", "--dashboard=false"])
    for name, colour in (("a.png", (250, 20, 30)), ("b.png", (20, 250, 30)), ("c.png", (20, 30, 250))):
        Image.new("RGB", (50, 30), colour).save(name)
    capsys.readouterr()
    yield sys.modules["own_colours"]
    del sys.modules["own_colours"]


def test_own_network_and_own_colour_pictures(colours, capsys):
    own = ["--data=own_colours.Colours", "--model.net=own_colours.Tiny"]
    predict([CPU, *own, "a.png", "b.png", "c.png", "--csv=out.csv", "--picture=seen.png"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("best.ckpt: Tiny, trained on Colours, epoch 2")
    assert [row["class"] for row in rows_of("out.csv").values()] == ["red", "green", "blue wool"]
    assert "p(blue wool)" in rows_of("out.csv")["a.png"]
    with Image.open("seen.png") as picture:
        seen = np.asarray(picture)
    for index in range(3):  # of each picture, the left half is the photo, the right half what the network sees
        right = seen[80, index * (seen.shape[1] // 3) + 126]
        assert right.argmax() == index
        assert right.max() > 240
        assert sorted(right)[1] < 40


def test_own_data_module_that_lacks_something(colours, error_of, monkeypatch):
    own = [CPU, "--data=own_colours.Colours", "--model.net=own_colours.Tiny", "a.png"]
    monkeypatch.setattr(colours.Colours, "preparation", lambda self, photo: np.zeros((16, 16)))
    assert "preparation of Colours returned ndarray, expected a uint8 tensor" in error_of(predict, *own)
    monkeypatch.setattr(colours.Colours, "preparation", lambda self, photo: torch.zeros(3, 16, photo.width))
    line = error_of(predict, *own)
    assert "returned torch.float32 of shape (3, 16, 50), expected a uint8 tensor of shape (C, H, W)" in line
    monkeypatch.setattr(
        colours.Colours, "preparation", lambda self, photo: torch.zeros(3, 16, photo.width, dtype=torch.uint8)
    )
    Image.new("RGB", (9, 9)).save("d.png")
    assert "images of shape (3, 16, 9) and (3, 16, 50), expected one shape" in error_of(predict, *own, "d.png")
    monkeypatch.delattr(colours.Colours, "preparation")
    line = error_of(predict, *own)
    assert "Colours does not say how its images were made: give the class an attribute preparation" in line
    assert "docs/data.md" in line
    monkeypatch.setattr(colours.Colours, "preparation", lambda self, photo: None, raising=False)
    monkeypatch.delattr(colours.Colours, "normalize")
    expected = "Colours does not say what its network is given: give the class a method normalize"
    assert expected in error_of(predict, *own)


def test_a_mistake_in_own_preparation_is_a_traceback(colours, monkeypatch):
    def fails(self, photo):
        return photo.no_such_method()

    monkeypatch.setattr(colours.Colours, "preparation", fails)
    with pytest.raises(AttributeError, match="no_such_method"):
        predict([CPU, "--data=own_colours.Colours", "--model.net=own_colours.Tiny", "a.png"])


def test_folder_of_colour_pictures_that_is_gone(capsys, captions):
    colours = {"leaf": (20, 200, 30), "rose": (220, 20, 40), "sky": (90, 140, 250)}
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        Path("plants", name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(colour + rng.normal(0, 20, (20, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"plants/{name}/{number}.png")
        Image.new("RGB", (40, 25), colour).save(f"{name}.png")
    settings = ["--data=ImageFolder", "--data.root=plants", "--data.image_size=28", "--model.optimizer.lr=0.01"]
    fit([CPU, *settings, "--trainer.max_epochs=3", "--dashboard=false", "--trainer.enable_progress_bar=false"])
    shutil.rmtree("plants")
    predict([CPU, *(f"{name}.png" for name in colours), "--csv=out.csv", "--picture=seen.png"])
    assert "TwoLayerCNN, trained on plants, epoch 3" in capsys.readouterr().out
    assert [row["class"] for row in rows_of("out.csv").values()] == [*colours]
    assert [caption.split("\n")[1].partition(" (")[0] for caption in captions] == [*colours]


def test_probabilities_are_those_of_the_network(run, digits):
    predict([CPU, "photos/00.png", "--csv=out.csv"])
    data = Digits()
    with Image.open("photos/00.png") as photo:
        image = data.preparation(photo)
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    with torch.no_grad():
        probabilities = model.predict_step(data.normalize(image[None]))
    (expected,) = load_calibration(run / "checkpoints/best.ckpt").apply(probabilities)
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert [float(row[f"p({digit})"]) for digit in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


# How HEIC, AVIF and MP4 files begin.
HEIC, AVIF, MP4 = (b"\0\0\0\x18ftyp" + brand + bytes(500) for brand in (b"heic", b"avif", b"isom"))
NOT_READ = {name: name.rpartition(".")[2].upper() for name in (
    "d.jxl", "e.svg", "f.dng", "g.nef", "h.cr2", "i.RAW", "j.ico", "k.ppm", "l.jp2",
    "m.psd", "n.tga",
)}  # fmt: skip


def test_pictures_in_other_formats_are_named(run, digits, capsys):
    for name in NOT_READ:
        Path("photos", name).write_bytes(b"some bytes")
    with Image.open("photos/00.png") as photo:
        photo.save("photos/g.nef", format="TIFF")  # raw data of a camera: a TIFF that holds a thumbnail
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "photos", "--csv=out.csv"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    lines = [f"error: photos/{name}: {error_for(kind)}" for name, kind in NOT_READ.items()]
    assert captured.err.splitlines()[-len(lines) :] == lines
    assert table(captured.out).keys() == digits.keys()
    rows = rows_of("out.csv")
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {
        name: error_for(kind) for name, kind in NOT_READ.items()
    }


def error_for(kind):
    return f"has the format {kind}, which is not read: save it as PNG or JPEG"


def test_a_picture_in_another_format_that_is_named(run, error_of, capsys):
    Path("a.nef").write_bytes(b"some bytes")
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "a.nef"])
    assert stopped.value.code == 2
    assert f"error: a.nef: {error_for('NEF')}" in capsys.readouterr().err
    Path("video.jpg").write_bytes(MP4)
    with pytest.raises(SystemExit):
        predict([CPU, "video.jpg"])
    assert "error: video.jpg: is not a picture, expected PNG" in capsys.readouterr().err


def test_photos_of_phones(run, digits, capsys):
    register_heif_opener()
    with Image.open("photos/00.png") as photo:
        photo = photo.convert("RGB").resize((280, 280), Image.Resampling.NEAREST)
    Path("phone").mkdir()
    kinds = {"a.heic": "HEIF", "b.HEIF": "HEIF", "d.jpg": "HEIF"}
    if "avif" in features.modules and features.check("avif"):  # Pillow 11.3 and newer
        kinds["c.avif"] = "AVIF"
    for name, kind in kinds.items():
        photo.save(f"phone/{name}", kind, quality=95)
    Path("phone/e.hif").write_bytes(b"some bytes")
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "phone", "--csv=out.csv"])
    assert stopped.value.code == 1
    rows = rows_of("out.csv")
    assert {name: row["class"] for name, row in rows.items()} == dict.fromkeys(kinds, digits["00.png"]) | {"e.hif": ""}
    assert rows["e.hif"]["error"].startswith("is not a picture")
    assert not [line for line in capsys.readouterr().err.splitlines() if not line.startswith("error: phone/e.hif: is")]


def test_photos_of_phones_without_what_reads_them(run, digits, capsys, monkeypatch):
    for name, content in (("a.heic", HEIC), ("b.avif", AVIF), ("c.jpg", HEIC)):
        Path("photos", name).write_bytes(content)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # import raises ImportError
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "photos"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    heic = "has the format HEIC, which needs pillow-heif: pip install 'cnn-lightning[photos]'"
    avif = "has the format AVIF, which needs Pillow 11.3 or newer: pip install 'cnn-lightning[photos]'"
    assert captured.err.splitlines() == [
        f"error: photos/a.heic: {heic}", f"error: photos/b.avif: {avif}", f"error: photos/c.jpg: {heic}"
    ]  # fmt: skip
    assert table(captured.out).keys() == digits.keys()


def test_every_suffix_of_the_formats_that_are_read(run, digits, capsys):
    with Image.open("photos/00.png") as photo:
        photo = photo.convert("RGB")
    Path("all").mkdir()
    kinds = dict.fromkeys(SUFFIXES, None) | {".apng": "PNG"}
    for suffix, kind in kinds.items():
        several = {"save_all": True, "append_images": [photo]} if suffix == ".mpo" else {}
        photo.save(f"all/x{suffix.upper()}", format=kind, **several)
    photo.save("all/jpeg.heic", format="JPEG")  # what it holds counts
    predict([CPU, "all", "--csv=out.csv"])
    rows = rows_of("out.csv")
    assert {Path(name).suffix.lower() for name in rows} == {*SUFFIXES, ".heic"}
    assert {row["class"] for row in rows.values()} == {digits["00.png"]}


def test_other_files_are_left_out(run, digits, capsys):
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "notes.txt",
        "film.mov",
        "film.mpg",
        "data.h5",
        "notes.pdf",
        "labels.csv",
        "no_suffix",
    ):
        Path("photos", name).write_bytes(b"some bytes")
    predict([CPU, "photos"])
    captured = capsys.readouterr()
    assert table(captured.out).keys() == digits.keys()
    assert not [line for line in captured.err.splitlines() if line.startswith("error")]


def test_natural_order(run, digits, capsys):
    names = ["1.png", "2.png", "10.png", "a2.png", "A10.png", "IMG_9.png", "img_10.png", "img_10b.png"]
    names += ["page 2/1.png", "page 10/1.png", "x1.2.png", "x1.10.png", "é1.png"]
    for name in reversed(names):
        Path("many", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("photos/00.png", Path("many", name))
    predict([CPU, "many", "--csv=out.csv"])
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"many/{name}" for name in names]
    shown = [line.partition(".png")[0] + ".png" for line in capsys.readouterr().out.splitlines()]
    assert [name for name in shown if name.startswith("many/")] == [f"many/{name}" for name in names]


def test_names_that_differ_in_case_or_zeros_have_one_order():
    names = ["B1.png", "b1.png", "b01.png", "B001.png", "b2.png"]
    orders = {tuple(sorted(map(Path, order), key=_natural_key)) for order in permutations(names)}
    assert len(orders) == 1
    assert orders.pop()[-1].name == "b2.png"


def test_folders_that_are_linked(run, digits, capsys):
    Path("elsewhere").mkdir()
    Path("photos/00.png").rename("elsewhere/00.png")
    Path("photos/link").symlink_to(Path("elsewhere").resolve())
    Path("photos/more/back").symlink_to(Path("photos").resolve())
    predict([CPU, "photos"])
    output = capsys.readouterr().out
    assert table(output).keys() == digits.keys()
    assert len(re.findall(r"\.png", output)) == len(digits)


def test_a_file_that_is_named_twice_has_two_rows(run, digits, capsys):
    Path("bad.png").touch()
    with pytest.raises(SystemExit):
        predict([CPU, "photos/00.png", "bad.png", "photos/00.png", "--csv=out.csv", "--picture=seen.png"])
    assert capsys.readouterr().out.count("photos/00.png") == 2
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["photos/00.png", "bad.png", "photos/00.png"]
    assert rows[0] == rows[2]
    with Image.open("seen.png") as picture:
        seen = np.asarray(picture)
    half = seen.shape[1] // 2  # the same picture twice, side by side
    assert np.array_equal(seen[:, :half], seen[:, half:])
    assert (seen[:, :half] < 128).any()


def test_a_network_on_a_larger_canvas(train, digits, capsys):
    train("--data=Digits", "--data.pad=4", "--model.net.image_size=36", "--trainer.max_epochs=2")
    predict([CPU, "photos"])
    shown = table(capsys.readouterr().out)
    assert sum(shown[name][0] == digits[name] for name in digits) >= 14


def test_checkpoint_of_choice(train, run, digits, capsys):
    other = train("--data=FashionMNIST")
    predict([CPU, "photos/00.png", f"--ckpt_path={other}/checkpoints/best.ckpt"])
    assert re.search(r"T-shirt|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|boot", capsys.readouterr().out)


ODD = {
    "missing.png": "does not exist",
    "empty.png": "is empty",
    "text.png": "is not a picture",
    "truncated.png": "is damaged",
    "black.png": "nothing but background",
    "white.jpg": "nothing but background",
    "one.png": "nothing but background",
    "nothing": "holds no picture",
    "link.png": "is a broken link",
    "pipe.png": "is not a file",
}


@pytest.fixture
def odd(digits):
    Path("empty.png").touch()
    Path("text.png").write_text("text")
    Path("truncated.png").write_bytes(Path("photos/00.png").read_bytes()[:150])
    Image.new("L", (28, 28), 0).save("black.png")
    Image.new("RGB", (90, 40), "white").save("white.jpg")
    Image.new("L", (1, 1), 99).save("one.png")
    Path("nothing").mkdir()
    Path("link.png").symlink_to("nowhere.png")
    os.mkfifo("pipe.png")
    return ODD


def test_odd_files_get_a_line_and_the_others_are_predicted(run, odd, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, *odd, "photos/00.png"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error")]
    for name, line in zip(odd, lines, strict=True):
        assert line.startswith(f"error: {name}: {odd[name]}")
    assert table(captured.out).keys() == {"00.png"}, captured.out


def test_none_can_be_used(run, odd, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, *odd])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == len(odd) + 1
    assert lines[-1] == "error: none of the pictures could be read"


def test_names_that_cannot_be_printed(run, digits, capsys):
    names = ["drei – 三.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        Path(name).write_bytes(Path("photos/00.png").read_bytes())
    predict([CPU, *names, "--csv=out.csv", "--picture=seen.png"])
    output = capsys.readouterr().out
    assert "drei – 三.png" in output
    assert "new?line.png" in output
    assert Path("seen.png").is_file()
    assert len(Path("out.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_mistakes_of_the_user(run, digits, error_of):
    Path("there.csv").touch()
    assert "--csv there.csv exists" in error_of(predict, CPU, "photos", "--csv=there.csv")
    assert "there is no folder no" in error_of(predict, CPU, "photos", "--picture=no/seen.png")
    assert "expected a name that ends with .png" in error_of(predict, CPU, "photos", "--picture=seen.pdf")
    assert "did you mean --picture?" in error_of(predict, CPU, "photos", "--pictur=seen.png")
    assert "images" in error_of(predict, CPU)
    assert "missing.ckpt" in error_of(predict, CPU, "photos", "--ckpt_path=missing.ckpt")
    assert "there is no best.ckpt" in error_of(predict, CPU, "photos", "--trainer.default_root_dir=elsewhere")


def test_a_network_that_has_diverged(run, digits, error_of):
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.head.0.weight"][0, 0] = float("nan")
    torch.save(checkpoint, "nan.ckpt")
    assert "its training has diverged" in error_of(predict, CPU, "photos", "--ckpt_path=nan.ckpt")


def test_no_picture_is_left_out(run, digits, capsys):
    predict([CPU, "photos", "--data.batch_size=8", "--trainer.fast_dev_run=true"])
    assert table(capsys.readouterr().out).keys() == digits.keys()


@pytest.mark.parametrize("option", ["--csv", "--picture"])
def test_a_place_that_cannot_be_written(run, digits, option, error_of):
    assert "change --csv or --picture" in error_of(predict, CPU, "photos", f"{option}=/proc/seen.png")


def test_a_dataset_that_does_not_say_how_it_was_made(run, digits, error_of, monkeypatch):
    monkeypatch.setattr(Digits, "preparation", None)
    assert "Digits does not say how its images were made" in error_of(predict, CPU, "photos")


def test_output_that_cannot_show_a_name(run, digits, monkeypatch):
    """Where the terminal knows only ASCII, a name is shown with replacements."""
    import io

    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    Path("drei – 三.png").write_bytes(Path("photos/00.png").read_bytes())
    predict([CPU, "drei – 三.png"])
    sys.stdout.flush()
    assert b"drei ? ?.png" in buffer.getvalue()


def test_of_several_pictures_in_a_file_only_the_first_is_classified(run, capsys):
    pages = [Image.fromarray(np.full((40, 40), 255, np.uint8)) for _ in range(3)]
    for number, page in enumerate(pages):
        page.paste(0, (10 + number, 5, 14 + number, 35))
    pages[0].save("scan.tiff", save_all=True, append_images=pages[1:])
    pages[0].save("one.tiff")
    predict([CPU, "scan.tiff", "one.tiff"])
    printed = capsys.readouterr()
    assert printed.err == "warning: scan.tiff: holds 3 pictures, only the first is classified\n"
    assert "scan.tiff" in printed.out


@pytest.fixture
def page(digits):
    """A page of six test images of Digits in two rows, dark on white, larger than what is read; their labels."""
    sheet = Image.new("L", (2000, 1500), 255)
    for index in range(6):
        with Image.open(next(Path("photos").rglob(f"{index:02}.png"))) as digit:
            large = digit.resize((260, 260), Image.Resampling.BICUBIC)
        sheet.paste(large, (200 + 600 * (index % 3), 300 + 600 * (index // 3) + 40 * (index % 3)))
    sheet.save("page.png")
    return [digits[f"{index:02}.png"] for index in range(6)]


def test_objects_of_a_page_have_a_row_each(run, page, capsys):
    Path("bad.png").touch()
    with pytest.raises(SystemExit):
        predict([CPU, "bad.png", "page.png", "photos/00.png", "--csv=out.csv", "--picture=seen.png"])
    output = capsys.readouterr().out
    rows = re.findall(r"^page\.png #(\d+) +(\d+) (\d+) (\d+) (\d+) +(\d) ", output, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == [1, 2, 3, 4, 5, 6]
    assert sum(row[-1] == label for row, label in zip(rows, page, strict=True)) >= 5
    assert "--split false" in output
    for index, row in enumerate(rows):  # the box, in pixels of the file, is around the digit
        x, y = 330 + 600 * (index % 3), 430 + 600 * (index // 3) + 40 * (index % 3)
        left, top, right, bottom = map(int, row[1:5])
        assert x - 140 < left < x < right < x + 140
        assert y - 140 < top < y < bottom < y + 140
        assert bottom - top > 200
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == ["bad.png", *["page.png"] * 6, "photos/00.png"]
    boxes = [[row[name] for name in ("object", "left", "top", "right", "bottom")] for row in table[1:]]
    assert boxes == [*(list(row[:5]) for row in rows), [""] * 5]
    assert [*table[0]][:8] == [
        *("file", "class", "probability", "second_class", "second_probability", "unsure", "error", "p(0)")
    ]  # the columns of before come first
    with Image.open("seen.png") as picture:
        colours = np.asarray(picture)[-528:].reshape(-1, 3)  # the page, 704 pixels wide, is drawn last
    assert (colours == (0, 114, 178)).all(1).sum() + (colours == (213, 94, 0)).all(1).sum() > 6 * 4 * 80


def test_a_page_that_is_turned_has_boxes_as_it_is_seen(run, page, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("page.png") as sheet:
        sheet.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", exif=exif, quality=95)
    predict([CPU, "page.png", "turned.jpg"])
    rows = re.findall(r"^\S+ #\d+ +(\d+) (\d+) (\d+) (\d+) ", capsys.readouterr().out, re.MULTILINE)
    boxes = np.array(rows, int)
    assert len(boxes) == 12
    assert np.abs(boxes[:6] - boxes[6:]).max() <= 8


def test_split_that_is_chosen(run, page, capsys):
    predict([CPU, "page.png", "--split=false"])
    output = capsys.readouterr().out
    assert len(re.findall(r"^page\.png  +\d", output, re.MULTILINE)) == 1
    assert "#" not in output
    predict([CPU, "photos", "--split=auto"])
    assert "#" not in capsys.readouterr().out
    predict([CPU, "page.png", "photos/00.png", "--split=true"])
    output = capsys.readouterr().out
    assert output.count("page.png #") == 6
    assert len(re.findall(r"^photos/00\.png #1 +\d+ \d+ \d+ \d+ +\d ", output, re.MULTILINE)) == 1


def test_split_of_what_has_no_strokes(train, page, error_of, capsys):
    train("--data=FashionMNIST")
    line = error_of(predict, CPU, "page.png", "--split=true")
    assert "--split true finds digits on a page, which FashionMNIST does not have" in line
    predict([CPU, "page.png"])
    assert "#" not in capsys.readouterr().out
