"""What is wrong with a class that is named on the command line or in a file: asked only after parsing has failed.

Custom because jsonargparse answers with the errors of all types that an option could have had, or with "expected null".
"""

import difflib
import importlib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, callbacks, loggers
from lightning.pytorch.loggers import Logger
from torch import optim

from cnn_lightning import data, nets
from cnn_lightning.errors import UsageError
from cnn_lightning.nets.base import Network
from cnn_lightning.optim import Cosine, OneCycle, muon, schedules


@dataclass
class ClassOption:
    """An option that takes the name of a class.

    Args:
        bases: The class must be a subclass of one of them.
        modules: Modules that have such classes.
        skip: How many arguments of the class are not options, since they are given when it is built.
        many: Whether several classes can be named.
    """

    bases: tuple[type, ...]
    modules: list[ModuleType]
    skip: int = 0
    many: bool = False

    def classes(self) -> list[type]:
        """The classes of ``modules`` that can be built, without those that they import from elsewhere."""
        members = [(module.__name__, member) for module in self.modules for member in vars(module).values()]
        classes = [cls for home, cls in members if inspect.isclass(cls) and cls.__module__.startswith(home)]
        return [cls for cls in classes if not inspect.isabstract(cls)]

    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(cls.__name__ for cls in self.classes())


CLASS_OPTIONS = {
    "model.net": ClassOption((Network,), [nets]),
    "model.optimizer": ClassOption((optim.Optimizer,), [optim, muon], skip=1),
    "model.lr_schedule": ClassOption((OneCycle, Cosine), [schedules], skip=2),
    "data": ClassOption((LightningDataModule,), [data]),
    "trainer.callbacks": ClassOption((Callback,), [callbacks], many=True),
    "trainer.logger": ClassOption((Logger,), [loggers], many=True),
}


def find_class(option: str, spec: Any) -> type | None:
    """Return the class that was named for an option; None if there is no such class."""
    cls, problem = _find(option, spec)
    return cls if inspect.isclass(cls) and not problem else None


def class_problem(option: str, spec: Any) -> str:
    """Say why a class cannot be used for an option; "" where it can. An error in the user's module is raised."""
    cls, problem = _find(option, spec)
    bases = CLASS_OPTIONS[option].bases
    if problem or not inspect.isclass(cls):
        return problem
    wanted = " or ".join("torch.nn.Module" if base is Network else base.__name__ for base in bases)
    if not issubclass(cls, bases):
        former = next((c for c in cls.__mro__ if c.__module__.startswith("pytorch_lightning.")), None)
        if former is cls:
            return f"it is of the package pytorch_lightning, expected lightning.pytorch.{spec.partition('.')[2]}"
        if former:
            return f"it is a {former.__name__} of pytorch_lightning, expected one of lightning.pytorch: import that"
        return f"it is not a subclass of {wanted}{_did_you_mean_class(option, spec)}"
    return f"it is abstract{did_you_mean('', CLASS_OPTIONS[option].names())}" if inspect.isabstract(cls) else ""


def argument_problem(option: str, spec: Any, arguments: Mapping[str, Any], typed: Sequence[str]) -> str:
    """Return what jsonargparse says of the arguments of a class that can be used; "" if they are valid.

    Args:
        option: The option.
        spec: The class that was named.
        arguments: Its arguments from a file.
        typed: Its arguments that were typed, like "patience=3".
    """
    if cls := find_class(option, spec):
        try:
            _parse(option, cls, arguments, typed)
        except (ArgumentError, yaml.YAMLError) as error:
            return str(error)
    return ""


def argument_meaning(option: str, spec: Any, argument: str) -> str:
    """Return the first words that the docstring of a class has for an argument; "" if it has none."""
    text = inspect.getdoc(find_class(option, spec)) or ""
    match = re.search(rf"^ *{argument}(?: *\(.*?\))?: *([^.\n]+)", text, re.MULTILINE)
    return short(match[1]) if match else ""


