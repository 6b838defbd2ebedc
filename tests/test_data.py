import hashlib
import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torchvision import datasets
from torchvision.transforms.functional import normalize, to_tensor

from cnn_lightning import ImageClassifier, LeNetCNN
from cnn_lightning.data import MNIST, Digits, FashionMNIST, idx
from cnn_lightning.data.default import MNISTOrDigits
from cnn_lightning.data.loader import IGNORED, EpochSampler, TensorLoader
from cnn_lightning.errors import UsageError


def fitted(module):
    module.setup("fit")
    return module


def fit(root, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", enable_checkpointing=False, num_sanity_val_steps=0, **quiet, **settings)
    trainer.fit(ImageClassifier(LeNetCNN()), MNIST(root))


def rows(images):
    """Images as hashable rows, to compare sets of them."""
    return {bytes(image.numpy()) for image in images}


class TestSplit:
    def test_parts_are_disjoint_and_complete(self, tiny_root):
        module = fitted(MNIST(tiny_root, val_size=50))
        everything, _ = module.read(train=True)
        train, val = (rows(module._parts[part][0]) for part in ("train", "val"))
        assert (len(train), len(val)) == (350, 50)
        assert not train & val
        assert train | val == rows(everything)

    @pytest.mark.parametrize("val_size", [40, 0.1])
    def test_takes_a_count_or_a_fraction(self, tiny_root, val_size):
        module = fitted(MNIST(tiny_root, val_size=val_size))
        assert (module.size("train"), module.size("val")) == (360, 40)

    def test_is_stratified(self, tiny_root):
        module = fitted(MNIST(tiny_root, val_size=70))
        assert module._parts["val"][1].bincount().tolist() == [7] * 10

    def test_is_the_same_in_every_stage_and_process(self, in_new_process):
        fit, validate = Digits(), Digits()
        torch.manual_seed(1)
        fit.setup("fit")
        torch.manual_seed(2)
        validate.setup("validate")
        assert torch.equal(fit._parts["val"][0], validate._parts["val"][0])
        ended, printed, _ = in_new_process(
            "from cnn_lightning import Digits; module = Digits(); module.setup('fit')\n"
            "print(module._parts['val'][0].sum((1, 2, 3)).tolist())"
        )
        assert ended == 0
        assert json.loads(printed) == fit._parts["val"][0].sum((1, 2, 3)).tolist()

    def test_follows_its_own_seed(self, tiny_root):
        first, second = (fitted(MNIST(tiny_root, split_seed=seed)) for seed in (0, 1))
        assert rows(first._parts["val"][0]) != rows(second._parts["val"][0])

    @pytest.mark.parametrize("val_size", [0, 9, 391, 400, 5000, 0.0, 0.99, 1.0, -1, math.nan, math.inf, None])
    def test_refuses_what_leaves_too_few(self, tiny_root, val_size):
        with pytest.raises(UsageError, match=rf"val_size is {val_size}, expected .* of the 400 ") as error:
            MNIST(tiny_root, val_size=val_size).setup("fit")
        assert error.value.argument == "val_size"

    def test_training_never_reads_the_test_images(self, tiny_root, monkeypatch):
        module = MNIST(tiny_root)
        asked = []
        read = module.read
        monkeypatch.setattr(module, "read", lambda train: asked.append(train) or read(train))
        for stage in ("fit", "validate", "fit"):
            module.setup(stage)
        assert asked == [True]
        module.setup("test")
        module.setup("test")
        assert asked == [True, False]

    def test_digits_keep_their_test_images_whatever_the_seed(self):
        torch.manual_seed(3)
        first, second = Digits(split_seed=0), Digits(split_seed=9)
        assert torch.equal(first.read(train=False)[0], second.read(train=False)[0])
        train, test = rows(first.read(train=True)[0]), rows(first.read(train=False)[0])
        assert (len(first.read(train=True)[1]), len(first.read(train=False)[1])) == (1437, 360)
        assert not train & test


class TestLoaders:
    def test_every_training_image_once_an_epoch_and_shuffled_anew(self, tiny_root):
        loader = fitted(MNIST(tiny_root, batch_size=32)).train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(torch.cat([images for images, _ in loader]))
        assert rows(epochs[0]) == rows(epochs[1])
        assert len(rows(epochs[0])) == 360
        assert not torch.equal(epochs[0], epochs[1])

    def test_order_follows_seed_and_epoch_alone(self):
        orders = {}
        for seed in range(3):
            for epoch in range(3):
                sampler = EpochSampler(50, seed)
                sampler.set_epoch(epoch)
                orders[seed, epoch] = sampler.order()
                assert torch.equal(sampler.order(), orders[seed, epoch])
        assert len({tuple(order.tolist()) for order in orders.values()}) == 9

    def test_order_follows_the_global_seed(self, tiny_root):
        module = fitted(MNIST(tiny_root))
        firsts = []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            torch.rand(3)
            firsts.append(next(iter(module.train_dataloader()))[1])
        assert torch.equal(firsts[0], firsts[2])
        assert not torch.equal(firsts[0], firsts[1])

    def test_lightning_shuffles_every_epoch_anew(self, tiny_root):
        """Lightning itself sets the epoch of the loader."""
        epochs = [[], []]

        class Recorder(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                epochs[trainer.current_epoch].extend(batch[0].sum((1, 2, 3)).tolist())

        fit(tiny_root, callbacks=[Recorder()], max_epochs=2)
        assert sorted(epochs[0]) == sorted(epochs[1])
        assert epochs[0] != epochs[1]

    @pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
    def test_overfitting_sees_the_same_batch_every_epoch(self, tiny_root):
        epochs = [[], []]

        class Recorder(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                epochs[trainer.current_epoch].extend(batch[0].sum((1, 2, 3)).tolist())

        fit(tiny_root, callbacks=[Recorder()], max_epochs=2, overfit_batches=1)
        assert epochs[0] == epochs[1]

    @pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
    def test_overfitting_changes_no_image(self, tiny_root):
        module = FashionMNIST(tiny_root, flip=True, shift=2, rotate=10, elastic=1, erase=0.5)
        module.trainer = SimpleNamespace(
            strategy=SimpleNamespace(root_device=torch.device("cpu")), global_rank=0, world_size=1, overfit_batches=1
        )
        images, _ = next(iter(fitted(module).train_dataloader()))
        assert torch.equal(images, module.normalize(module.part("train")[0][:64]))

    @pytest.mark.parametrize(
        "changes", [{"flip": True, "shift": 2}, {"rotate": 10, "scale": 0.1}, {"elastic": 1.0}, {"erase": 1.0}]
    )
    def test_training_images_are_changed_anew_every_epoch_and_no_others(self, tiny_root, changes):
        plain = fitted(FashionMNIST(tiny_root, batch_size=32))
        changed = fitted(FashionMNIST(tiny_root, batch_size=32, **changes))
        epochs = {}
        for epoch in (0, 1, 0):
            loaders = plain.train_dataloader(), changed.train_dataloader()
            for loader in loaders:
                loader.sampler.set_epoch(epoch)
            batches = [[torch.cat(parts) for parts in zip(*loader, strict=True)] for loader in loaders]
            (images, labels), (moved, same_labels) = batches
            assert torch.equal(labels, same_labels)
            different = (images != moved).flatten(1).any(1).float().mean()
            assert different > 0.9  # one of 50 draws changes nothing
            assert torch.equal(epochs.setdefault(epoch, moved), moved)
        assert rows(epochs[0]) != rows(epochs[1])
        for stage in ("val", "test"):
            changed.setup(stage)
            plain.setup(stage)
            loaders = getattr(plain, f"{stage}_dataloader")(), getattr(changed, f"{stage}_dataloader")()
            assert all(torch.equal(a[0], b[0]) for a, b in zip(*loaders, strict=True))

    def test_every_process_gets_its_share(self, tiny_root):
        loaders = []
        for rank in range(2):
            module = fitted(MNIST(tiny_root))
            strategy = SimpleNamespace(root_device=torch.device("cpu"))
            module.trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=2, overfit_batches=0.0)
            loaders.append(module.train_dataloader())
        shares = [rows(torch.cat([images for images, _ in loader])) for loader in loaders]
        assert not shares[0] & shares[1]
        assert len(shares[0] | shares[1]) == 360

    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_validation_and_test_keep_order_and_last_batch(self, tiny_root, stage):
        module = fitted(MNIST(tiny_root, batch_size=32, drop_last=True))
        module.setup("test")
        loader = getattr(module, f"{stage}_dataloader")()
        batches = list(loader)
        assert len(batches) == len(loader)
        images, labels = module._parts[stage]
        assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)
        torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), module.normalize(images))

    @pytest.mark.parametrize(("drop_last", "sizes"), [(False, [100, 100, 100, 60]), (True, [100, 100, 100])])
    def test_drop_last(self, tiny_root, drop_last, sizes):
        loader = fitted(MNIST(tiny_root, batch_size=100, drop_last=drop_last)).train_dataloader()
        assert [len(labels) for _, labels in loader] == sizes
        assert len(loader) == len(sizes)

    @pytest.mark.parametrize("settings", [{}, {"mean": 0.0, "std": 1.0}, {"mean": 0.5, "std": 0.5}])
    def test_pixels_are_those_of_torchvision(self, tiny_root, settings):
        module = fitted(FashionMNIST(tiny_root, batch_size=40, **settings))
        batch, labels = next(iter(module.val_dataloader()))
        mean, std = settings.get("mean", 0.2860), settings.get("std", 0.3530)
        pixels = [to_tensor(image[0].numpy()) for image in module._parts["val"][0]]
        expected = torch.stack([normalize(image, [mean], [std]) for image in pixels])
        torch.testing.assert_close(batch, expected)
        assert (batch.dtype, labels.dtype) == (torch.float32, torch.int64)

    @pytest.mark.parametrize("size", [60, 61, 62, 63])
    def test_processes_share_the_images(self, size):
        images, labels = torch.zeros(size, 1, 1, 1, dtype=torch.uint8), torch.arange(size)

        def parts(world_size, batch_size, **settings):
            loaders = (
                TensorLoader(images, labels, batch_size, lambda x: x, rank=rank, world_size=world_size, **settings)
                for rank in range(world_size)
            )
            return [[batch for _, batch in loader] for loader in loaders]

        tested = torch.cat([batch for part in parts(4, 5) for batch in part])
        assert sorted(tested.tolist()) == list(range(size))

        (alone,) = parts(1, 20, shuffle_seed=7, even=True)
        assert sorted(torch.cat(alone).tolist()) == list(range(size))
        trained = parts(4, 5, shuffle_seed=7, even=True)
        assert {len(part) for part in trained} == {len(alone)}, "a process would wait for ever"
        for together, batch in zip(zip(*trained, strict=True), alone, strict=True):
            assert sorted(label for label in torch.cat(together).tolist() if label != IGNORED) == sorted(batch.tolist())
            assert len({len(part) for part in together}) == 1
            assert IGNORED not in together[0]
        full = parts(4, 5, shuffle_seed=7, even=True, drop_last=True)
        for part, whole in zip(full, trained, strict=True):
            assert [batch.tolist() for batch in part] == [batch.tolist() for batch in whole[: size // 20]]

    def test_resumes_within_an_epoch_and_only_in_that(self):
        images, labels = torch.zeros(50, 1, 1, 1, dtype=torch.uint8), torch.arange(50)

        def loader(epoch):
            loader = TensorLoader(images, labels, 8, lambda x: x, shuffle_seed=3)
            loader.sampler.set_epoch(epoch)
            return loader

        interrupted, whole = loader(2), [batch.tolist() for _, batch in loader(2)]
        next(iter(interrupted))  # a look at the first batch changes nothing
        for _ in zip(range(3), interrupted, strict=False):
            position = interrupted.state_dict()
        assert position == {"seed": 3, "epoch": 2, "batches": 3, "world_size": 1}
        resumed = loader(2)
        resumed.load_state_dict(position)
        assert [batch.tolist() for _, batch in resumed] == whole[3:]
        assert [batch.tolist() for _, batch in resumed] == whole
        next_epoch = loader(3)
        next_epoch.load_state_dict(position)
        assert len(list(next_epoch)) == len(whole)
        resumed.load_state_dict(position | {"world_size": 2})
        with pytest.raises(UsageError, match=r"started with 2 processes, now there are 1") as error:
            next(iter(resumed))
        assert error.value.argument == "devices"


class TestFiles:
    def test_missing_files_are_named_with_their_folder(self, tmp_path):
        with pytest.raises(UsageError) as error:
            MNIST(tmp_path / "data").prepare_data()
        message = str(error.value)
        assert "no network in tests" in message
        assert str(tmp_path / "data/MNIST/raw") in message
        for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            assert name in message
        assert "\n" not in message
        assert error.value.argument == "root"

    def test_only_what_is_missing_is_named(self, tiny_copy):
        (tiny_copy / "FashionMNIST/raw/t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(UsageError, match=r"FashionMNIST .* expected t10k-labels-idx1-ubyte \(or"):
            FashionMNIST(tiny_copy, download=False).prepare_data()

    def test_nothing_is_downloaded_when_all_is_there(self, tiny_root, monkeypatch):
        monkeypatch.setattr(idx, "download", lambda *_: pytest.fail("downloads"))
        MNIST(tiny_root).prepare_data()

    def test_nothing_is_downloaded_when_forbidden(self, tmp_path, monkeypatch):
        monkeypatch.setattr(idx, "download", lambda *_: pytest.fail("downloads"))
        with pytest.raises(UsageError, match=r"not downloaded \(download is false\)"):
            MNIST(tmp_path / "new", download=False).prepare_data()
        assert not (tmp_path / "new").exists()

    def test_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match=r"cannot read or write .*file") as error:
            MNIST(tmp_path / "file" / "data").prepare_data()
        assert error.value.argument == "root"

    @pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
    @pytest.mark.parametrize("size", [0, 3, 9, 200, -1])
    def test_truncated_file_is_named(self, tiny_copy, name, size):
        path = tiny_copy / "MNIST/raw" / name
        os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
        with pytest.raises(UsageError, match=rf"{name} is damaged \([\d,]+ bytes\): remove it"):
            MNIST(tiny_copy).setup("fit")

    @pytest.fixture
    def hashed(self, monkeypatch):
        """How many bytes were hashed each time."""
        sizes = []
        sha256 = hashlib.sha256
        monkeypatch.setattr(hashlib, "sha256", lambda content: sizes.append(len(content)) or sha256(content))
        return sizes

    def test_each_file_is_hashed_once(self, tiny_copy, hashed):
        cls, _ = MNISTOrDigits.choose(root=str(tiny_copy))
        module = cls(tiny_copy)
        module.prepare_data()
        module.prepare_data()
        module.setup("fit")
        module.setup("test")
        assert sorted(hashed) == sorted((tiny_copy / "MNIST/raw" / name).stat().st_size for name in MNIST.SHA256)

    @pytest.mark.parametrize("name", MNIST.SHA256)
    def test_a_file_that_changes_after_the_check_is_noticed(self, tiny_copy, name):
        MNIST(tiny_copy).prepare_data()
        path = tiny_copy / "MNIST/raw" / name
        with path.open("r+b") as file:
            file.write(b"\1")
        stage = "fit" if name.startswith("train") else "test"
        with pytest.raises(UsageError, match=f"MNIST is damaged .{name}. and was not downloaded"):
            MNIST(tiny_copy, download=False).prepare_data()
        with pytest.raises(UsageError, match=f"{name} is damaged"):
            MNIST(tiny_copy).setup(stage)
        path.unlink()
        with pytest.raises(UsageError, match=f"cannot read .*{name}") as error:
            MNIST(tiny_copy).setup(stage)
        assert error.value.argument == "root"

    def test_a_file_that_changes_and_keeps_size_and_time_is_noticed(self, tiny_copy):
        MNIST(tiny_copy).prepare_data()
        path = tiny_copy / "MNIST/raw/t10k-labels-idx1-ubyte"
        times = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(UsageError, match="is damaged"):
            MNIST(tiny_copy, download=False).prepare_data()

    def test_root_comes_from_the_variable(self, tiny_root, tmp_path, monkeypatch):
        assert str(MNIST().root) == "data"
        monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
        assert MNIST().root == tiny_root
        assert MNIST(str(tmp_path)).root == tmp_path


class TestNoneNamed:
    def test_mnist_where_it_is(self, tiny_root):
        assert MNISTOrDigits.choose(root=str(tiny_root)) == (MNIST, "")

    def test_digits_where_it_cannot_be_had_with_the_reason(self, tmp_path):
        chosen, reason = MNISTOrDigits.choose(root=str(tmp_path))
        assert chosen is Digits
        assert "no network in tests" in reason

    def test_wrong_settings_are_not_a_reason(self):
        with pytest.raises(UsageError, match="batch_size is 0"):
            MNISTOrDigits.choose(batch_size=0)


@pytest.fixture
def tiny_copy(tiny_root, tmp_path):
    return shutil.copytree(tiny_root, tmp_path / "copy")


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": -5},
        {"pad": None},
        {"std": 0.0},
        {"std": math.inf},
        {"mean": math.nan},
        {"split_seed": -1},
        {"rotate": -1},
        {"scale": 1.0},
        {"shear": 61},
        {"elastic": float("nan")},
        {"erase": 1.1},
        {"shift": -1},
        {"shift": 28},
    ],
)
def test_impossible_settings(settings):
    (name,) = settings
    with pytest.raises(UsageError, match=rf"^{name} is .*, expected ") as error:
        Digits(**settings)
    assert error.value.argument == name
    assert "--" not in str(error.value)


def test_flip_is_refused_where_it_changes_the_class(tiny_root):
    with pytest.raises(UsageError, match="flip is true, expected false: flipped images of MNIST") as error:
        MNIST(tiny_root, flip=True).setup("fit")
    assert error.value.argument == "flip"


def test_a_batch_that_is_never_full_is_refused(tiny_root):
    with pytest.raises(UsageError, match="the 360 training images do not fill a batch of 361") as error:
        fitted(MNIST(tiny_root, batch_size=361, drop_last=True)).train_dataloader()
    assert error.value.argument == "batch_size"


def test_an_own_dataset_may_leave_options_out():
    class Few(Digits):
        def __init__(self, batch_size=32):
            super().__init__(batch_size=batch_size)
            self.hparams.pop("flip")  # as LightningCLI saves only the arguments of the class that was chosen

    assert len(fitted(Few()).train_dataloader()) == math.ceil(1293 / 32)


def test_class_names_are_in_the_order_of_torchvision():
    assert list(FashionMNIST.class_names) == datasets.FashionMNIST.classes
    assert [name.split(" - ")[0] for name in datasets.MNIST.classes] == list(MNIST.class_names)


def test_mean_and_std_of_digits():
    check_mean_and_std(Digits())


@pytest.mark.real_data
@pytest.mark.parametrize("module", [MNIST, FashionMNIST])
def test_mean_and_std_of_real_data(module):
    check_mean_and_std(module())


@pytest.mark.real_data
@pytest.mark.parametrize("module", [MNIST, FashionMNIST])
def test_split_of_real_data(module):
    module = fitted(module())
    module.setup("test")
    assert [module.size(part) for part in ("train", "val", "test")] == [54_000, 6_000, 10_000]
    share = module._parts["val"][1].bincount() / module.read(train=True)[1].bincount()
    assert ((share - 0.1).abs() < 0.001).all()


def check_mean_and_std(module):
    pixels = module.read(train=True)[0].double() / 255
    assert pixels.mean().item() == pytest.approx(module.MEAN, abs=5e-5)
    assert pixels.std(correction=0).item() == pytest.approx(module.STD, abs=5e-5)
