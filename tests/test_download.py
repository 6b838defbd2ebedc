import gzip
import hashlib
import os
import shutil
import threading
import time
from urllib.parse import urlsplit

import pytest
from torchvision import datasets

from cnn_lightning.data import MNIST, download
from cnn_lightning.errors import UsageError
from tests.faults import flipped_bits, server, truncations

NAME = "t10k-labels-idx1-ubyte"


@pytest.fixture
def archives(tiny_root, tmp_path):
    """The packed files, as a server has them."""
    folder = tmp_path / "server"
    folder.mkdir()
    for path in (tiny_root / "MNIST/raw").iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder


@pytest.fixture
def raw(tiny_root, tmp_path):
    """A good copy of the tiny files, where the datasets are looked for."""
    return shutil.copytree(tiny_root / "MNIST/raw", tmp_path / "data/MNIST/raw")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, seconds in (("TIMEOUT", 0.5), ("GRACE", 0.5), ("PAUSE", 0.01)):
        monkeypatch.setattr(download, name, seconds)


def ask(monkeypatch, *servers):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.url for server in servers])
    monkeypatch.setattr(MNIST, "MIRRORS", ())


def is_complete(folder):
    return {path.name for path in folder.iterdir()} >= MNIST.SHA256.keys() and not MNIST(folder.parents[1])._bad_files()