def arguments_of(cls: type) -> list[str]:
    """Return the names of a class's arguments, with those that it passes on to its base class as ``**kwargs``."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base).parameters.values())
            names += [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return names


def check_constructors(config: Namespace) -> None:
    """Build callbacks and loggers one by one, after this failed for all, to raise the error of the one that fails.

    Raises:
        UsageError: A class of Lightning refuses its arguments, or lacks a package.
    """
    for option in [option for option, kind in CLASS_OPTIONS.items() if kind.many]:
        for spec in config[option] if isinstance(config[option], list) else [config[option]]:
            cls = find_class(option, spec.class_path) if isinstance(spec, Namespace) else None
            if cls is None:
                continue
            try:
                parser, parsed = _parse(option, cls, spec.get("init_args", Namespace()).as_dict())
                parser.instantiate(parsed)
            except yaml.YAMLError:  # an argument that only Python can give, as a default
                continue
            except Exception as error:
                if cls.__module__.startswith("lightning."):
                    raise UsageError(f"--{option} {cls.__name__}: {error}") from error
                error.__suppress_context__ = True  # the context is the failure of all
                raise


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return the end of a message: the nearest name, or all of them."""
    lower = {each.lower(): each for each in names}
    if nearest := difflib.get_close_matches(name.lower(), lower, n=1):
        return f"; did you mean {lower[nearest[0]]}?"
    return f"; choose from {', '.join(names)}" if 0 < len(names) < 20 else "; see --help"


def short(value: Any) -> str:
    """Return a value as one line of at most 80 characters."""
    text = " ".join(str(value)[:1000].split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse(
    option: str, cls: type, arguments: Mapping[str, Any], typed: Sequence[str] = ()
) -> tuple[ArgumentParser, Namespace]:
    """Parse the arguments of one class: a clearer answer than that of an option that could also be a list or null."""
    skip = CLASS_OPTIONS[option].skip
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--file", action="config")
    parser.add_class_arguments(cls, option, skip={skip} if skip else None, fail_untyped=False)
    nested: Any = dict(arguments)
    for part in reversed(option.split(".")):
        nested = {part: nested}
    return parser, parser.parse_args([f"--file={yaml.safe_dump(nested)}", *(f"--{option}.{each}" for each in typed)])


def _find(option: str, spec: Any) -> tuple[Any, str]:
    """Return a class by its name, or what is wrong with that; nothing of both where the settings are of no class."""
    kind = CLASS_OPTIONS[option]
    if isinstance(spec, Mapping):
        if kind.many or set(spec) & set(kind.names()):
            return None, "expected {class_path: NAME, init_args: {...}}" + " or a list of them" * kind.many
        return None, ""
    if not isinstance(spec, str):
        return None, "expected the name of a class"
    if "." not in spec or not all(map(str.isidentifier, spec.split("."))):
        return _by_short_name(option, spec)
    module, _, name = spec.rpartition(".")
    try:
        members = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            error.__suppress_context__ = True  # the context is the failure to parse
            raise  # from within the user's module
        if module.startswith("pytorch_lightning"):
            return None, f"No module named {error.name!r}, expected lightning.pytorch.{spec.partition('.')[2]}"
        hint = _did_you_mean_class(option, spec) or f"; expected {error.name}.py in this folder or in PYTHONPATH"
        return None, f"No module named {error.name!r}{hint}"
    except Exception as error:
        error.__suppress_context__ = True
        raise
    if name in members:
        return members[name], ""
    known = [key for key, member in members.items() if inspect.isclass(member) and issubclass(member, kind.bases)]
    if not known:
        return None, f"there is no such class, and no other {kind.bases[0].__name__} in {module}"
    return None, f"there is no such class{did_you_mean(spec, sorted(f'{module}.{each}' for each in known))}"


def _by_short_name(option: str, name: str) -> tuple[Any, str]:
    """Return the class that was imported under this name, as jsonargparse finds it."""
    kind = CLASS_OPTIONS[option]
    imported: set[type] = set()
    pending: list[type] = list(kind.bases)
    while pending:
        imported.add(cls := pending.pop())
        pending += set(cls.__subclasses__()) - imported
    named = [cls for cls in imported if cls.__name__ == name and "<locals>" not in cls.__qualname__]
    same = [cls for cls in named if not inspect.isabstract(cls)] or named
    if len(same) > 1:
        paths = sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in same)
        return None, f"several classes have this name, expected the full name of one: {', '.join(paths)}"
    if not same and name.isidentifier() and Path(f"{name}.py").is_file():
        return None, f"{name}.py is a file, expected a class in it: {name}.CLASS"
    return (same[0], "") if same else (None, f"there is no such class{did_you_mean(name, kind.names())}")


def _did_you_mean_class(option: str, path: str) -> str:
    name = path.rpartition(".")[2]
    return f"; did you mean {name}?" if name in CLASS_OPTIONS[option].names() else ""
