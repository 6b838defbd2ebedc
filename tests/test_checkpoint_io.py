import copy
import errno
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing import files
from cnn_lightning.checkpointing.checkpoint_io import CheckedCheckpointIO
from cnn_lightning.checkpointing.safe_loading import DamagedError, read_checkpoint
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import predict
from cnn_lightning.errors import UsageError
from tests.faults import Death, assert_equal, flipped_bits, truncations

CONTENT = {"state_dict": {"weight": torch.arange(500.0)}, "epoch": 3, "name": "é"}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "last.ckpt"
    CheckedCheckpointIO().save_checkpoint(CONTENT, path)
    return path


class TestFile:
    def test_is_read_as_it_was_saved(self, saved):
        assert_equal(read_checkpoint(saved), CONTENT, "checkpoint")
        assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]

    def test_is_a_common_checkpoint(self, saved):
        assert_equal(torch.load(saved, weights_only=True), CONTENT, "by torch.load")
        with zipfile.ZipFile(saved) as archive:
            assert archive.testzip() is None

    def test_of_others_is_read_too(self, tmp_path):
        torch.save(CONTENT, tmp_path / "plain.ckpt")
        assert_equal(read_checkpoint(tmp_path / "plain.ckpt"), CONTENT, "checkpoint")

    @pytest.mark.parametrize("digest", [True, False])
    def test_a_flipped_bit_or_a_missing_end_is_noticed(self, saved, digest):
        if not digest:
            torch.save(CONTENT, saved)
        content, refused = saved.read_bytes(), 0
        for damaged in (*flipped_bits(content, 200), *truncations(content, 50)):
            saved.write_bytes(damaged)
            try:
                # Without digest, what ZIP does not cover may change, like the date of a part.
                assert_equal(read_checkpoint(saved), CONTENT, "a damaged checkpoint was used")
            except DamagedError:
                refused += 1
        assert refused == 250 if digest else refused > 200

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4", bytes(1000), pickle.dumps(CONTENT["epoch"])])
    def test_something_else(self, saved, content):
        saved.write_bytes(content)
        with pytest.raises(DamagedError, match=r"last.ckpt is not a checkpoint, or a damaged one \([\d,]+ bytes\)"):
            read_checkpoint(saved)


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


class TestSavingThatFails:
    """In all of these, what was saved before is still there, whole, and alone."""

    @pytest.fixture(autouse=True)
    def earlier_one_stays(self, saved):
        yield
        assert_equal(read_checkpoint(saved), CONTENT, "what was saved before")
        assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]

    @pytest.mark.parametrize(
        ("function", "number"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("fsync", errno.EDQUOT)]
    )
    def test_because_the_disk_is_full_or_broken(self, saved, monkeypatch, function, number):
        monkeypatch.setattr(files.os, function, fail_with(number))
        with pytest.raises(UsageError, match=rf"cannot save the checkpoint {saved} \({os.strerror(number)}\)"):
            CheckedCheckpointIO().save_checkpoint({}, saved)

    def test_because_it_may_not_be_renamed(self, saved, monkeypatch):
        monkeypatch.setattr(Path, "replace", fail_with(errno.EACCES))
        with pytest.raises(UsageError, match="Permission denied"):
            CheckedCheckpointIO().save_checkpoint({}, saved)

    def test_because_the_disk_keeps_something_else(self, saved, monkeypatch):
        read = Path.read_bytes
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path: read(path)[:-1])
            with pytest.raises(UsageError, match="the written bytes read back differently"):
                CheckedCheckpointIO().save_checkpoint({}, saved)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_death_while_saving_leaves_the_earlier_one_and_the_next_can_be_saved(saved, monkeypatch, moment):
    def die(*args):
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(files.os if moment == "fsync" else Path, moment, die)
        patch.setattr(Path, "unlink", die)  # the dead do not tidy up
        with pytest.raises(Death):
            CheckedCheckpointIO().save_checkpoint({}, saved)
    assert saved.with_name("last.ckpt.part").exists()
    assert_equal(read_checkpoint(saved), CONTENT, "what was saved before")
    CheckedCheckpointIO().save_checkpoint({"epoch": 4}, saved)
    assert read_checkpoint(saved) == {"epoch": 4}
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


class Evil:
    """Pickled, it asks for a command to be run."""

    def __reduce__(self):
        return os.system, ("touch evil_was_here",)


