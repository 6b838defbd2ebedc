"""``--print_config``: print all settings as a file that ``--config`` reads."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from cnn_lightning.errors import UsageError

# What --print_config=FORM,FORM can leave out or add; jsonargparse calls the second one skip_unset, too.
FORMS = ("skip_default", "skip_null", "skip_unset", "comments")


def take_print_config(options: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the other options, and the forms that ``--print_config`` asks for; None where it is missing.

    Args:
        options: Each as ``--NAME=VALUE``.

    Raises:
        UsageError: It asks for an unknown form.
    """
    asked = [option for option in options if option.partition("=")[0] == "--print_config"]
    forms = [form for option in asked for form in option.partition("=")[2].split(",") if form]
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"--print_config={form}: expected {', '.join(FORMS)}, separated by commas")
    return [option for option in options if option not in asked], forms if asked else None


def print_config(
    parser: ArgumentParser, config: Namespace, forms: Sequence[str], defaults: Sequence[Mapping[str, Any]]
) -> None:
    """Print a configuration.

    Left out is only what is a default when the file is read. jsonargparse would also leave out null where it replaces
    another value, and the chosen classes, because they are its defaults by now.

    Args:
        parser: The parser of the configuration.
        config: The configuration.
        forms: What to leave out or add.
        defaults: Those of all runs, and those of the checkpoint that the configuration names.

    Raises:
        UsageError: A package is missing.
    """
    changed = []
    for values in defaults:
        parser.set_defaults(dict(values))
        changed.append(yaml.safe_load(parser.dump(config, skip_unset=False, skip_default=True)) or {})
    settings = yaml.safe_load(parser.dump(config, skip_unset=False))
    if "skip_default" in forms:
        settings = _without(settings, config, changed, lambda value: True)
    elif {"skip_null", "skip_unset"} & {*forms}:
        settings = _without(settings, config, changed, lambda value: value is None)
    comments = "comments" in forms
    try:
        text = parser.dump(Namespace(settings), skip_unset=False, skip_validation=True, with_comments=comments)
    except ValueError as error:
        raise UsageError(f"--print_config=comments: {error} Install it, or leave out comments.") from error
    sys.stdout.write(text)


def _without(
    settings: Mapping[str, Any], config: Any, changed: Sequence[Mapping[str, Any]], left_out: Callable[[Any], bool]
) -> dict[str, Any]:
    """Return settings without those that are not changed and that a function chooses."""
    kept = {}
    for key, value in settings.items():
        inner = [part[key] for part in changed if key in part]
        if isinstance(config.get(key), Namespace):  # a group or a class; a dictionary is one value
            value = _without(value, config[key], inner, left_out)
            if value or not left_out(value):
                kept[key] = value
        elif inner or not left_out(value):
            kept[key] = value
    return kept
