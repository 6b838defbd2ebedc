"""Options that do not exist: typos find their option, former names what replaced them, anything else no guess."""

import inspect
import re

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar

from cnn_lightning.cli.config_files import StepwiseParser
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.option_names import REPLACEMENTS, instead_of

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
    for replacement in REPLACEMENTS.values():
        words = re.findall(r"--[\w.]+", replacement)
        assert words or replacement.startswith(("scripts/compare.py", "leave it out"))
        assert existing.issuperset(words), replacement
        assert all(hasattr(callbacks, name) for name in re.findall(r"callbacks\+=(\w+)", replacement))


@pytest.mark.parametrize(
    ("mistyped", "end"),
    [
        ("--trainer.gpus", "; use --trainer.accelerator gpu --trainer.devices N"),
        ("--data_dir", "; use --data.root FOLDER"),
        ("--data.data_dir", "; use --data.root FOLDER"),
        ("--data.num_workers", "; leave it out: datasets are kept in memory, without worker processes"),
        ("--batch-size", "; did you mean --data.batch_size?"),
        ("--lr", "; did you mean --model.optimizer.lr?"),
        ("--max_epochs", "; did you mean --trainer.max_epochs?"),
        ("--modle.net", "; did you mean --model.net?"),
        ("--trianer.max_epoch", "; did you mean --trainer.max_epochs?"),
    ],
)
def test_examples(mistyped, end, options, error_of):
    assert instead_of(mistyped, options) == end
    assert error_of(fit, f"{mistyped}=1") == f"error: there is no option {mistyped}{end}"