class TestStrangersCheckpoint:
    @pytest.fixture
    def checkpoint(self, train):
        """A good one, and where to put a bad one."""
        path = train("--data=MNIST", "--model.net=LeNetCNN") / "checkpoints/best.ckpt"
        return torch.load(path, weights_only=True)

    def refused(self, state, tiny_root, capsys):
        """No command and no function of ours uses it; what each said."""
        torch.save(state, "evil.ckpt")
        Path("evil_module.py").write_text("import os; os.system('touch evil_was_here')\nclass Evil: pass")
        errors = []
        for command, args in (
            (fit, ["--ckpt_path=evil.ckpt", f"--data.root={tiny_root}"]),
            (evaluate, ["evil.ckpt", "--report=false", f"--data.root={tiny_root}"]),
            (predict, ["--ckpt_path=evil.ckpt", "photo.png"]),
        ):
            with pytest.raises(SystemExit) as stopped:
                command(args)
            assert stopped.value.code == 2
            errors.append(capsys.readouterr().err)
        with pytest.raises(UsageError) as error:
            ImageClassifier.load_from_checkpoint("evil.ckpt")
        assert not Path("evil_was_here").exists()
        return [*errors, str(error.value)]

    def test_with_code_in_a_pickle(self, checkpoint, tiny_root, capsys):
        for where in ("state_dict", "hyper_parameters", "callbacks"):
            state = copy.deepcopy(checkpoint)
            state[where]["evil"] = Evil()
            for error in self.refused(state, tiny_root, capsys):
                assert "evil.ckpt holds more than tensors and plain values, which could run code" in error

    def test_with_the_name_of_code(self, checkpoint, tiny_root, capsys, monkeypatch):
        monkeypatch.syspath_prepend(Path.cwd())
        everywhere = ["_instantiator", "_class_path", "net", "optimizer", "lr_schedule", "nested", "listed", "alone"]
        names = [(key, "os.system") for key in everywhere]
        names += [("net", name) for name in ("evil_module.Evil", "builtins.exec", "subprocess.Popen", 5)]
        for key, name in names:
            state = copy.deepcopy(checkpoint)
            settings = state["hyper_parameters"]
            named = {"class_path": name, "init_args": {"command": "touch evil_was_here"}}
            if key == "nested":
                settings["net"]["init_args"]["in_channels"] = named
            elif key == "listed":
                settings["net"]["init_args"]["in_channels"] = [1, named]
            elif key == "alone":
                settings["optimizer"] = name
            else:
                settings[key] = name if key.startswith("_") else named
            for error in self.refused(state, tiny_root, capsys):
                assert f"evil.ckpt names {name}, which is not an imported network" in error, key
            assert "evil_module" not in sys.modules

    @pytest.mark.parametrize("key", ["hparams", "module_arguments"])
    def test_with_the_name_of_code_where_lightning_looks_for_it_in_old_files(self, checkpoint, key, monkeypatch):
        Path("evil_module.py").write_text("import os; os.system('touch evil_was_here')\nclass Evil: pass")
        monkeypatch.syspath_prepend(Path.cwd())
        settings = checkpoint.pop("hyper_parameters")
        settings["net"] = {"class_path": "evil_module.Evil", "init_args": {}}
        torch.save(checkpoint | {key: settings, "hyper_parameters": {}}, "evil.ckpt")
        with pytest.raises(UsageError, match=r"names evil_module.Evil"):
            ImageClassifier.load_from_checkpoint("evil.ckpt")
        assert not Path("evil_was_here").exists()


def test_a_network_of_ones_own_is_loaded_where_it_is_imported(train, tiny_root, monkeypatch, capsys):
    Path("own_nets.py").write_text(
        "from cnn_lightning import LeNetCNN\nclass OwnNet(LeNetCNN):\n    '''Mine.'''\nprint('IMPORTED')"
    )
    monkeypatch.syspath_prepend(Path.cwd())
    path = train("--data=MNIST", "--model.net=own_nets.OwnNet") / "checkpoints/best.ckpt"
    monkeypatch.delitem(sys.modules, "own_nets")
    with pytest.raises(SystemExit):
        evaluate([str(path), "--report=false", f"--data.root={tiny_root}"])
    printed = capsys.readouterr()
    assert "names own_nets.OwnNet" in printed.err
    assert "IMPORTED" not in printed.out
    evaluate([str(path), "--report=false", f"--data.root={tiny_root}", "--model.net=own_nets.OwnNet"])
    assert "Testing OwnNet on MNIST" in capsys.readouterr().out
