"""A parser whose errors are one line: what was wrong, what was expected, the option to change.

Custom because jsonargparse answers a mistyped name with the usage of a hundred options and a list of type errors.
"""

import difflib
import inspect
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser
from torch import optim

from cnn_lightning import data, nets
from cnn_lightning.cli.exit_codes import exit_with
from cnn_lightning.optim import muon, schedules

# The options that take the name of a class, and the modules that have such classes.
CLASS_OPTIONS = {
    "model.net": [nets],
    "model.optimizer": [optim, muon],
    "model.lr_schedule": [schedules],
    "data": [data],
    "trainer.callbacks": [callbacks],
    "trainer.logger": [loggers],
}
# How jsonargparse states bounds, and what they are called.
_BOUNDS = {"v>=": "at least ", "v<=": "at most ", "v>": "more than ", "v<": "less than "}


class OneLineParser(LightningArgumentParser):
    """A LightningArgumentParser that prints one line and exits with code 2 when it cannot parse."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # With abbreviations, the mistyped option --trainer.max_epoch would be taken for --trainer.max_epochs.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message of jsonargparse as one line, with the nearest name where one was mistyped, and exit."""
        if not self.exit_on_error:  # this parser reads the arguments of a class, for one that has the whole message
            super().error(message, ex)
        exit_with(self._one_line(message))

    def _one_line(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            return self._no_such_option(match[1])
        keys = re.findall(r'Parser key "(\S+)":', message)
        option = f"--{'.'.join(keys)}"
        if match := re.search(r"Option '(\S+)' is not accepted", message):
            return self._no_such_option(f"{option}.{match[1]}")
        if match := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
            return self._no_such_option(f"--{match[1]}.{match[2]}")
        if match := re.search(r"class_path '(\S+)':\s+(No module named .*)", message):
            return f"{option} {match[1]}: {match[2]}"
        if match := re.search(r"import path string: (\S+)", message):
            names = _class_names(option.removeprefix("--"))
            if names:
                return f"{option} {match[1]}: there is no such class{_did_you_mean(match[1], names)}"
        given = re.search(r"NestedArg\(key='\S+', val='?(.*?)'?\)", message)
        given = given or re.search(r"(?:Got|Given) value: (.*?)\.?(?: Got|\n|$)", message)
        if match := re.search(r"Not of type (\S+): (?:(\S+) )?does not conform to restriction (.*)", message):
            bounds = match[3].replace("v>0", "at least 1") if match[1] == "PositiveInt" else match[3]
            for sign, words in _BOUNDS.items():
                bounds = bounds.replace(sign, words)
            return f"{keys[-1]} is {match[2] or (given and given[1])}, expected {bounds}: change {option}"
        kinds = re.findall(r"Expected an? (?:<class '|typing.Literal\[)(.*?)(?:'>|\])", message)
        if given and kinds:
            expected = " or ".join(dict.fromkeys(kinds)).replace("NoneType", "null")
            return f"{option} {given[1]}: expected {expected}"
        return message

    def _no_such_option(self, option: str) -> str:
        options = [f"--{name}" for name in self.get_defaults().keys(branches=True)]
        for key, modules in CLASS_OPTIONS.items():
            options += [f"--{key}.{name}" for cls in _classes(modules) for name in inspect.signature(cls).parameters]
        group = option.rpartition(".")[0]
        if option in options:
            return f"{option} is not an option of the class that is chosen for {group}; see {group}.help"
        # The names of a group are compared without it, because the shared part would make all of them near.
        siblings = {o.rpartition(".")[2]: o for o in options if o.rpartition(".")[0] == group}
        nearest = difflib.get_close_matches(option.rpartition(".")[2], siblings, n=1)
        return f"there is no option {option}" + (
            f"; did you mean {siblings[nearest[0]]}?" if nearest else _did_you_mean(option, options)
        )


def _classes(modules: Sequence[ModuleType]) -> list[type]:
    """The classes of some modules that can be built, without those that they import from elsewhere."""
    members = [(module.__name__, member) for module in modules for member in vars(module).values()]
    classes = [cls for home, cls in members if inspect.isclass(cls) and cls.__module__.startswith(home)]
    return [cls for cls in classes if not inspect.isabstract(cls)]


def _class_names(option: str) -> list[str]:
    return sorted(cls.__name__ for cls in _classes(CLASS_OPTIONS[option])) if option in CLASS_OPTIONS else []


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    if nearest := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {nearest[0]}?"
    return f"; choose from {', '.join(names)}" if 0 < len(names) < 20 else "; see --help"
