import csv
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_lightning import Digits, ImageClassifier
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import predict

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
