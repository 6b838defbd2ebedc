"""A parser whose errors are one line: what was wrong, what was expected, the option to change.

Custom because jsonargparse answers a mistyped name with the usage of a hundred options and a list of type errors.
"""

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from cnn_lightning.cli.class_names import (
    CLASS_OPTIONS,
    argument_meaning,
    argument_problem,
    arguments_of,
    class_problem,
    find_class,
    short,
)
from cnn_lightning.cli.exit_codes import exit_with
from cnn_lightning.cli.named_classes import Named, named_classes
from cnn_lightning.cli.option_names import instead_of

# How jsonargparse states bounds, and what they are called.
_BOUNDS = {"v>=": "at least ", "v<=": "at most ", "v>": "more than ", "v<": "less than "}


class OneLineParser(LightningArgumentParser):
    """A LightningArgumentParser that prints one line and exits with code 2 when it cannot parse.

    Attributes:
        typed: All arguments of the command; a call may parse a part of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # With abbreviations, the mistyped option --trainer.max_epoch would be taken for --trainer.max_epochs.
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.typed: Sequence[str] = ()
        self._named: dict[str, list[Named]] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line, with the nearest name where one was mistyped, and exit.

        An error in a module of the user's is raised.
        """
        if not self.exit_on_error:  # this parser reads the arguments of a class, for one that has the whole message
            super().error(message, ex)
        self._named = named_classes(self.typed)
        named = [(option, each) for option, several in self._named.items() for each in several]
        for option, each in named:
            if problem := class_problem(option, each.spec):
                exit_with(f"--{option} {short(each.spec)}: {problem}")
        for option, each in named:
            if option in message and (problem := argument_problem(option, each.spec, each.arguments, each.typed)):
                exit_with(self._one_line(problem, each.spec))
        exit_with(self._one_line(message))

    def _one_line(self, message: str, cls: str = "") -> str:
        """Shorten a message of jsonargparse about all options, or about those of one class."""
        if match := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            return self._no_such_option(match[1])
        keys = re.findall(r'Parser key "(\S+)":', message)
        option = f"--{'.'.join(keys)}"
        if match := re.search(r"Option '(\S+)' is not accepted", message):
            return self._no_such_option(f"{option}.{match[1]}")
        if match := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
            return self._no_such_option(f"--{match[1]}.{match[2]}")
        if match := re.match(r"the following arguments are required: (\S+)\.(\w+)", message):
            meaning = argument_meaning(match[1], cls, match[2])
            return f"--{match[1]} {cls} needs {match[2]}: add --{match[1]}.{match[2]}{meaning and f' ({meaning})'}"
        if match := re.search(r"Unable to load config '(.*?)'", message):
            names = [key for key in CLASS_OPTIONS if key.startswith(f"{keys[0]}.") and find_class(key, match[1])]
            hint = f"; did you mean --{names[0]} {match[1]}?" if names else ""
            return f"--{keys[0]} {short(match[1])}: expected a YAML file with settings{hint}"
        if match := re.search(r"is abstract\b.*NestedArg\(key='(\w+)'", message, re.DOTALL):
            return self._no_such_option(f"{option}.{match[1]}")
        given = re.search(r"NestedArg\(key='\S+', val='?(.*?)'?\)", message)
        given = given or re.search(r"(?:Got|Given) value: (.*?)\.?(?: Got|\n|$)", message)
        if match := re.search(r"Not of type (\S+): (?:(\S+) )?does not conform to restriction (.*)", message):
            bounds = match[3].replace("v>0", "at least 1") if match[1] == "PositiveInt" else match[3]
            for sign, words in _BOUNDS.items():
                bounds = bounds.replace(sign, words)
            return f"{keys[-1]} is {short(match[2] or (given and given[1]))}, expected {bounds}: change {option}"
        # What follows the problem with a class is that it could also have been null.
        message = message.partition("Problem with given class_path")[2].partition("\n    - ")[0] or message
        kinds = re.findall(r"Expected an? (?:<class '|typing.Literal\[)(.*?)(?:'>|\])", message)
        if given and kinds:
            expected = " or ".join(dict.fromkeys(kinds)).replace("NoneType", "null")
            return f"{option} {short(given[1])}: expected {expected}"
        return re.sub(
            r"((?:Got|Given) value: )(.*)", lambda match: match[1] + short(match[2]), message, flags=re.DOTALL
        )

    def _no_such_option(self, option: str) -> str:
        defaults = self.get_defaults()
        options = [f"--{name}" for name in defaults.keys(branches=True)]
        group, _, leaf = option.removeprefix("--").rpartition(".")
        for key, kind in CLASS_OPTIONS.items():
            chosen = [cls for each in self._named[key] if (cls := find_class(key, each.spec))]
            options += [f"--{key}.{name}" for cls in chosen or kind.classes() for name in arguments_of(cls)]
            owners = [cls.__name__ for cls in kind.classes() if leaf in arguments_of(cls)]
            if key == group and owners and not any(leaf in arguments_of(cls) for cls in chosen):
                default = str(defaults.get(f"{key}.class_path") or "").rpartition(".")[2]
                others = " and ".join(cls.__name__ for cls in chosen) or default
                listed, name = ", ".join(owners), owners[0] if len(owners) == 1 else "NAME"
                if not others:
                    return f"{option} needs its class before it, {listed}: add --{key}{'+' * kind.many}={name}"
                return f"{option} is an option of {short(listed)}, not of {others}: choose with --{key} {name}"
        return f"there is no option {option}{instead_of(option, options, self._typed_value(option))}"

    def _typed_value(self, option: str) -> str:
        """The value that was typed for an option, or ""."""
        for word, following in zip_longest(self.typed, self.typed[1:], fillvalue=""):
            if word == option:
                return "" if following.startswith("--") else following
            if word.startswith(f"{option}="):
                return word.partition("=")[2]
        return ""
