"""The console command, and how a command says that it can be called again."""

import sys

import pytest

from cnn_lightning.cli.main import COMMANDS, main
from cnn_lightning.cli.terminal import command_words
from tests.conftest import REPOSITORY


def test_calls_the_command_that_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cnn-lightning", "fit", "--trainer.max_epoch", "3"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "did you mean --trainer.max_epochs?" in capsys.readouterr().err


def test_without_a_command_it_lists_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cnn-lightning"])
    main()
    assert "{fit,evaluate,predict," in capsys.readouterr().out


def test_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cnn-lightning", "train"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no command train: choose from fit, evaluate")


def test_every_script_is_a_command():
    assert {path.stem for path in (REPOSITORY / "scripts").glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("called", "words"),
    [
        ("scripts/fit.py", ["python", "scripts/fit.py"]),
        ("/somewhere/cnn_lightning/__main__.py", ["python", "-m", "cnn_lightning", "fit"]),
        ("/somewhere/bin/cnn-lightning", ["/somewhere/bin/cnn-lightning", "fit"]),
    ],
)
def test_how_it_was_called(monkeypatch, called, words):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python3")
    shown = command_words("fit")
    assert [shown[0].rpartition("/")[2], *shown[1:]] == words if words[0] == "python" else shown == words
