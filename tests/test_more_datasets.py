"""KMNIST, QMNIST and EMNIST, on files in their format that the tests write, with the MD5 of these."""

import gzip
import hashlib
import io
import string
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from cnn_lightning import EMNIST, KMNIST, QMNIST, ImageClassifier
from cnn_lightning.cli.fit import fit
from cnn_lightning.data import download
from cnn_lightning.errors import UsageError
from tests.conftest import scalars
from tests.faults import server, truncations

COUNTS = {"train": 400, "test": 100}
SPLITS = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def module_of(name, root, **settings):
    cls, _, split = name.partition("-")
    return {"KMNIST": KMNIST, "QMNIST": QMNIST, "EMNIST": EMNIST}[cls](
        root, **settings, **({"split": split} if split else {})
    )


def images_of(labels):
    """Class k is a bright bar in row k % 13 * 2 + 1, on noise, longer for k >= 13: no picture is symmetric."""
    images = np.random.default_rng(0).integers(0, 60, (len(labels), 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 13 * 2 + 1, 1 : 6 + label // 13 * 5] = 255
    return images


def labels_of(count, classes):
    return (np.arange(count) % classes).astype(np.uint8)


def idx_file(values):
    kind = {1: 8, 4: 12}[values.itemsize]
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def content(name):
    """The unpacked files of a dataset, by name."""
    files = {}
    for part, count in COUNTS.items():
        cls, _, split = name.partition("-")
        labels = labels_of(count, SPLITS.get(split, 10))
        images = images_of(labels)
        if cls == "EMNIST":
            files[f"emnist-{split}-{part}-images-idx3-ubyte"] = idx_file(images.swapaxes(1, 2))
            files[f"emnist-{split}-{part}-labels-idx1-ubyte"] = idx_file(labels + (split == "letters"))
        elif cls == "QMNIST":
            rows = np.stack([labels.astype(np.int32), *(np.arange(count, dtype=np.int32) * k for k in range(1, 8))], 1)
            rows[:, 2] = -70_000
            files[f"qmnist-{part}-images-idx3-ubyte"] = idx_file(images)
            files[f"qmnist-{part}-labels-idx2-int"] = idx_file(rows)
        else:
            part = {"train": "train", "test": "t10k"}[part]
            files[f"{part}-images-idx3-ubyte"] = idx_file(images)
            files[f"{part}-labels-idx1-ubyte"] = idx_file(labels)
    return files


NAMES = ["KMNIST", "QMNIST", *(f"EMNIST-{split}" for split in SPLITS)]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """The archives as torchvision's servers have them; torchvision's addresses and MD5s are those of this folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    packed = {f"{name}.gz": gzip.compress(file) for name, file in (content("KMNIST") | content("QMNIST")).items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in SPLITS:
            archive.writestr(f"gzip/emnist-{split}-mapping.txt", "0 48\n")
            for name, file in content(f"EMNIST-{split}").items():
                archive.writestr(f"gzip/{name}.gz", gzip.compress(file))
    packed["gzip.zip"] = buffer.getvalue()
    for name, file in packed.items():
        (folder / name).write_bytes(file)
    md5 = {name: hashlib.md5(file).hexdigest() for name, file in packed.items()}
    monkeypatch.setattr(datasets.KMNIST, "resources", [(name, md5[name]) for name, _ in datasets.KMNIST.resources])
    monkeypatch.setattr(datasets.EMNIST, "md5", md5["gzip.zip"])
    resources = {
        part: [(url, md5[url.rpartition("/")[2]]) for url, _ in datasets.QMNIST.resources[part]] for part in COUNTS
    }
    monkeypatch.setattr(datasets.QMNIST, "resources", resources)
    for name, seconds in (("TIMEOUT", 0.5), ("GRACE", 0.5), ("PAUSE", 0.01)):
        monkeypatch.setattr(download, name, seconds)
    return folder


def ask(monkeypatch, served):
    monkeypatch.setattr(datasets.KMNIST, "mirrors", [served.url])
    monkeypatch.setattr(datasets.EMNIST, "url", f"{served.url}gzip.zip")
    resources = {
        part: [(f"{served.url}{url.rpartition('/')[2]}", md5) for url, md5 in several]
        for part, several in datasets.QMNIST.resources.items()
    }
    monkeypatch.setattr(datasets.QMNIST, "resources", resources)


@pytest.fixture
def root(tmp_path):
    """The unpacked files of all datasets, as torchvision places them."""
    for name in NAMES:
        folder = tmp_path / "data" / name.partition("-")[0] / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in content(name).items():
            (folder / file).write_bytes(data)
    return tmp_path / "data"


def first_files(name):
    """Names of the files of the training images and labels."""
    return list(content(name))[:2]


@pytest.mark.parametrize("name", NAMES)
class TestValues:
    def test_images_are_upright_and_labels_start_at_0(self, name, root):
        module = module_of(name, root)
        for train, count in ((True, 400), (False, 100)):
            images, labels = module.read(train)
            assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (count, 1, 28, 28), torch.int64)
            expected = labels_of(count, module.num_classes)
            assert labels.tolist() == expected.tolist()
            assert np.array_equal(images[:, 0].numpy(), images_of(expected))

    def test_they_are_those_of_torchvision(self, name, root):
        cls, _, split = name.partition("-")
        others = getattr(datasets, cls)(root, train=True, **({"split": split} if split else {}))
        images, labels = module_of(name, root).read(train=True)
        pixels = np.stack([np.asarray(image) for image, _ in others])
        assert np.array_equal(images[:, 0].numpy(), pixels.swapaxes(1, 2) if split else pixels)
        assert labels.tolist() == [label - (split == "letters") for _, label in others]

    def test_mean_and_std_are_measured_on_the_training_part(self, name, root):
        module = module_of(name, root, val_size=100)
        module.setup("fit")
        images, _ = module.part("train")
        assert len(images) == 300
        pixels = images.double() / 255
        assert module.mean == pytest.approx(pixels.mean().item())
        assert module.std == pytest.approx(pixels.std(correction=0).item())
        batch, _ = next(iter(module.val_dataloader()))
        expected = (module.part("val")[0][:64].float() / 255 - module.mean) / module.std
        torch.testing.assert_close(batch, expected)

    def test_settings_are_saved(self, name, root):
        module = module_of(name, root, val_size=0.2)
        saved = {key: value for key, value in module.hparams.items() if key != "_class_path"}
        again = type(module)(**saved)
        assert again.class_names == module.class_names
        assert again.archives == module.archives
        assert (again.val_size, str(again.root)) == (0.2, str(root))

    def test_a_flipped_character_is_another(self, name, root):
        with pytest.raises(UsageError, match="flip is true, expected false"):
            module_of(name, root, flip=True).setup("fit")


class TestClassNames:
    def test_kmnist_and_qmnist(self):
        assert list(KMNIST().class_names) == datasets.KMNIST.classes
        assert list(QMNIST().class_names) == list(string.digits)

    @pytest.mark.parametrize("split", SPLITS)
    def test_emnist_has_the_classes_of_its_paper_by_split(self, split):
        module = EMNIST(split=split)
        assert module.num_classes == len(set(module.class_names)) == SPLITS[split]
        alone = [name for name in datasets.EMNIST.classes_split_dict[split] if name != "N/A"]
        assert [name[0].lower() for name in module.class_names] == [name.lower() for name in alone]

    def test_letters_whose_cases_are_merged(self):
        upper, lower = string.ascii_uppercase, string.ascii_lowercase
        assert "".join(EMNIST(split="byclass").class_names) == string.digits + upper + lower
        assert EMNIST(split="letters").class_names == tuple(f"{u}/{u.lower()}" for u in upper)
        names = EMNIST().class_names
        # 36 to 46 of the mapping of the balanced split: 97 98 100 101 102 103 104 110 113 114 116.
        assert "".join(names[36:]) == "abdefghnqrt"
        assert names[10:14] == ("A", "B", "C/c", "D")
        assert sum("/" in name for name in names) == 15

    def test_no_such_split(self):
        with pytest.raises(UsageError, match=r"split is capitals, expected one of byclass, .*mnist") as error:
            EMNIST(split="capitals")
        assert error.value.argument == "split"


@pytest.mark.parametrize("name", NAMES)
class TestFiles:
    def test_download(self, name, archives, tmp_path, monkeypatch):
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            module = module_of(name, tmp_path / "data")
            module.prepare_data()
            module_of(name, tmp_path / "data").prepare_data()
        expected = content(name)
        packed = {"gzip.zip"} if "-" in name else {f"{file}.gz" for file in expected}
        assert sorted(path.lstrip("/") for path in good.asked) == sorted(packed), "each archive is downloaded once"
        assert module.folder == tmp_path / "data" / name.partition("-")[0] / "raw"
        assert {path.name for path in module.folder.iterdir()} == {".lock", *packed, *expected}
        for file, data in expected.items():
            assert (module.folder / file).read_bytes() == data
        assert module.read(train=False)[1].tolist() == labels_of(100, module.num_classes).tolist()

    def test_archives_by_hand(self, name, archives, tmp_path):
        folder = tmp_path / "data" / name.partition("-")[0] / "raw"
        folder.mkdir(parents=True)
        for file in ["gzip.zip"] if "-" in name else [f"{file}.gz" for file in content(name)]:
            (folder / file).write_bytes((archives / file).read_bytes())
        module = module_of(name, tmp_path / "data", download=False)
        module.prepare_data()
        assert {file: (folder / file).read_bytes() for file in content(name)} == content(name)

    @pytest.mark.parametrize("behaviour", ["wrong", "html", "cut"])
    def test_an_archive_with_another_md5_is_not_used(self, name, behaviour, archives, tmp_path, monkeypatch):
        with server(archives, behaviour) as bad:
            ask(monkeypatch, bad)
            with pytest.raises(UsageError, match=r"MNIST is not on disk and was not downloaded .*127") as error:
                module_of(name, tmp_path / "data").prepare_data()
        assert "bytes" in str(error.value)
        assert ("(or gzip.zip)" if "-" in name else "(or their .gz)") in str(error.value)
        assert not (tmp_path / "data").exists()

    def test_a_damaged_archive_on_disk_is_replaced(self, name, archives, tmp_path, monkeypatch, capsys):
        file = "gzip.zip" if "-" in name else f"{first_files(name)[0]}.gz"
        folder = tmp_path / "data" / name.partition("-")[0] / "raw"
        folder.mkdir(parents=True)
        damaged = bytearray((archives / file).read_bytes())
        damaged[len(damaged) // 2] ^= 4
        (folder / file).write_bytes(damaged)
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            module_of(name, tmp_path / "data").prepare_data()
        assert (folder / file).read_bytes() == (archives / file).read_bytes()
        assert (folder / f"{file}.damaged").read_bytes() == damaged
        assert f"{file} was damaged: renamed to {file}.damaged" in capsys.readouterr().err

    def test_four_at_once_download_once(self, name, archives, tmp_path, monkeypatch, capfd):
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            threads = [threading.Thread(target=module_of(name, tmp_path / "data").prepare_data) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(good.asked) == (1 if "-" in name else 4)

    def test_truncated_and_swapped_files_are_named(self, name, root):
        module = module_of(name, root, download=False)
        for file, data in content(name).items():
            path = module.folder / file
            other = next(data for other, data in content(name).items() if ("images" in other) != ("images" in file))
            for damaged in [*truncations(data, 10), b"", data + b"\0", bytes(4) + data[4:], b"\0\0\1" + data[3:]]:
                path.write_bytes(damaged)
                with pytest.raises(UsageError, match=rf"{file} is damaged \([\d,]+ bytes\): remove it and run again"):
                    module_of(name, root)._read_file(file)
                with pytest.raises(UsageError, match=rf"is damaged \({file}\) and was not downloaded"):
                    module.prepare_data()
            path.write_bytes(other)
            with pytest.raises(UsageError, match="damaged"):
                module_of(name, root).read(train="train" in file)
            path.write_bytes(data)

    def test_labels_of_other_images_or_classes(self, name, root):
        module = module_of(name, root)
        labels = first_files(name)[1]
        good = content(name)[labels]
        fewer = next(data for file, data in content(name).items() if "labels" in file and file != labels)
        size = 8 * 4 if name == "QMNIST" else 1
        for damaged in (good[:-size] + b"\x7f" + good[len(good) - size + 1 :], fewer):
            (module.folder / labels).write_bytes(damaged)
            first = int(name == "EMNIST-letters")
            expected = rf"expected 400, one for each image, from {first} to {module.num_classes - 1 + first}\)"
            with pytest.raises(UsageError, match=rf"{labels} is damaged \(\d+ labels .*{expected}: remove it") as error:
                module_of(name, root).read(train=True)
            assert error.value.argument == "root"
        (module.folder / labels).write_bytes(good)
        module_of(name, root).read(train=True)

    def test_nothing_is_downloaded_when_forbidden(self, name, tmp_path):
        with pytest.raises(UsageError, match=r"not downloaded \(download is false\)"):
            module_of(name, tmp_path / "new", download=False).prepare_data()
        assert not (tmp_path / "new").exists()


def test_the_addresses_and_names_are_torchvisions(tmp_path, monkeypatch):
    """The real lists: four files each, every one with an address and an MD5."""
    asked = []
    monkeypatch.setattr("cnn_lightning.data.idx.download", lambda urls, *_: asked.extend(urls) or (b"", b""))
    monkeypatch.setattr("cnn_lightning.data.idx._replace", lambda *_: None)
    for name in NAMES:
        module = module_of(name, tmp_path)
        assert len(module.archives) == 4
        assert all(len(md5) == 32 for _, md5 in module.archives.values())
        module._restore(module.folder / next(iter(module.archives)))
    github = "https://raw.githubusercontent.com/facebookresearch/qmnist/master"
    assert list(dict.fromkeys(asked)) == [
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/train-images-idx3-ubyte.gz",
        f"{github}/qmnist-train-images-idx3-ubyte.gz",
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    ]


class TestCommand:
    def test_the_last_run_of_a_split_is_resumed(self, root, train):
        settings = [f"--data.root={root}", "--data=EMNIST", "--data.val_size=100", "--model.lr_schedule=null"]
        runs = [train(*settings, f"--data.split={split}") for split in ("letters", "mnist")]
        resumed = train(*settings, "--data.split=letters", "--ckpt_path=last", "--trainer.max_epochs=2")
        assert resumed == runs[0]
        assert len(scalars(resumed)["val/acc"]) == 2
        assert "the test images of EMNIST-letters" in train.output

    @pytest.mark.parametrize("name", ["KMNIST", "QMNIST", "EMNIST-letters"])
    def test_train_test_and_load(self, name, root, train):
        cls, _, split = name.partition("-")
        settings = [f"--data={cls}", *([f"--data.split={split}"] if split else [])]
        run = train(f"--data.root={root}", *settings, "--model.net=LeNetCNN", "--data.val_size=100")
        assert run.parent.name == f"LeNetCNN-{name}"
        assert f"accuracy    {scalars(run)['test/acc'][-1][1]:.2%}" in train.output
        model = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt")
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, SPLITS.get(split, 10))
        saved = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
        module = module_of(name, root, val_size=100)
        module.setup("fit")
        assert saved["dataset"]["mean"] == [module.mean]
        assert saved["dataset"]["class_names"] == list(module.class_names)

    def test_wrong_split(self, error_of):
        line = error_of(fit, "--data=EMNIST", "--data.split=capitals")
        assert (
            line
            == "error: --data.split capitals: expected 'byclass', 'bymerge', 'balanced', 'letters', 'digits', 'mnist'"
        )


@pytest.mark.parametrize(("cls", "longest"), [(KMNIST, 28), (EMNIST, 24), (QMNIST, 20)])
def test_own_pictures_are_prepared_like_the_dataset(cls, longest):
    photo = np.full((200, 300), 255, np.uint8)
    photo[50:130, 80:110] = 20
    prepared = cls().preparation(Image.fromarray(photo))[0].numpy()
    rows, columns = (np.flatnonzero((prepared > 128).any(axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == pytest.approx(longest, abs=1)
    assert abs((rows[0] + rows[-1] + 1) / 2 - 14) <= 1
    assert abs((columns[0] + columns[-1] + 1) / 2 - 14) <= 1
