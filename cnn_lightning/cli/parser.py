"""A parser whose errors are one line: what was wrong, what was expected, the option or file to change.

Our own, because jsonargparse answers a mistyped name with the usage of a hundred options and a list of type errors.
"""

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser
from torch import optim

from cnn_lightning import data, nets, schedules
from cnn_lightning.errors import UsageError, exit_with

# The options that take the name of a class, and where to find the classes.
CLASS_OPTIONS = {"model.net": nets, "model.optimizer": optim, "model.lr_schedule": schedules, "data": data}


class OneLineParser(LightningArgumentParser):
    """A LightningArgumentParser that prints one line and exits with code 2 when it cannot parse.

    Attributes:
        command_line: What the user typed, for the messages. An attribute of the class, because jsonargparse reads
            the arguments of a network or dataset with further parsers.
    """

    command_line: ClassVar[Sequence[str]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Else --trainer.max_epoch, a mistyped option, passes for an abbreviation.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print jsonargparse's message as one line, with the nearest name where one was mistyped, and exit."""
        # Exits at once, because jsonargparse would wrap an exception in further lines.
        exit_with(self._in_one_line(message))

    def _in_one_line(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            return self._no_such_option(match[1])
        if match := re.match(r"Option '(\S+)' is not accepted", message):
            return self._no_such_option(self._as_typed(match[1]))
        if match := re.match(r"Group '(\S+)' does not accept option '(\S+)'", message):
            return self._no_such_option(f"--{match[1]}.{match[2]}")
        if match := re.match(r'Parser key "(\S+)":\s+- Expected a path but (\S+) either', message):
            names = _class_names(match[1])
            return f"--{match[1]} {match[2]}: there is no such class{_did_you_mean(match[2], names)}"
        if match := re.match(r'Parser key "(\S+)":\s+(.*)', message, re.DOTALL):
            value = re.search(r"(?:Got|Given) value: (.*)", message)
            kinds = re.findall(r"Expected an? (?:<class '|typing.Literal\[)(.*?)(?:'>|\])", message)
            if value and kinds:
                expected = " or ".join(kinds).replace("NoneType", "null")
                return f"{self._as_typed(match[1])} {value[1]}: expected {expected}"
            return f"{self._as_typed(match[1])}: {match[2]}"
        return message

    def _no_such_option(self, option: str) -> str:
        options = [string for action in self._actions for string in action.option_strings]
        for key, module in CLASS_OPTIONS.items():
            options += [f"--{key}.{name}" for cls in _classes(module) for name in inspect.signature(cls).parameters]
        group = option.rpartition(".")[0]
        # The names of a group are compared without it, for what they share would make all of them near.
        siblings = {o.rpartition(".")[2]: o for o in options if o.rpartition(".")[0] == group}
        nearest = difflib.get_close_matches(option.rpartition(".")[2], siblings, n=1)
        return f"there is no option {option}" + (
            f"; did you mean {siblings[nearest[0]]}?" if nearest else _did_you_mean(option, options)
        )

    def _as_typed(self, key: str) -> str:
        """The whole name of an option of which jsonargparse tells only the last part."""
        typed = (arg.split("=")[0] for arg in self.command_line)
        return next((arg for arg in typed if f".{arg.removeprefix('--')}".endswith(f".{key}")), f"--{key}")


def check_config_files(args: Sequence[str]) -> None:
    """Look at the files of ``--config`` before jsonargparse does, whose messages do not name them.

    Raises:
        UsageError: One is missing, or is not YAML with settings.
    """
    for path in _config_files(args):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"--config {path} is not text: expected a YAML file") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1
            raise UsageError(f"--config {path} is not YAML, line {line}: {error.problem}") from error
        if not isinstance(content, dict):
            raise UsageError(f"--config {path} holds no settings: expected lines like 'trainer: {{max_epochs: 3}}'")


def _config_files(args: Sequence[str]) -> Iterator[str]:
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        name, _, value = arg.partition("=")
        if name in ("-c", "--config"):
            yield value or following


def _classes(module: Any) -> list[type]:
    """The classes of a module that can be built, without those it imports from elsewhere."""
    classes = [member for member in vars(module).values() if inspect.isclass(member)]
    return [cls for cls in classes if cls.__module__.startswith(module.__name__) and not inspect.isabstract(cls)]


def _class_names(option: str) -> list[str]:
    return sorted(cls.__name__ for cls in _classes(CLASS_OPTIONS[option])) if option in CLASS_OPTIONS else []


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    if nearest := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {nearest[0]}?"
    return f"; choose from {', '.join(names)}" if 0 < len(names) < 20 else "; see --help"
