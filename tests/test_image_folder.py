import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torchvision import datasets, transforms
from tqdm import tqdm

from cnn_lightning import ImageClassifier, ImageFolder, TwoLayerCNN
from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.data import decoding, image_folder
from cnn_lightning.data.decoding import ToSquare, decode, free_memory
from cnn_lightning.data.photos import read_photo
from cnn_lightning.errors import UsageError

CLASSES = ("blue", "green", "red")
SIZES = ((24, 24), (40, 24), (24, 31), (90, 60))
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def write_pictures(folder, counts=(20, 20, 20), seed=0):
    """Pictures of several sizes and formats: class k is bright in one channel, red in the first."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.{('png', 'jpg', 'bmp', 'webp')[number % 4]}")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def pets(pictures):
    """A copy that a test may change, in the current folder."""
    return Path(shutil.copytree(pictures, "pets"))


def folder(root, stages=("fit", "test"), **settings):
    data = ImageFolder(root, **{"image_size": 16} | settings)
    for stage in stages:
        data.setup(stage)
    return data


def rows(images):
    return {bytes(image.numpy()) for image in images}


def labels_match(data):
    """Whether the brightest channel of every image, its label and its file say the same."""
    for part in data._parts:
        images, labels = data.part(part)
        assert torch.equal(2 - images.float().mean((2, 3)).argmax(1), labels)
        assert [path.relative_to(data.root).parts[-2] for path in data.files[part]] == [CLASSES[k] for k in labels]
    return True


class TestParts:
    def test_of_one_folder(self, pictures):
        data = folder(pictures, test_size=6, val_size=6)
        counts = [data.part(part)[1].bincount().tolist() for part in ("train", "val", "test")]
        assert counts == [[16] * 3, [2] * 3, [2] * 3]
        parts = [set(data.files[part]) for part in ("train", "val", "test")]
        assert set.union(*parts) == set(pictures.glob("*/*"))
        assert sum(map(len, parts)) == 60
        assert labels_match(data)
        assert (data.class_names, data.num_classes, data.in_channels, data.image_size) == ([*CLASSES], 3, 3, 16)
        assert tuple(data.part("train")[0].shape) == (48, 3, 16, 16)
        assert data.part("train")[0].dtype == torch.uint8

    def test_the_test_set_is_always_the_same_and_validation_follows_its_seed(self, pictures, in_new_process):
        first, other = folder(pictures), folder(pictures, split_seed=1, val_size=12, image_size=8)
        assert first.files["test"] == other.files["test"]
        assert set(first.files["val"]) != set(other.files["val"])
        assert len(other.files["val"]) == 12
        code = f"from cnn_lightning import ImageFolder; d = ImageFolder({str(pictures)!r}); d.setup('validate')\n"
        code += (
            "import json; d.setup('test'); print(json.dumps([[str(p) for p in d.files[k]] for k in ('val', 'test')]))"
        )
        ended, printed, errors = in_new_process(code)
        assert ended == 0, errors
        assert json.loads(printed) == [[str(path) for path in first.files[part]] for part in ("val", "test")]

    def test_classes_are_mixed(self, pictures):
        """TensorBoard shows the first images, and limit_val_batches validates them."""
        for part in ("train", "val", "test"):
            assert len(set(folder(pictures, test_size=12, val_size=12).part(part)[1][:6].tolist())) > 1

    @pytest.mark.parametrize("val", [None, "val", "valid", "validation"])
    @pytest.mark.parametrize("test", [None, "test"])
    def test_of_several_folders(self, val, test):
        write_pictures(Path("pets/train"), (10, 20, 30))
        for name, seed in ((val, 1), (test, 2)):
            if name:
                write_pictures(Path("pets", name), (3, 4, 5), seed)
        data = folder("pets", val_size=6, test_size=6)
        assert labels_match(data)
        sizes = {part: data.part(part)[1].bincount().tolist() for part in ("train", "val", "test")}
        assert sizes["val"] == ([3, 4, 5] if val else [1, 2, 3])
        assert sizes["test"] == ([3, 4, 5] if test else [1, 2, 3])
        assert sizes["train"] == [
            10 - (not val) - (not test),
            20 - 2 * (not val) - 2 * (not test),
            30 - 3 * (not val) - 3 * (not test),
        ]
        parents = {part: {path.parents[1].name for path in data.files[part]} for part in ("train", "val", "test")}
        assert parents == {"train": {"train"}, "val": {val or "train"}, "test": {test or "train"}}

    def test_a_class_may_be_named_train(self, pets):
        (pets / "red").rename(pets / "train")
        assert folder(pets).class_names == ["blue", "green", "train"]

    @pytest.mark.parametrize("layout", ["one", "several"])
    def test_training_reads_no_test_picture(self, layout, monkeypatch):
        root = write_pictures(Path("pets" if layout == "one" else "pets/train"))
        if layout == "several":
            write_pictures(Path("pets/test"))
            root = Path("pets")
        read = []
        monkeypatch.setattr(decoding, "read_photo", lambda path: read.append(path) or read_photo(path))
        data = ImageFolder(root, image_size=8)
        for stage in ("fit", "validate", "fit"):
            data.setup(stage)
        assert sorted(read) == sorted(data.files["train"] + data.files["val"])  # each once
        read.clear()
        data.setup("test")
        data.setup("test")
        assert sorted(read) == sorted(data.files["test"])

    def test_subfolders_links_and_odd_files(self, pets, capsys):
        (pets / "red/more").mkdir()
        Image.new("RGB", (20, 20), (200, 0, 0)).save(pets / "red/more/x.PNG")
        (pets / "red/again").symlink_to(pets.resolve() / "red")  # leads back
        (pets / "red/linked.png").symlink_to((pets / "red/0.png").resolve())
        for name in ("red/notes.txt", "red/Thumbs.db", "red/.DS_Store", "red/._0.png", "labels.csv", ".hidden.png"):
            (pets / name).write_bytes(b"no picture")
        (pets / ".cache").mkdir()
        (pets / "__MACOSX").mkdir()
        data = folder(pets)
        found = {str(path.relative_to(pets)) for part in data.files.values() for path in part}
        assert {"red/more/x.PNG", "red/linked.png"} <= found
        assert len(found) == 62
        assert capsys.readouterr().err == "warning: no pictures of a class, left out: labels.csv, red/notes.txt\n"

    def test_splits_can_be_trained_on_when_unbalanced(self):
        data = folder(write_pictures(Path("pets"), (200, 40, 12)))
        assert [data.part(part)[1].bincount().tolist() for part in ("val", "test")] == [[18, 4, 1], [20, 4, 1]]


class TestPictures:
    @pytest.mark.parametrize("grey", [False, True])
    def test_pixels_are_those_of_torchvision(self, pictures, grey):
        steps = [transforms.Resize(16), transforms.CenterCrop(16), transforms.PILToTensor()]
        theirs = datasets.ImageFolder(pictures, transforms.Compose([transforms.Grayscale()] * grey + steps))
        assert theirs.classes == [*CLASSES]
        expected = {Path(path): (theirs[index][0], label) for index, (path, label) in enumerate(theirs.samples)}
        data = folder(pictures, grey=grey)
        assert data.in_channels == (1 if grey else 3)
        for part in ("train", "val", "test"):
            for path, image, label in zip(data.files[part], *data.part(part), strict=True):
                # A JPEG in colour has its own grey.
                assert (image.int() - expected[path][0].int()).abs().max() <= (1 if grey else 0)
                assert label == expected[path][1]

    def test_batches_are_normalised_by_channel(self, pictures):
        data = folder(pictures)
        train = data.part("train")[0].double() / 255
        assert data.mean == pytest.approx(train.mean((0, 2, 3)).tolist(), abs=1e-12)
        assert data.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
        images = torch.cat([images for images, _ in data.train_dataloader()]).double()
        assert images.mean((0, 2, 3)).abs().max() < 1e-5
        assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
        grey = folder(pictures, grey=True, stages=["fit"])
        assert type(grey.mean) is type(grey.std) is float

    def test_ways_to_a_square(self):
        wide = Image.fromarray(
            np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 20, axis=0)
        )  # 60×20, from dark to light
        crop, pad, stretch = (ToSquare(20, True, way)(wide)[0].float() for way in ("crop", "pad", "stretch"))
        assert torch.equal(crop, torch.from_numpy(np.asarray(wide)[:, 20:40].copy()).float())
        assert pad[[*range(6), *range(14, 20)]].sum() == 0
        assert pad[10].tolist() == pytest.approx(np.arange(4, 240, 12), abs=1)
        assert stretch.mean(0).tolist() == pytest.approx(np.arange(4, 240, 12), abs=1)
        for way in ("crop", "pad", "stretch"):
            for size in ((1, 1000), (1000, 1), (1, 1), (7, 900)):
                image = ToSquare(64, False, way)(Image.new("L", size, 255))
                assert image.shape == (3, 64, 64)
                assert image.amax() == 255
            assert ToSquare(20, True, way)(Image.new("RGB", (20, 20), (9, 9, 9))).eq(9).all()

    def test_new_pictures_are_prepared_in_the_same_way(self, pictures):
        for settings in ({}, {"grey": True}, {"square": "pad"}, {"square": "stretch"}):
            data = folder(pictures, **settings)
            for path, image in zip(data.files["val"], data.part("val")[0], strict=True):
                assert torch.equal(data.preparation(read_photo(path)), image)

    def test_augmentation_and_pad(self, pictures):
        data = folder(pictures, pad=2, flip=True, shift=2, erase=0.5, batch_size=8)
        images, _ = next(iter(data.train_dataloader()))
        assert tuple(images.shape) == (8, 3, 20, 20)
        assert data.image_size == 20
        assert data.mean == folder(pictures, stages=["fit"]).mean

    def test_a_bar_is_drawn_on_a_terminal_only(self, pictures, capsys, monkeypatch):
        bars = []

        class Bar(tqdm):
            def __init__(self, **settings):
                super().__init__(**settings | {"disable": False, "mininterval": 0})

            def close(self):
                bars.append((self.desc, self.n, self.total))
                super().close()

        folder(pictures, stages=["fit"])
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(decoding, "tqdm", Bar)
        folder(pictures, stages=["fit"])
        assert bars[0] == (f"Reading {pictures.name}", 54, 54)
        assert "54/54" in capsys.readouterr().err

    def test_threads_keep_order_and_warning_filters(self, pictures, monkeypatch):
        import warnings

        files = sorted(pictures.glob("*/*"))
        monkeypatch.setattr(decoding, "BLOCK", 7)
        before = list(warnings.filters)
        images, damaged = decode(files, ToSquare(8, False, "crop"), (3, 8, 8), "")
        assert warnings.filters == before
        assert not damaged
        for image, path in zip(images, files, strict=True):
            assert torch.equal(image, ToSquare(8, False, "crop")(read_photo(path)))


DAMAGED = {
    "a.png": b"",
    "b.png": b"text",
    "c.jpg": b"\0\0\0\x18ftypheic",
    "d.heic": b"x",
    "e.bmp": b"BM",
    "f.gif": b"GIF89a",
}


class TestDamagedFiles:
    @pytest.fixture
    def damaged(self, pets):
        for name, content in DAMAGED.items():
            (pets / "red" / name).write_bytes(content)
        (pets / "red/link.png").symlink_to("nowhere.png")
        whole = (pets / "red/1.jpg").read_bytes()
        (pets / "red/cut.jpg").write_bytes(whole[: len(whole) // 2])
        return pets

    def test_are_an_error_that_lists_them(self, damaged):
        messages = []
        for stage in ("fit", "test"):
            with pytest.raises(UsageError, match=r"of \d+ pictures in pets cannot be read: red/") as error:
                folder(damaged, [stage], mean=0.5, std=0.5, test_size=0.4)
            assert error.value.argument == "skip_damaged"
            assert "\n" not in str(error.value)
            messages.append(str(error.value))
        counts = [int(message.split()[0]) for message in messages]
        assert sum(counts) == 8
        assert all(
            f"and {count - 5} more" in message for count, message in zip(counts, messages, strict=True) if count > 5
        )
        assert "red/a.png is empty" in "".join(messages)

    def test_are_left_out_if_wanted_and_change_no_split(self, damaged, capsys):
        data = folder(damaged, skip_damaged=True, test_size=0.4)
        assert labels_match(data)
        left = {path for part in data.files.values() for path in part}
        assert {path.name for path in set(damaged.glob("red/*")) - left} == {*DAMAGED, "link.png", "cut.jpg"}
        assert len(left) == 60
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2  # of training and of the test
        assert all(
            line.startswith("warning: ") and "pictures in pets cannot be read and are left out: red/" in line
            for line in lines
        )

    def test_a_class_of_damaged_files_only(self, pets):
        for path in (pets / "green").iterdir():
            path.write_bytes(b"x")
        with pytest.raises(UsageError, match="class green has no train picture that can be read"):
            folder(pets, skip_damaged=True)


def keep(count):
    """Keep so many pictures of the class red."""
    return lambda root: [path.unlink() for path in sorted((root / "red").iterdir())[count:]]


def only(*names):
    """Keep only these folders."""
    return lambda root: [shutil.rmtree(path) for path in root.iterdir() if path.name not in names]


def be_a_file(root):
    shutil.rmtree(root)
    root.write_bytes(b"PK")


def lie_deeper(root):
    root.rename("old")
    root.mkdir()
    Path("old").rename(root / "images")


ONE_EACH = r"expected one for each of at least two classes \(ROOT/CLASS/FILE, or ROOT/train/CLASS/FILE"
WRONG = [
    (shutil.rmtree, r"^/.*/pets does not exist, expected ROOT/CLASS/FILE, or ROOT/train/CLASS/FILE", "root"),
    (be_a_file, r"/pets is not a folder, expected ROOT/", "root"),
    (only(), f"pets holds no folders, {ONE_EACH}", "root"),
    (only("red"), f"pets holds one folder, red, {ONE_EACH}", "root"),
    (lie_deeper, r"pets holds one folder, images, expected one for each class: is pets/images meant\?", "root"),
    (keep(0), "pets/red holds no pictures: add some, or remove the folder", "root"),
    (keep(1), r"class red has too few images \(1\) to have some for the test and some for training", "test_size"),
    (keep(3), r"class red has too few images \(3\) to have some for the test and some for training", "test_size"),
    (lambda root: (root / "a\nb").mkdir(), "cannot be printed: rename the folder", "root"),
]
PARTS_WRONG = [
    (
        lambda root: (root / "val/pink").mkdir(parents=True),
        "val holds the classes pink, expected those of training: blue",
    ),
    (lambda root: (root / "test").mkdir(), "pets/test holds no folders of classes, expected pets/test/CLASS/FILE"),
    (lambda root: (root / "test/red").mkdir(parents=True), "pets/test/red holds no pictures"),
    (lambda root: [(root / name).mkdir() for name in ("val", "valid")], "pets/val and pets/valid are both for valid"),
]


class TestWrongFolders:
    @pytest.mark.parametrize(("change", "message", "argument"), WRONG)
    def test_one_folder(self, pets, change, message, argument):
        change(pets)
        with pytest.raises(UsageError, match=message) as error:
            folder(pets)
        assert error.value.argument == argument
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(("change", "message"), PARTS_WRONG)
    def test_several_folders(self, change, message):
        write_pictures(Path("pets/train"))
        change(Path("pets"))
        with pytest.raises(UsageError, match=message) as error:
            ImageFolder("pets").prepare_data()
        assert error.value.argument == "root"

    @pytest.mark.parametrize(
        ("settings", "message", "argument"),
        [
            ({"root": None}, "ImageFolder has no root, expected a folder of pictures: ROOT/CLASS/FILE", "root"),
            ({"image_size": 0}, "image_size is 0, expected 1 to 1000", "data.image_size"),
            ({"image_size": 1001}, "image_size is 1001, expected 1 to 1000", "data.image_size"),
            ({"square": "round"}, "square is round, expected crop, pad or stretch", "square"),
            ({"class_names": ["red"]}, r"class_names is \['red'\], expected at least two names", "class_names"),
            ({"class_names": ["red", "red"]}, "expected at least two names, all different", "class_names"),
            (
                {"test_size": 0},
                r"test_size is 0, expected a count or a fraction .* of the 60 training images",
                "test_size",
            ),
            ({"test_size": None}, "test_size is None, expected a count or a fraction", "test_size"),
            ({"val_size": 53}, "val_size is 53, expected .* of the 54 training images", "val_size"),
        ],
    )
    def test_settings(self, pictures, settings, message, argument):
        with pytest.raises(UsageError, match=message) as error:
            folder(**{"root": pictures} | settings)
        assert error.value.argument == argument

    def test_unreadable_folder(self, pets, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(UsageError, match=r"cannot read pets \(Permission denied\)"):
            ImageFolder(Path("pets"))

    def test_memory_is_checked_before_decoding(self, pictures, monkeypatch):
        monkeypatch.setattr(decoding, "read_photo", lambda path: pytest.fail("decodes"))
        needed = 54 * 3 * 100 * 100
        monkeypatch.setattr(decoding, "free_memory", lambda: needed - 1)
        with pytest.raises(
            UsageError, match=r"54 images of 3 × 100 × 100 bytes need 1.6 MB of memory, 1.6 MB are"
        ) as error:
            folder(pictures, ["fit"], image_size=100)
        assert error.value.argument == "data.image_size"
        monkeypatch.setattr(decoding, "free_memory", lambda: needed)
        monkeypatch.setattr(image_folder, "decode", lambda files, *_: (torch.zeros(len(files), 3, 100, 100).byte(), {}))
        folder(pictures, ["fit"], image_size=100)

    def test_free_memory(self, tmp_path):
        assert 2**20 < free_memory() < 2**50
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
        assert free_memory(tmp_path) == 4000 * 1024
        group = tmp_path / "sys/fs/cgroup"
        group.mkdir(parents=True)
        for name, text in (("max", "3000000\n"), ("current", "2500000\n"), ("stat", "anon 9\ninactive_file 400000\n")):
            (group / f"memory.{name}").write_text(text)
        assert free_memory(tmp_path) == 900_000
        (group / "memory.max").write_text("max\n")
        assert free_memory(tmp_path) == 4000 * 1024


class TestNames:
    def test_class_names_that_are_given(self, pictures):
        data = folder(pictures, class_names=["red", "green", "blue"])
        images, labels = data.part("train")
        assert torch.equal(images.float().mean((2, 3)).argmax(1), labels)
        wrong = ImageFolder(pictures, class_names=["red", "green"])
        for check in (wrong.prepare_data, lambda: wrong.setup("fit"), lambda: wrong.setup("test")):
            with pytest.raises(UsageError, match="holds the classes blue, green, red, expected red, green"):
                check()

    def test_no_folder_is_needed_where_a_checkpoint_knows_the_rest(self):
        data = ImageFolder("nowhere", image_size=8, class_names=["a", "b"], mean=[0.1, 0.2, 0.3], std=0.5)
        assert (data.num_classes, data.name, data.image_size) == (2, "nowhere", 8)
        image = data.preparation(Image.new("RGB", (9, 9), (51, 51, 51)))
        assert data.normalize(image[None])[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.0, -0.2], abs=1e-6)
        with pytest.raises(UsageError, match="nowhere does not exist"):
            data.setup("test")

    @pytest.mark.parametrize(
        ("root", "name"), [("pets", "pets"), ("./pets/", "pets"), ("my pets: 2", "my_pets__2"), ("/", "ImageFolder")]
    )
    def test_name_is_that_of_the_folder(self, root, name):
        assert ImageFolder(root, class_names=["a", "b"]).name == name

    def test_name_of_the_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "dogs/x").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "dogs")
        assert ImageFolder(".", class_names=["a", "b"]).name == "dogs"
        monkeypatch.chdir("x")
        assert ImageFolder("..", class_names=["a", "b"]).name == "dogs"


class TestCache:
    @pytest.fixture
    def reads(self, monkeypatch):
        """The files that are decoded."""
        read = []
        monkeypatch.setattr(decoding, "read_photo", lambda path: read.append(path) or read_photo(path))
        return read

    def read(self, reads, root="pets", **settings):
        """Images of all parts, and how many pictures were decoded for them."""
        reads.clear()
        data = folder(root, **{"cache": "cache"} | settings)
        assert labels_match(data) or settings
        return [data.part(part)[0] for part in ("train", "val", "test")], len(reads)

    def test_gives_the_same_images_without_decoding(self, pets, reads, capsys):
        expected, count = self.read(reads, cache=None)
        assert count == 60
        assert not Path("cache").exists()
        for count_expected in (60, 0):
            images, count = self.read(reads)
            assert count == count_expected
            assert all(map(torch.equal, images, expected))
        pets.rename("moved")  # with all files as they were
        images, count = self.read(reads, root="moved", cache="cache")
        assert all(map(torch.equal, images, expected))
        assert capsys.readouterr().err == ""
        names = sorted(path.name for path in Path("cache").glob("*.images"))
        assert [name.rpartition("-")[0] for name in names] == ["moved-test", "moved-train", "pets-test", "pets-train"]

    @pytest.mark.parametrize(
        "settings", [{"image_size": 8}, {"square": "pad"}, {"split_seed": 1}, {"val_size": 0.2}, {"test_size": 0.2}]
    )
    def test_other_settings_have_a_cache_of_their_own(self, pets, reads, settings):
        self.read(reads)
        _, count = self.read(reads, **settings)
        assert count == 60
        expected, _ = self.read(reads, cache=None, **settings)
        images, count = self.read(reads, **settings)
        assert count == 0
        assert all(map(torch.equal, images, expected))
        assert self.read(reads)[1] == 0

    @pytest.mark.parametrize("change", ["content", "time", "name", "added", "removed"])
    def test_is_built_anew_when_a_file_changes(self, pets, reads, capsys, change):
        self.read(reads)
        data = folder(pets, ["fit"])
        path = data.files["train"][0]
        times = path.stat().st_mtime_ns
        if change == "content":  # of another size, at the same time
            Image.fromarray(np.asarray(Image.open(path).convert("RGB"))[::2, ::2]).save(path)
            os.utime(path, ns=(times, times))
        elif change == "time":
            os.utime(path, ns=(times, times + 1))
        elif change == "name":
            path.rename(path.with_name(f"new{path.suffix}"))
        elif change == "added":
            shutil.copy(path, path.with_name(f"new{path.suffix}"))
        else:
            path.unlink()
        expected, _ = self.read(reads, cache=None, image_size=16)
        capsys.readouterr()
        images, count = self.read(reads, image_size=16)
        assert count >= 53
        assert all(map(torch.equal, images, expected))
        assert "is out of date: reading the pictures again" in capsys.readouterr().err
        assert self.read(reads)[1] == 0

    def test_is_built_anew_when_it_is_damaged(self, pets, reads, capsys):
        expected, _ = self.read(reads)
        (path,) = Path("cache").glob("pets-train*.images")
        whole = path.read_bytes()
        start = whole.index(b"\n", whole.index(b"\n") + 1)
        changed = [
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in (0, 70, 80, start + 9, -9)
        ]
        for content in (b"", b"\n", whole[:-1], whole[:start], whole[:40], whole + b"x", *changed[:4], changed[4][:-1]):
            path.write_bytes(content)
            images, count = self.read(reads)
            assert count == 54
            assert all(map(torch.equal, images, expected))
            printed = capsys.readouterr().err
            assert printed.startswith("warning: the cache cache/pets-train")
            assert "reading the pictures again" in printed
            assert path.read_bytes() == whole

    def test_knows_the_damaged_files(self, pets, reads, capsys):
        (pets / "red/0.png").write_bytes(b"")
        (pets / "red/broken.png").symlink_to("nowhere")
        with pytest.raises(UsageError, match=r"red/0\.png is empty"):
            folder(pets, cache="cache")
        expected, _ = self.read(reads, skip_damaged=True)
        before = capsys.readouterr().err
        images, count = self.read(reads, skip_damaged=True)
        assert count == 0
        assert all(map(torch.equal, images, expected))
        assert capsys.readouterr().err == before
        with pytest.raises(UsageError, match=r"red/0\.png is empty"):
            folder(pets, cache="cache")

    def test_is_written_by_one_process_while_others_wait(self, pets, reads, capfd):
        self.read(reads)
        (path,) = Path("cache").glob("pets-train*.images")
        whole = path.read_bytes()
        path.unlink()
        results = []
        with FileLock(f"{path}.lock"):  # another process decodes
            waiting = threading.Thread(target=lambda: results.append(self.read(reads)))
            waiting.start()
            time.sleep(0.5)
            assert not results
            path.write_bytes(whole)
        waiting.join()
        assert results[0][1] == 0
        assert "Waiting for another process, which prepares cache/pets-train" in capfd.readouterr().err

    def test_that_cannot_be_written(self, pets):
        Path("file").touch()
        with pytest.raises(
            UsageError, match=r"cannot read or write file/cache/pets-train.* \(Not a directory\)"
        ) as error:
            folder(pets, cache="file/cache")
        assert error.value.argument == "cache"


def test_checkpoints_hold_plain_values_that_build_it_again(pictures):
    data = ImageFolder(Path(pictures), image_size=16, cache=Path("cache"), flip=True)
    trainer = Trainer(max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=False, **QUIET)
    trainer.fit(ImageClassifier(TwoLayerCNN(3, 3, 16)), data)
    trainer.save_checkpoint("a.ckpt", weights_only=False)
    saved = torch.load("a.ckpt", weights_only=True)
    settings = saved["datamodule_hyper_parameters"]
    assert settings.pop("_class_path") == "cnn_lightning.data.image_folder.ImageFolder"
    assert json.loads(json.dumps(settings)) == settings
    again = ImageFolder(**settings)
    again.setup("fit")
    assert torch.equal(again.part("train")[0], data.part("train")[0])
    assert again.mean == data.mean
    assert saved["dataset"]["mean"] == data.mean
    assert saved["dataset"]["class_names"] == [*CLASSES]


@pytest.mark.slow
def test_commands(pets, in_new_process):
    """Fit, evaluate with a report, and predict where the folder is gone."""

    def call(name, *options):
        code = f"from cnn_lightning.cli.{name} import {name}; {name}()"
        return in_new_process(code, f"{name}.py", "--trainer.accelerator=cpu", *options)

    options = ["--data=ImageFolder", "--data.root=pets", "--data.image_size=16", "--data.batch_size=8"]
    options += ["--trainer.max_epochs=6", "--dashboard=false", "--trainer.accelerator=cpu"]
    ended, printed, errors = call("fit", *options)
    assert ended == 0, errors
    assert "Training TwoLayerCNN on pets: 49 training and 5 validation images" in printed
    assert "100.00% (6/6)" in printed
    best = Path("logs/TwoLayerCNN-pets/version_0/checkpoints/best.ckpt")
    assert read_checkpoint(best)["dataset"]["class_names"] == [*CLASSES]

    ended, printed, errors = call("evaluate", "--report=report")
    assert ended == 0, errors
    assert "100.00% (6/6)" in printed
    (figures,) = json.loads(Path("report/figures.json").read_text())["checkpoints"].values()
    assert figures["balanced_accuracy"] == figures["macro_f1"] == 1.0

    write_pictures(Path("new"), (1, 1, 1), seed=1)
    pets.rename("gone")
    ended, _, errors = call("predict", "new", "--csv=new.csv", "--picture=new.png")
    assert ended == 0, errors
    lines = Path("new.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in lines] == [[f"new/{name}/0.png", name] for name in CLASSES]
    ended, _, errors = call("evaluate")
    assert ended == 2
    assert errors.startswith("error: ")
    assert "/pets does not exist, expected ROOT/CLASS/FILE" in errors
    assert errors.endswith("change --data.root\n")


class SaveEveryEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.current_epoch}.ckpt")


def test_a_resumed_run_is_equal_to_the_bit(pictures):
    def fit(checkpoint=None):
        torch.manual_seed(0)
        model, data = (
            ImageClassifier(TwoLayerCNN(3, 3, 16)),
            ImageFolder(pictures, image_size=16, flip=True, batch_size=7),
        )
        settings = QUIET | {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_checkpointing": False}
        trainer = Trainer(max_epochs=2, callbacks=[SaveEveryEpoch()], **settings)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model.net.state_dict()

    whole = fit()
    resumed = fit("0.ckpt")
    assert all(torch.equal(weights, resumed[name]) for name, weights in whole.items())
