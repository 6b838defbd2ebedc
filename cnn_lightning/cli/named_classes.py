"""The classes that command-line arguments and the files among them name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from cnn_lightning.cli.class_names import CLASS_OPTIONS, short
from cnn_lightning.errors import UsageError

MOST_BYTES = 100_000  # of a file with settings; a table of images takes minutes to parse as YAML


@dataclass
class Named:
    """A class as it was named.

    Args:
        spec: Its name, or what stands in its place.
        arguments: Those from a file.
        typed: Options like "patience=3" that were typed for it.
    """

    spec: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)


def check_files(args: Sequence[str]) -> None:
    """Make sure that files that are named in place of a class hold settings, before they are parsed.

    Raises:
        UsageError: One does not.
    """
    for key, value in _arguments(args):
        if key in CLASS_OPTIONS or key in ("model", "trainer"):
            _load(key, value)


def named_classes(args: Sequence[str], with_unnamed: bool = False) -> dict[str, list[Named]]:
    """Return the classes that command-line arguments and the files among them name, by option.

    Args:
        args: The arguments.
        with_unnamed: Begin each list with None as the name; it holds the arguments of a default class.
    """
    found: dict[str, list[Named]] = {option: [Named(None)] * with_unnamed for option in CLASS_OPTIONS}
    for key, value in _arguments(args):
        if key in ("c", "config", "model", "trainer"):
            for option in CLASS_OPTIONS:
                root = "" if key in ("c", "config") else f"{key}."
                if option.startswith(root):
                    _add(found[option], _descend(_load(key, value), option.removeprefix(root).split(".")))
            continue
        for option in CLASS_OPTIONS:
            if not f"{key}.".startswith(f"{option}."):
                continue
            name = key.removeprefix(option).removeprefix(".").removeprefix("init_args.")
            if name in ("", "class_path"):
                _add(found[option], _load(key, value))
            elif found[option] and not name.startswith("dict_kwargs"):
                found[option][-1].typed.append(f"{name}={value}")
    return found


def given_arguments(args: Sequence[str], option: str) -> dict[str, Any]:
    """Return the arguments that were given to the class of an option that counts, typed or in files."""
    given: dict[str, Any] = {}
    name = None
    for each in named_classes(args, with_unnamed=True)[option]:
        if each.spec and each.spec != name:
            name, given = each.spec, given if name is None else {}
        typed = (argument.partition("=") for argument in each.typed)
        given |= {**each.arguments, **{name: _parsed(value) for name, _, value in typed}}
    return given


def given_texts(args: Sequence[str]) -> set[str]:
    """Return all texts that the user gave for classes and their arguments, among them names of classes."""
    texts: set[str] = set()
    pending: list[Any] = []
    for each in [each for several in named_classes(args, with_unnamed=True).values() for each in several]:
        pending += [each.spec, each.arguments, *(argument.partition("=")[2] for argument in each.typed)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            texts.add(value)
        elif isinstance(value, Mapping | list):
            pending += value.values() if isinstance(value, Mapping) else value
    return texts


def _arguments(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options that were typed and their values; ``--key+=value`` counts as ``--key=value``."""
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        if arg.startswith("-"):
            key, is_joined, value = arg.lstrip("-").partition("=")
            yield key.removesuffix("+"), value if is_joined else following


def _load(key: str, value: str) -> Any:
    """What an option was given: the content of a file, or the value itself."""
    option = CLASS_OPTIONS.get(key)
    path = Path(value)
    try:
        if not path.is_file():
            return _parsed(value)
    except OSError:  # too long for a path
        return _parsed(value)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        settings = yaml.safe_load(content.decode()) if len(content) <= MOST_BYTES else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        settings = None
    if isinstance(settings, dict) or (option and option.many and isinstance(settings, list)):
        return settings
    kinds = {"data": "a dataset like MNIST, a class of your own", "model": "", "trainer": ""}
    expected = " or ".join(filter(None, (kinds.get(key, "the name of a class"), "a YAML file with settings")))
    hint = "; docs/data.md shows how to use tables and pictures" if key == "data" else ""
    raise UsageError(f"--{key} {short(value)} is a file without settings: expected {expected}{hint}")


def _parsed(value: str) -> Any:
    """The YAML of a value that was typed; a text that is no YAML is itself."""
    try:
        return yaml.safe_load(value) if len(value) <= MOST_BYTES else value
    except yaml.YAMLError:
        return value


def _descend(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content.get(key, content.get(f"{key}+")) if isinstance(content, Mapping) else None
    return content


def _add(found: list[Named], content: Any) -> None:
    for spec in content if isinstance(content, list) else [content]:
        if isinstance(spec, Mapping) and "class_path" in spec:
            arguments = spec.get("init_args")
            found.append(Named(spec["class_path"], arguments if isinstance(arguments, Mapping) else {}))
        elif not isinstance(spec, bool | None):  # these choose no class
            found.append(Named(spec))
