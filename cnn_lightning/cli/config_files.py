"""How settings come together: files of ``--config``, other options, and classes that replace others."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from cnn_lightning.cli.exit_codes import with_home
from cnn_lightning.cli.named_classes import check_files
from cnn_lightning.cli.parser import OneLineParser
from cnn_lightning.cli.print_config import print_config, take_print_config
from cnn_lightning.errors import UsageError

# Values that name neither a class nor a file.
_LITERAL = re.compile(r"[-+.\d][-+.\deE_]*|true|false|null|~|", re.IGNORECASE)


def check_config_files(args: Sequence[str]) -> None:
    """Read the files of ``--config`` before jsonargparse does, because its messages do not name them.

    Raises:
        UsageError: One is missing, or is not YAML with settings.
    """
    for option in split_arguments(args)[0]:
        if _name(option) == "config" and _value(option):
            _check_config_file(_value(option))


class StepwiseParser(OneLineParser):
    """A parser that can parse a part of a configuration.

    Attributes:
        complete: Whether everything that is required must be there.
    """

    complete = True

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check a configuration, unless it is a part."""
        if self.complete:
            super().validate(*args, **kwargs)


def class_name(spec: Any) -> str:
    """Return the name of the class in a configuration, which is its path or {class_path, init_args}."""
    return (spec if isinstance(spec, str) else spec["class_path"]).rpartition(".")[2]


