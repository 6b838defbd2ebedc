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
from PIL import Image

from cnn_lightning import Digits, ImageClassifier
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import _natural_key, predict
from cnn_lightning.data.picture_formats import SUFFIXES

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
    shown = table(capsys.readouterr().out)
    assert shown.keys() == digits.keys()
    right = sum(shown[name][0] == digits[name] for name in digits)
    assert right >= 17
    for first, p, second, q, unsure in shown.values():
        assert first != second
        assert p >= q
        assert p + q <= 100.11
        assert unsure == (p < 80)


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


def test_probabilities_are_those_of_the_network(run, digits):
    predict([CPU, "photos/00.png", "--csv=out.csv"])
    data = Digits()
    with Image.open("photos/00.png") as photo:
        image = data.preparation(photo)
    model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    with torch.no_grad():
        expected = model.predict_step(data.normalize(image[None]))[0]
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert [float(row[f"p({digit})"]) for digit in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


# How HEIC, AVIF and MP4 files begin.
HEIC, AVIF, MP4 = (b"\0\0\0\x18ftyp" + brand + bytes(500) for brand in (b"heic", b"avif", b"isom"))
NOT_READ = {name: name.rpartition(".")[2].upper() for name in (
    "a.heic", "b.HEIF", "c.avif", "d.jxl", "e.svg", "f.dng", "g.nef", "h.cr2", "i.RAW", "j.ico", "k.ppm", "l.jp2",
    "m.psd", "n.tga",
)}  # fmt: skip


def test_pictures_in_other_formats_are_named(run, digits, capsys):
    for name in NOT_READ:
        Path("photos", name).write_bytes({"a.heic": HEIC, "c.avif": AVIF}.get(name, b"some bytes"))
    with Image.open("photos/00.png") as photo:
        photo.save("photos/g.nef", format="TIFF")  # raw data of a camera: a TIFF that holds a thumbnail
    Path("photos/phone.jpg").write_bytes(HEIC)
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "photos", "--csv=out.csv"])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    expected = NOT_READ | {"phone.jpg": "HEIC"}
    lines = [f"error: photos/{name}: {error_for(kind)}" for name, kind in expected.items()]
    assert captured.err.splitlines()[-len(lines) :] == lines
    assert table(captured.out).keys() == digits.keys()
    rows = rows_of("out.csv")
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {
        name: error_for(kind) for name, kind in expected.items()
    }


def error_for(kind):
    return f"has the format {kind}, which is not read: save it as PNG or JPEG"


def test_a_picture_in_another_format_that_is_named(run, error_of, capsys):
    Path("a.heic").write_bytes(HEIC)
    with pytest.raises(SystemExit) as stopped:
        predict([CPU, "a.heic"])
    assert stopped.value.code == 2
    assert f"error: a.heic: {error_for('HEIC')}" in capsys.readouterr().err
    Path("video.jpg").write_bytes(MP4)
    with pytest.raises(SystemExit):
        predict([CPU, "video.jpg"])
    assert "error: video.jpg: is not a picture, expected PNG" in capsys.readouterr().err


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
        assert picture.width == 2 * (2 * 84 + 12)


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
