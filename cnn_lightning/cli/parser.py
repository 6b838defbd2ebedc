"""A parser whose errors are one line: what was wrong, what was expected, the option or file to change.

Our own, because jsonargparse answers a mistyped name with the usage of a hundred options and a list of type errors.
"""

import copy
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser
from torch import optim

from cnn_lightning import data, nets
from cnn_lightning.cli.exit_codes import exit_with
from cnn_lightning.errors import UsageError
from cnn_lightning.optim import muon, schedules

# The options that take the name of a class, and where to find the classes.
CLASS_OPTIONS = {
    "model.net": [nets],
    "model.optimizer": [optim, muon],
    "model.lr_schedule": [schedules],
    "data": [data],
    "trainer.callbacks": [callbacks],
    "trainer.logger": [loggers],
}


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
            option, value = self._as_typed(match[1]), match[2]
            names = _class_names(option.removeprefix("--"))
            if not names:
                return f"{option} {value}: expected another kind of value, see --help"
            return f"{option} {value}: there is no such class{_did_you_mean(value, names)}"
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
        for key, modules in CLASS_OPTIONS.items():
            options += [f"--{key}.{name}" for cls in _classes(modules) for name in inspect.signature(cls).parameters]
        group = option.rpartition(".")[0]
        if option in options:
            return f"{option} is not an option of the class that is chosen for {group}; see {group}.help"
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
    for path in _config_files(args).values():
        _read_config(path)


def drop_other_classes(args: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """Take out of the files of ``--config`` the settings of classes that others have taken the place of.

    Args:
        args: Command-line arguments.
        chosen: For options like "model.net" the name of the class that was chosen in the end.

    Returns:
        The arguments, with the changed content of a file in place of its name.
    """
    args = list(args)
    for position, path in _config_files(args).items():
        content = _read_config(path)
        before = copy.deepcopy(content)
        for option, name in chosen.items():
            *groups, key = option.split(".")
            group = content
            for part in groups:
                group = group.get(part) or {}
            if group.get(key) and class_name(group[key]) != name:
                del group[key]
        if content != before:
            flag, separator, _ = args[position].rpartition("=")
            args[position] = flag + separator + yaml.safe_dump(content)
    return args


def class_name(spec: Any) -> str:
    """The name of the class in a configuration, which is its path or {class_path, init_args}."""
    return (spec if isinstance(spec, str) else spec["class_path"]).rpartition(".")[2]


def _read_config(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not text: expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UsageError(f"--config {path} is not YAML, line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no settings: expected lines like 'trainer: {{max_epochs: 3}}'")
    return content


def _config_files(args: Sequence[str]) -> dict[int, str]:
    """The files of ``--config``, by the positions of the arguments that name them."""
    joined = {i: arg.split("=", 1)[1] for i, arg in enumerate(args) if arg.startswith(("-c=", "--config="))}
    apart = {i: arg for i, arg in enumerate(args) if i and args[i - 1] in ("-c", "--config")}
    return joined | apart


def _classes(modules: Sequence[Any]) -> list[type]:
    """The classes of some modules that can be built, without those they import from elsewhere."""
    members = [(module.__name__, member) for module in modules for member in vars(module).values()]
    classes = [cls for home, cls in members if inspect.isclass(cls) and cls.__module__.startswith(home)]
    return [cls for cls in classes if not inspect.isabstract(cls)]


def _class_names(option: str) -> list[str]:
    return sorted(cls.__name__ for cls in _classes(CLASS_OPTIONS[option])) if option in CLASS_OPTIONS else []


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    if nearest := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {nearest[0]}?"
    return f"; choose from {', '.join(names)}" if 0 < len(names) < 20 else "; see --help"
