"""The files of ``--config``: checked before jsonargparse reads them, without replaced classes."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cnn_lightning.errors import UsageError


def check_config_files(args: Sequence[str]) -> None:
    """Read the files of ``--config`` before jsonargparse does, because its messages do not name them.

    Raises:
        UsageError: One is missing, or is not YAML with settings.
    """
    for path in _config_files(args).values():
        _read_config(path)


def drop_replaced_classes(args: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """Remove from the files of ``--config`` the settings of classes that are replaced.

    Args:
        args: Command-line arguments.
        chosen: For options like "model.net" the name of the class that is chosen in the end.

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
    """Return the name of the class in a configuration, which is its path or {class_path, init_args}."""
    return (spec if isinstance(spec, str) else spec["class_path"]).rpartition(".")[2]


def _read_config(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not text: expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"--config {path} is not YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no settings: expected lines like 'trainer: {{max_epochs: 3}}'")
    return content


def _config_files(args: Sequence[str]) -> dict[int, str]:
    """The files of ``--config``, by the positions of the arguments that name them."""
    joined = {i: arg.split("=", 1)[1] for i, arg in enumerate(args) if arg.startswith(("-c=", "--config="))}
    separate = {i: arg for i, arg in enumerate(args) if i and args[i - 1] in ("-c", "--config")}
    return joined | separate
