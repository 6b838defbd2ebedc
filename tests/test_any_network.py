"""Any nn.Module and any LightningDataModule, from the command line and from Python."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cnn_lightning import Digits, ImageClassifier, nets
from cnn_lightning.callbacks.dataset import loss_weight
from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.sizes import check_sizes
from cnn_lightning.errors import UsageError
from cnn_lightning.facts import facts_of, has_parts

OWN = """
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Plain(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.conv, self.drop, self.out = nn.Conv2d(1, width, 3), nn.Dropout(0.3), nn.Linear(width, 10)
    def forward(self, images):
        return self.out(self.drop(self.conv(images).relu().mean(dim=(2, 3))))

class WrongShape(Plain):
    def forward(self, images):
        return self.out(self.conv(images).flatten(1))

class Loaders(LightningDataModule):
    def __init__(self, batch_size: int = 50):
        super().__init__()
        self.batch_size = batch_size
    def loader(self, seed, shuffle=False):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (400,), generator=generator)
        images = torch.randn(400, 1, 28, 28, generator=generator) + labels[:, None, None, None] / 3
        return DataLoader(TensorDataset(images, labels), self.batch_size, shuffle=shuffle)
    def train_dataloader(self):
        return self.loader(0, shuffle=True)
    def val_dataloader(self):
        return self.loader(1)
    def test_dataloader(self):
        return self.loader(2)