def test_no_pause_where_no_server_can_be_asked_again(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(UsageError, match="no network in tests"):
        MNIST(tmp_path / "data").prepare_data()
    assert not any(pauses)


class TestServer:
    def test_that_is_good(self, archives, tmp_path, monkeypatch):
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            MNIST(tmp_path / "data").prepare_data()
            MNIST(tmp_path / "data").prepare_data()
        assert len(good.asked) == 4
        folder = tmp_path / "data/MNIST/raw"
        assert is_complete(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [".lock", *MNIST.SHA256, *(f"{name}.gz" for name in MNIST.SHA256)]
        )

    @pytest.mark.parametrize(
        ("behaviour", "answer", "times"),
        [
            ("403", "403 Forbidden", 1),
            ("404", "404 Not Found", 1),
            ("503", "503 Service Unavailable", 2),
            ("html", "sent 33 bytes of something else", 2),
            ("wrong", "sent [0-9,]+ bytes of something else", 2),
            ("cut", "cut off after [0-9,]+ of [0-9,]+ bytes", 2),
            ("drip", r"too slow, \d+ bytes in 1 s", 2),
            ("slow header", r"too slow, 0 bytes in 1 s", 2),
            ("silent", "timed out|too slow, 0 bytes in 1 s", 2),
        ],
    )
    def test_that_is_bad_is_an_error_in_time_or_another_is_asked(
        self, archives, tmp_path, monkeypatch, behaviour, answer, times
    ):
        began = time.monotonic()
        with server(archives, behaviour) as bad, server(archives, "good") as good:
            ask(monkeypatch, bad)
            with pytest.raises(UsageError, match=rf"MNIST is not on disk and was not downloaded \(127.*: ({answer})\)"):
                MNIST(tmp_path / "data").prepare_data()
            assert len(bad.asked) == times
            assert not (tmp_path / "data").exists()
            ask(monkeypatch, bad, good)
            MNIST(tmp_path / "data").prepare_data()
        assert is_complete(tmp_path / "data/MNIST/raw")
        assert time.monotonic() - began < 10

    def test_that_answers_like_another_shares_its_answer(self, archives, tmp_path, monkeypatch):
        with server(archives, "404") as first, server(archives, "403") as other, server(archives, "404") as second:
            ask(monkeypatch, first, other, second)
            with pytest.raises(UsageError) as error:
                MNIST(tmp_path / "data").prepare_data()
        names = [urlsplit(each.url).netloc for each in (first, second, other)]
        assert "({}, {}: 404 Not Found; {}: 403 Forbidden)".format(*names) in str(error.value)

    def test_whose_trouble_passes(self, archives, tmp_path, monkeypatch):
        with server(archives, "503", "cut", "html", "good") as moody:
            ask(monkeypatch, moody)
            with pytest.raises(UsageError, match="cut off"):
                MNIST(tmp_path / "data").prepare_data()
            MNIST(tmp_path / "data").prepare_data()
        assert is_complete(tmp_path / "data/MNIST/raw")

    def test_that_is_asked_by_four_at_once(self, archives, tmp_path, monkeypatch, capfd):
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            threads = [threading.Thread(target=MNIST(tmp_path / "data").prepare_data) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert is_complete(tmp_path / "data/MNIST/raw")
        assert len(good.asked) == 4, "each file is downloaded once"


class TestFilesByHand:
    def test_packed(self, archives, tmp_path):
        shutil.copytree(archives, tmp_path / "data/MNIST/raw")
        MNIST(tmp_path / "data", download=False).prepare_data()
        assert is_complete(tmp_path / "data/MNIST/raw")

    @pytest.mark.parametrize("damaged", ["empty", "cut", "flipped"])
    def test_a_damaged_file_is_restored_from_its_archive_and_kept(self, archives, raw, capsys, damaged):
        shutil.copy(archives / f"{NAME}.gz", raw)
        content = {
            "empty": b"",
            "cut": (raw / NAME).read_bytes()[:50],
            "flipped": b"\1" + (raw / NAME).read_bytes()[1:],
        }
        (raw / NAME).write_bytes(content[damaged])
        MNIST(raw.parents[1], download=False).prepare_data()
        assert is_complete(raw)
        assert (raw / f"{NAME}.damaged").read_bytes() == content[damaged]
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"warning: {raw / NAME} was damaged: renamed to {NAME}.damaged and replaced by an intact one"
        (raw / NAME).write_bytes(b"again")
        MNIST(raw.parents[1], download=False).prepare_data()
        assert (raw / f"{NAME}.damaged_2").read_bytes() == b"again"
        assert (raw / f"{NAME}.damaged").read_bytes() == content[damaged]

    def test_an_archive_that_is_damaged_as_well_is_downloaded(self, archives, raw, monkeypatch):
        for name in (NAME, f"{NAME}.gz"):
            (raw / name).write_bytes(b"nonsense")
        with pytest.raises(UsageError, match=rf"MNIST is damaged \({NAME}\) and was not downloaded"):
            MNIST(raw.parents[1], download=False).prepare_data()
        assert (raw / NAME).read_bytes() == b"nonsense"
        with server(archives, "good") as good:
            ask(monkeypatch, good)
            MNIST(raw.parents[1]).prepare_data()
        assert is_complete(raw)
        assert (raw / f"{NAME}.gz.damaged").read_bytes() == b"nonsense"

    def test_an_archive_that_claims_to_be_huge(self, raw, monkeypatch):
        monkeypatch.setattr(MNIST, "MOST_BYTES", 2**16)
        (raw / NAME).unlink()
        (raw / f"{NAME}.gz").write_bytes(gzip.compress(bytes(2**20)))
        with pytest.raises(UsageError, match="was not downloaded"):
            MNIST(raw.parents[1], download=False).prepare_data()

    def test_no_damage_goes_unnoticed(self, raw):
        for name in MNIST.SHA256:
            content = (raw / name).read_bytes()
            for damaged in (*flipped_bits(content, 50), *truncations(content, 20)):
                (raw / name).write_bytes(damaged)
                with pytest.raises(UsageError, match=rf"{name} is damaged \([\d,]+ bytes\): remove it and run again"):
                    MNIST(raw.parents[1])._read_file(name)
            (raw / name).write_bytes(content)

    def test_a_death_while_unpacking_leaves_nothing_half(self, archives, raw, monkeypatch):
        shutil.copy(archives / f"{NAME}.gz", raw)
        (raw / NAME).unlink()
        (raw / f"{NAME}.part").write_bytes(b"half of i")
        MNIST(raw.parents[1], download=False).prepare_data()
        assert is_complete(raw)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only_is_enough_where_all_is_there(self, raw):
        raw.chmod(0o500)
        MNIST(raw.parents[1]).prepare_data()


def test_the_right_files_are_those_of_the_makers():
    """Of the packed files, torchvision knows MD5; of the unpacked, these are the known sizes."""
    assert MNIST.SHA256.keys() == {name.removesuffix(".gz") for name, _ in datasets.MNIST.resources}


@pytest.mark.real_data
def test_real_files_are_right():
    for name in ("MNIST", "FashionMNIST"):
        module = getattr(__import__("cnn_lightning.data", fromlist=[name]), name)()
        assert module._bad_files() == []
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in module.folder.iterdir()}
        assert sums.items() >= module.SHA256.items()
