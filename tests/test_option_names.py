"""Options that do not exist: typos find their option, former names what replaced them, anything else no guess."""

import inspect
import re

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar

from cnn_lightning import TorchvisionNet
from cnn_lightning.cli.config_files import StepwiseParser
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.option_names import REPLACEMENTS, instead_of, trainer_options

GROUPS = ("", "trainer.", "data.", "model.", "model.net.")


@pytest.fixture(scope="module")
def options():
    """All options of ``fit``."""
    parsers = []
    original = StepwiseParser.error

    def error(self, message, ex=None):
        parsers.append(self)
        original(self, message, ex)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepwiseParser, "error", error)
        with pytest.raises(SystemExit):
            fit(["--nonsense"])
    names = [name.replace(".init_args.", ".") for name in parsers[-1].get_defaults().keys(branches=True)]
    return [f"--{name}" for name in names if not name.endswith((".class_path", ".init_args"))]


def test_every_typo_of_one_letter_finds_its_option(options):
    """A letter left out, typed twice or swapped with the next; _ left out or typed as -."""
    typos = 0
    for option in options:
        group, leaf = re.fullmatch(r"(--.*\.|--)([^.]+)", option).groups()
        spots = range(len(leaf))
        typed = {leaf[:i] + leaf[i + 1 :] for i in spots} | {leaf[: i + 1] + leaf[i:] for i in spots}
        typed |= {leaf[:i] + leaf[i + 1] + leaf[i] + leaf[i + 2 :] for i in spots[:-1]}
        typed |= {leaf.replace("_", ""), leaf.replace("_", "-"), leaf.upper()}
        for mistyped in {f"{group}{typo}" for typo in typed - REPLACEMENTS.keys() if len(leaf) > 2} - set(options):
            typos += 1
            assert instead_of(mistyped, options) == f"; did you mean {option}?", mistyped
    assert typos > 1000


def test_no_guess_for_what_is_like_no_option(options):
    for group in GROUPS:
        for name in ("frobnicate", "verbose", "image", "x", "gamma", "foo_bar", "transform"):
            assert instead_of(f"--{group}{name}", options) == "; see --help", (group, name)


def test_former_and_foreign_names(options):
    for name, replacement in REPLACEMENTS.items():
        for group in GROUPS:
            end = instead_of(f"--{group}{name}", options)
            near = re.fullmatch(r"; did you mean (\S+)\?", end)
            assert replacement in end or (near and near[1] in replacement), (group, name, end)


def test_what_replaces_them_exists(options):
    arguments = [name for cls in (EarlyStopping, TQDMProgressBar) for name in inspect.signature(cls).parameters]
    existing = {*options, *(f"--trainer.callbacks.{name}" for name in arguments)}
    existing |= {f"--model.net.{name}" for name in inspect.signature(TorchvisionNet).parameters}
    for replacement in REPLACEMENTS.values():
        words = re.findall(r"--[\w.]+", replacement)
        assert words or replacement.startswith(("scripts/compare.py", "leave it out"))
        assert existing.issuperset(words), replacement
        assert all(hasattr(callbacks, name) for name in re.findall(r"callbacks\+=(\w+)", replacement))


@pytest.mark.parametrize(
    ("mistyped", "end"),
    [
        ("--trainer.gpus", "; use --trainer.accelerator gpu --trainer.devices 1"),
        ("--data_dir", "; use --data.root 1"),
        ("--data.data_dir", "; use --data.root 1"),
        ("--data.num_workers", "; leave it out: datasets are kept in memory, without worker processes"),
        ("--batch-size", "; did you mean --data.batch_size?"),
        ("--lr", "; use --model.optimizer.lr 1"),
        ("--model.lr", "; use --model.optimizer.lr 1"),
        ("--epochs", "; use --trainer.max_epochs 1"),
        ("--trainer.epochs", "; use --trainer.max_epochs 1"),
        ("--fold", "; use scripts/compare.py with variants of --data.split_seed, as docs/usage.md shows"),
        ("--classes", "; leave it out: the network takes the sizes and the number of classes of the dataset"),
        ("--max_epochs", "; did you mean --trainer.max_epochs?"),
        ("--modle.net", "; did you mean --model.net?"),
        ("--trianer.max_epoch", "; did you mean --trainer.max_epochs?"),
    ],
)
def test_examples(mistyped, end, options, error_of):
    assert instead_of(mistyped, options, "1") == end
    assert error_of(fit, f"{mistyped}=1") == f"error: there is no option {mistyped}{end}"


def test_the_value_that_was_typed_is_in_the_answer(error_of):
    assert error_of(fit, "--epochs", "3").endswith("; use --trainer.max_epochs 3")
    assert error_of(fit, "--model.lr=0.1").endswith("; use --model.optimizer.lr 0.1")
    assert error_of(fit, "--patience", "2").endswith("--trainer.callbacks.patience=2")
    assert error_of(fit, "--data_dir", "/my data").endswith("; use --data.root FOLDER"), "it would need quotes"
    assert error_of(fit, "--epochs").endswith("; use --trainer.max_epochs N")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("`max_epochs` must be a non-negative integer or -1. You passed in -3.", "--trainer.max_epochs"),
        ("`devices` selected with `CPUAccelerator` should be an int > 0.", "--trainer.devices"),
        ("`Timer(duration='5')` is not a valid duration.", "--trainer.max_time"),
        ("You set `Trainer(accelerator=cpu)` with `Trainer(devices=0)`", "--trainer.accelerator or --trainer.devices"),
        ("Something else", "the options of --trainer"),
    ],
)
def test_options_of_the_trainer_that_an_error_is_about(message, named):
    assert trainer_options(message) == named