class Stop(Callback):
    def __init__(self, step: int):
        self.step = step
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("stopped here")
"""
SHORT = ["--trainer.max_epochs=3", "--trainer.enable_progress_bar=false", "--dashboard=false"]
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


@pytest.fixture
def own(monkeypatch):
    """Write anynet.py into this folder, which the commands put at the end of the path."""
    Path("anynet.py").write_text(OWN)
    monkeypatch.syspath_prepend(".")  # removed again after the test, as the module is
    yield
    sys.modules.pop("anynet", None)


def last(folder: str) -> dict:
    (path,) = Path(folder).glob("*/version_0/checkpoints/last.ckpt")
    return read_checkpoint(path)


@pytest.mark.parametrize("step", [8, 11])
def test_run_on_data_loaders_is_resumed_to_the_bit(own, step):
    options = ["--data=anynet.Loaders", "--model.net=anynet.Plain", "--save_every_n_steps=1", *SHORT]
    fit([*options, "--trainer.default_root_dir=whole"])
    stop = ["--trainer.callbacks+=anynet.Stop", f"--trainer.callbacks.step={step}"]
    with pytest.raises(KeyError, match="stopped here"):
        fit([*options, "--trainer.default_root_dir=parts", *stop])
    assert last("parts")["global_step"] == step
    fit([*options, "--trainer.default_root_dir=parts", "--ckpt_path=last"])
    whole, parts = last("whole"), last("parts")
    assert whole["global_step"] == parts["global_step"] == 24
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, parts["state_dict"][name]), name


def test_checkpoint_of_own_classes(own, capsys, error_of):
    fit(["--data=anynet.Loaders", "--model.net=anynet.Plain", "--model.net.width=4", *SHORT])
    assert "Training Plain on Loaders, seed 0" in capsys.readouterr().out
    (best,) = Path("logs/anynet.Plain-anynet.Loaders").glob("version_0/checkpoints/best.ckpt")
    checkpoint = read_checkpoint(best)
    assert checkpoint["hyper_parameters"]["net"] == {"class_path": "anynet.Plain", "init_args": {"width": 4}}
    assert checkpoint["datamodule_hyper_parameters"] == {"_class_path": "anynet.Loaders", "batch_size": 50}
    assert checkpoint["parameters"] == 4 * 10 + 50
    evaluate([str(best), "--model.net=anynet.Plain", "--data=anynet.Loaders", "--report=false"])
    assert "/400)" in capsys.readouterr().out
    del sys.modules["anynet"]
    error = error_of(evaluate, str(best), "--report=false")
    assert "names anynet.Plain and anynet.Loaders" in error
    assert error.endswith("--model.net anynet.Plain --data anynet.Loaders")


def test_layer_in_which_shapes_do_not_fit_is_named(own):
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied.*, in layer out \(Linear\(in_features=8"):
        fit(["--data=Digits", "--model.net=anynet.WrongShape", *SHORT])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.net=anynet", "--model.net anynet: anynet.py is a file, expected a class in it: anynet.CLASS"),
        ("--model.net=anynet.Plane", "anynet.Plane: there is no such class; did you mean anynet.Plain?"),
        ("--model.net=anynet.Stop", "anynet.Stop: it is not a subclass of torch.nn.Module"),
        ("--model.net=nowhere.Net", "No module named 'nowhere'; expected nowhere.py in this folder or in PYTHONPATH"),
        ("--data=anynet.Plain", "anynet.Plain: it is not a subclass of LightningDataModule"),
    ],
)
def test_causes_are_told_apart(own, option, message, error_of):
    assert message in error_of(fit, "--data=Digits", *SHORT, option)


def test_layer_of_a_library_in_a_checkpoint_needs_to_be_named(train, tmp_path):
    checkpoint = torch.load(train("--data=MNIST") / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["net"] = {"class_path": "torchvision.models.alexnet.AlexNet", "init_args": {}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match=r"names torchvision\.models\.alexnet\.AlexNet"):
        ImageClassifier.load_from_checkpoint(tmp_path / "other.ckpt")


def test_sequential_built_in_python_trains_saves_and_loads():
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13**2, 10))

    model, trainer = ImageClassifier(build()), Trainer(max_epochs=2, **QUIET)
    trainer.fit(model, Digits())
    trainer.save_checkpoint("sequential.ckpt")
    with pytest.raises(UsageError, match=r"expected load_from_checkpoint\(path, net=NETWORK\)"):
        ImageClassifier.load_from_checkpoint("sequential.ckpt")
    again = ImageClassifier.load_from_checkpoint("sequential.ckpt", net=build())
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(again(images), model(images))
    facts = read_checkpoint(Path("sequential.ckpt"))["dataset"]
    assert facts["name"] == "Digits"
    assert (facts["mean"], facts["std"], facts["image_size"]) == ([Digits.MEAN], [Digits.STD], 28)
    assert facts["class_names"] == [str(digit) for digit in range(10)]


def test_python_trains_as_the_command_line_does():
    seed_everything(0)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET)
    trainer.fit(ImageClassifier(nets.TwoLayerCNN()), Digits())
    trainer.save_checkpoint("python.ckpt")
    fit(["--data=Digits", *SHORT, "--trainer.max_epochs=1"])
    typed, python = last("logs"), read_checkpoint(Path("python.ckpt"))
    assert all(torch.equal(weight, python["state_dict"][name]) for name, weight in typed["state_dict"].items())


def test_dataset_tells_the_network_its_sizes(error_of):
    fit(["--data=Digits", "--data.pad=2", "--trainer.max_epochs=1", "--dashboard=false"])
    sizes = last("logs")["hyper_parameters"]["net"]["init_args"]
    assert (sizes["in_channels"], sizes["num_classes"], sizes["image_size"]) == (1, 10, 32)
    typed = ["--data=Digits", "--data.pad=2", "--model.net.image_size=28", "--model.net.in_channels=3"]
    assert error_of(fit, *typed).endswith(
        "TwoLayerCNN has in_channels 3, image_size 28, but Digits has in_channels 1, image_size 32: "
        "change --model.net.in_channels 1 --model.net.image_size 32"
    )


def test_network_without_sizes_fits_any_dataset():
    check_sizes(nn.Linear(3, 3), Digits())
    assert has_parts(Digits())
    assert facts_of(Digits(mean=0.5, std=0.25)).mean == [0.5]


@pytest.mark.parametrize("name", sorted(set(dir(nets)) & {each.__name__ for each in nets.ConvNet.__subclasses__()}))
def test_network_can_be_scripted(name):
    net, images = getattr(nets, name)().eval(), torch.rand(2, 1, 28, 28)
    with pytest.warns(FutureWarning, match="script"):
        scripted = torch.jit.script(net)
    assert torch.equal(scripted(images), net(images))


class _Counts(nn.Module):
    num_classes = 4


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    model = ImageClassifier(_Counts())
    loader = [(torch.zeros(5, 1, 2, 2), labels[:5]), (torch.zeros(5, 1, 2, 2), labels[5:])]
    model.trainer = type("Trained", (), {"train_dataloader": loader})()
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels.numpy())
    assert torch.allclose(loss_weight("balanced", model), torch.tensor(expected, dtype=torch.float32))
    assert loss_weight([1.0, 2.0, 3.0, 4.0], model).tolist() == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="class_weights has 2 numbers, expected one for each of 4 classes"):
        loss_weight([1.0, 2.0], model)


@pytest.mark.parametrize("value", ["evil.Backbone", '{"class_path": "evil.Backbone", "init_args": {"x": 7}}'])
def test_text_in_a_checkpoint_that_names_a_class_is_refused(own, value, capsys, error_of):
    """jsonargparse reads a class from a text, too; the module would run when it is imported."""
    Path("evil.py").write_text("open('ran', 'w')\nfrom torch import nn\nclass Backbone(nn.Identity): pass\n")
    Path("anynet.py").write_text(
        OWN + "\nclass Nested(Plain):\n    def __init__(self, backbone: nn.Module | None = None):\n"
        "        super().__init__()\n        self.backbone = backbone\n"
    )
    fit(["--data=Digits", "--model.net=anynet.Nested", "--trainer.max_epochs=1", "--dashboard=false"])
    (best,) = Path("logs").glob("*/version_0/checkpoints/best.ckpt")
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["hyper_parameters"]["net"]["init_args"]["backbone"] = value
    torch.save(checkpoint, "other.ckpt")
    assert "names evil.Backbone" in error_of(evaluate, "other.ckpt", "--report=false", "--model.net=anynet.Nested")
    with pytest.raises(UsageError, match=r"names evil\.Backbone"):
        ImageClassifier.load_from_checkpoint("other.ckpt")
    assert not Path("ran").exists()


def test_module_of_a_library_as_an_argument(own, capsys):
    Path("anynet.py").write_text(
        OWN + "\nclass Nested(Plain):\n    def __init__(self, last: nn.Module):\n"
        "        super().__init__()\n        self.last = last\n"
    )
    nested = ["--model.net=anynet.Nested", "--model.net.last=torch.nn.ReLU"]
    fit(["--data=Digits", *nested, "--trainer.max_epochs=1", "--dashboard=false"])
    evaluate(["--report=false", *nested])
    assert "/360)" in capsys.readouterr().out


def test_balanced_weights_of_loaders_with_workers_that_stay():
    class Kept(LightningDataModule):
        num_classes = 10

        def train_dataloader(self):
            images, labels = torch.randn(60, 1, 28, 28), torch.arange(60) % 10
            return DataLoader(TensorDataset(images, labels), 20, num_workers=1, persistent_workers=True)

        def val_dataloader(self):
            return self.train_dataloader()

    model, trainer = ImageClassifier(nets.LeNetCNN(), class_weights="balanced"), Trainer(max_epochs=1, **QUIET)
    trainer.fit(model, Kept())
    assert trainer.global_step == 3
    assert model.loss_weight.tolist() == [1.0] * 10


def test_facts_of_many_kinds():
    class Told(LightningDataModule):
        image_size, in_channels, class_names = (64, 64), np.int64(3), np.array(["cat", "dog"])
        mean, std = torch.tensor([[[[0.1]], [[0.2]], [[0.3]]]], dtype=torch.float64), np.array(0.5)

    facts = facts_of(Told())
    assert (facts.image_size, facts.in_channels, facts.num_classes) == (64, 3, 2)
    assert {type(facts.in_channels), type(facts.class_names[0])} == {int, str}
    assert (facts.mean, facts.std) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])


def test_arguments_by_keyword_are_recorded():
    class Wide(nets.LeNetCNN):
        def __init__(self, **settings):
            super().__init__(**settings)

    assert Wide(num_classes=3).init_args == {"num_classes": 3}