def split_arguments(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into options, each as ``--NAME=VALUE``, and the rest, like the names of pictures."""
    options, rest, words = [], [], list(args)
    while words and words[0] != "--":
        word = words.pop(0)
        if not _is_option(word):
            rest.append(word)
            continue
        if word.startswith("-c"):
            word = f"--config={word[2:].removeprefix('=')}".removesuffix("=")
        if "=" not in word and word not in ("-h", "--help", "--print_config") and words and not _is_option(words[0]):
            word += f"={words.pop(0)}"
        name, is_joined, value = word.partition("=")
        # --data.class_path=MNIST is --data=MNIST, and --data.init_args.root=x is --data.root=x.
        options.append(name.removesuffix(".class_path").replace(".init_args.", ".") + is_joined + value)
    return options, rest + words


def parse(
    parser: StepwiseParser,
    args: Sequence[str],
    classes: Mapping[str, Any],
    checkpoint: Callable[[Namespace], Mapping[str, Any]],
) -> Namespace:
    """Parse arguments so that a class that is named uses its own defaults; print the result where it is asked for.

    Args:
        parser: A parser whose defaults are those of all runs.
        args: Command-line arguments.
        classes: The options whose defaults are classes, and these defaults.
        checkpoint: Returns the settings of the checkpoint that a configuration names, which are defaults too.

    Raises:
        UsageError: ``--print_config`` asks for an unknown form.
    """
    check_files(args)
    parser.typed = args  # for its messages, because it is given parts of them
    options, rest = split_arguments(args)
    options, forms = take_print_config(options)
    # The options of a class need to know the class. Those of --help end here.
    of_classes = tuple(f"--{option}." for option in classes)
    others = [o for o in options if not o.startswith(of_classes) or _name(o).endswith(".help")]
    parser.complete = False  # a class may require some of its options
    config = _with_home(parser.parse_args([*others, *rest]))
    defaults = [dict(classes)]
    if saved := checkpoint(config):
        defaults = [{option: parser.get_default(option) for option in saved} | dict(classes), dict(saved)]
        parser.set_defaults(defaults[1])
        config = parser.parse_args([*others, *rest])
    chosen = {option: {"class_path": config[option].class_path} for option in classes if config[option] is not None}
    for own in (classes, chosen):
        former = parser.get_defaults()
        other = [o for o, spec in chosen.items() if former.get(f"{o}.class_path") != spec["class_path"]]
        parser.set_defaults({option: own[option] for option in other})
    config = _with_home(_parse_in_parts(parser, _parts(_classes_first(options)), rest))
    if forms is not None:
        print_config(parser, config, forms, defaults)
        sys.exit(0)
    return config


def _parse_in_parts(parser: StepwiseParser, parts: Sequence[Sequence[str]], rest: Sequence[str]) -> Namespace:
    """Parse one part after the other, and remove what is set for a class before a part that names another one.

    jsonargparse would pass the settings of a class on to the class that replaces it: SGD would get the weight_decay of
    AdamW.
    """
    config = Namespace()
    for number, part in enumerate(parts, start=1):
        parser.complete = number == len(parts)
        parsed = parser.parse_args([*part, *rest], namespace=config)
        if _remove_replaced(config, parsed):
            parsed = parser.parse_args([*part, *rest], namespace=config)
        config = parsed
    return config


def _parts(options: Sequence[str]) -> list[list[str]]:
    """Divide options so that no part names classes for the same option twice."""
    parts: list[list[str]] = [[]]
    for option in options:
        if _may_name_class(option) and any(_may_name_class(other) and _overlap(option, other) for other in parts[-1]):
            parts.append([])
        parts[-1].append(option)
    return parts


def _classes_first(options: Sequence[str]) -> list[str]:
    """Move options of a class behind its name: ``--model.optimizer.lr=0.1 --model.optimizer=SGD``."""
    ordered: list[str] = []
    for option in options:
        name = _name(option)
        own = [other for other in ordered if _name(other).startswith(f"{name}.")]
        named = any(_name(other) in (name, f"{name}+") for other in ordered)
        if own and not named and re.fullmatch(r"[\w.]+", _value(option)) and not _is_file(_value(option)):
            ordered = [*(other for other in ordered if other not in own), option, *own]
        else:
            ordered.append(option)
    return ordered


def _remove_replaced(before: Namespace, after: Namespace) -> bool:
    """Remove from a configuration the settings of classes that others have replaced; return whether there were any."""
    replaced = False
    for key, new in after.items(branches=True, nested=False):
        old = before.get(key)
        if isinstance(new, Namespace) and isinstance(old, Namespace):
            if new.get("class_path") != old.get("class_path"):
                before[key] = Namespace(class_path=new.get("class_path"))
                replaced = True
            else:
                replaced |= _remove_replaced(old, new)
        elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):  # jsonargparse pairs them up
            items, others = (Namespace({str(i): item for i, item in enumerate(part)}) for part in (old, new))
            replaced |= _remove_replaced(items, others)
            old[:] = vars(items).values()
    return replaced


def _may_name_class(option: str) -> bool:
    """Whether the value of an option may be a class, a file or a mapping: no number, and no folder."""
    value = _value(option)
    folder = "/" in value and ":" not in value and not value.startswith(("{", "[")) and not _is_file(value)
    return not folder and not _LITERAL.fullmatch(value)


def _overlap(first: str, second: str) -> bool:
    """Whether two options can set the same."""
    one, other = (_name(option).removesuffix("+") for option in (first, second))
    return "config" in (one, other) or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _is_option(word: str) -> bool:
    return re.match(r"-[A-Za-z-]", word) is not None and " " not in word.partition("=")[0]


def _with_home(settings: Any) -> Any:
    """Replace ~ in all texts of a configuration."""
    if isinstance(settings, str):
        return with_home(settings)
    if isinstance(settings, Namespace | dict):
        for key, value in list(vars(settings).items() if isinstance(settings, Namespace) else settings.items()):
            settings[key] = _with_home(value)
    elif isinstance(settings, list):
        settings[:] = map(_with_home, settings)
    return settings


def _name(option: str) -> str:
    return option.partition("=")[0].removeprefix("--")


def _value(option: str) -> str:
    return option.partition("=")[2]


def _is_file(value: str) -> bool:
    with suppress(OSError, ValueError):  # as text that is too long for a name
        return Path(value).is_file()
    return False


class UniqueKeys(yaml.SafeLoader):
    """Raises a UsageError for a key that is given twice: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping of different keys."""
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number] and key.value != "<<":
                raise UsageError(f"{key.value} is given twice, in line {key.start_mark.line + 1} again")
        return super().construct_mapping(node, deep)


def _check_config_file(path: str) -> None:
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not text: expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"--config {path} is not YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no settings: expected lines like 'trainer: {{max_epochs: 3}}'")
