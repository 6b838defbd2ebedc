from torch import nn

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing.main_settings import changed_settings, main_settings
from cnn_lightning.checkpointing.settings import flat_settings

CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3, "precision": None, "callbacks": None, "accumulate_grad_batches": 1, "devices": 7},
    "model": {
        "net": {"class_path": "cnn_lightning.DropoutCNN", "init_args": {"in_channels": 1, "num_classes": 10}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}},
        "lr_schedule": {"class_path": "cnn_lightning.OneCycle", "init_args": {}},
        "label_smoothing": 0.0,
        "compile_mode": None,
    },
    "data": {
        "class_path": "cnn_lightning.Digits",
        "init_args": {"root": "x", "batch_size": 8, "shift": 0, "mean": None},
    },
}


def config(**changes):
    """CONFIG with other values, "model__net__init_args__in_channels" -> value."""

    def copy(value):
        return {key: copy(each) for key, each in value.items()} if isinstance(value, dict) else value

    changed = copy(CONFIG)
    for path, value in changes.items():
        *parts, last = path.split("__")
        place = changed
        for part in parts:
            place = place[part]
        place[last] = value
    return changed


def test_main_settings_come_in_their_order():
    main = main_settings(flat_settings("", CONFIG))
    assert list(main.items()) == [
        ("network", "DropoutCNN"), ("dataset", "Digits"), ("optimizer", "AdamW"), ("lr", 0.1), ("batch_size", 8),
        ("epochs", 3),
    ]  # fmt: skip


def test_defaults_are_left_out():
    assert changed_settings(CONFIG, ImageClassifier) == {}


def test_what_differs_from_the_defaults():
    changes = config(
        seed_everything=3,
        model__label_smoothing=0.1,
        model__net__init_args__in_channels=3,
        model__optimizer__init_args__betas=[0.8, 0.999],
        model__lr_schedule=None,
        data__init_args__shift=2,
        data__init_args__root="elsewhere",
        trainer__accumulate_grad_batches=2,
        trainer__callbacks=[{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {}}],
        trainer__devices=2,
    )
    assert changed_settings(changes, ImageClassifier) == {
        "seed_everything": 3,
        "model.label_smoothing": 0.1,
        "model.net.in_channels": 3,
        "model.optimizer.betas": [0.8, 0.999],
        "model.lr_schedule": None,
        "data.shift": 2,
        "trainer.accumulate_grad_batches": 2,
        "trainer.callbacks": ["EMAWeightAveraging"],
    }


class OwnNet(nn.Module):
    def __init__(self, depth: int, width: int = 8):
        super().__init__()


def test_own_classes():
    """A value without a default is the user's; of a class that is not imported, all are."""
    net = {"class_path": f"{__name__}.OwnNet", "init_args": {"depth": 2, "width": 8}}
    data = {"class_path": "nowhere.Data", "init_args": {"size": 5, "batch_size": 3}}
    changed = changed_settings(config(model__net=net, data=data), ImageClassifier)
    assert changed == {"model.net.depth": 2, "data.size": 5}


def test_settings_that_are_missing():
    assert main_settings({"model.net": "OwnNet"}) == {"network": "OwnNet"}
    assert changed_settings({"model": CONFIG["model"]}, ImageClassifier) == {}
