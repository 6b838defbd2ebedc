"""The search space of ``sweep.py``: options of ``fit.py``, with the values to search.

model.optimizer.lr: log 1e-4 1e-1        a float on a log scale
model.net.dropout: 0 0.6                 a float, because one end has a point or an exponent
trainer.accumulate_grad_batches: 1 8     an integer; on a log scale: log 1 8
data.batch_size: [64, 128, 256]          choices: text, numbers, true, false, null
model.net:                               choices with settings of their own
  LeNetCNN: {kernel_size: [3, 5], dropout: 0 0.5}
  TwoLayerCNN: {}
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import yaml
from optuna import Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

Choice = str | int | float | bool | None
Conditions = tuple[tuple[str, Choice], ...]
Assignment = dict[str, Any]  # option of fit, or parameter of Optuna -> value

GRID_LIMIT = 10_000  # combinations; more would only fill the memory
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NAME = re.compile(r"\w+(\.\w+)*")
_RANGES = '"0 0.6" or "log 1e-4 1e-1"'


@dataclass(frozen=True)
class Parameter:
    """One dimension of a search space.

    Args:
        name: Its name in Optuna: the option, or "model.net.LeNetCNN.dropout" for a setting of one choice.
        option: The option of ``fit``: "model.net.dropout".
        distribution: Its values.
        conditions: It exists only where these parameters, by name, have these values; the outermost is first.
    """

    name: str
    option: str
    distribution: CategoricalDistribution | FloatDistribution | IntDistribution
    conditions: Conditions = ()

    @property
    def ends(self) -> Sequence[Any]:
        """Both ends of its range, or all choices."""
        values = self.distribution
        return values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)

    def exists(self, chosen: Assignment) -> bool:
        """Whether it exists where these values, by name, are chosen."""
        return all(name in chosen and chosen[name] == value for name, value in self.conditions)


@dataclass(frozen=True)
class Space:
    """A search space.

    Args:
        parameters: All dimensions; those that another one has as its condition come after it.
    """

    parameters: Sequence[Parameter]

    @classmethod
    def read(cls, mapping: Any) -> "Space":
        """Read a search space from a mapping of options to values, as YAML gives it.

        Raises:
            ValueError: It is not such a mapping, or an option has invalid values or is there twice.
        """
        if not isinstance(mapping, Mapping) or not mapping:
            raise ValueError(f"got {mapping!r} as a search space, expected OPTION: VALUES")
        parameters = _read_options(mapping, "", "", ())
        names = [parameter.name for parameter in parameters]
        if twice := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(f"{twice[0]}: the parameter is there twice")
        return cls(parameters)

    def suggest(self, trial: Trial) -> Assignment:
        """Return the values of a trial, option -> value; settings of a choice only where it is chosen."""
        chosen: Assignment = {}
        values: Assignment = {}
        for parameter in self.parameters:
            if parameter.exists(chosen):
                chosen[parameter.name] = values[parameter.option] = _suggest(parameter, trial)
        return values

    def probes(self) -> list[Assignment]:
        """Return few assignments that together have both ends of every range and every choice, option -> value."""
        left = {(p.name, value): p.conditions for p in self.parameters for value in p.ends}
        probes: list[Assignment] = []
        while left:
            chosen: Assignment = {}
            values: Assignment = {}
            for parameter in (p for p in self.parameters if p.exists(chosen)):
                name, wanted = parameter.name, {*left}.union(*left.values())  # where any of its settings is left, too
                value = next((value for value in parameter.ends if (name, value) in wanted), parameter.ends[0])
                chosen[name] = values[parameter.option] = value
                left.pop((name, value), None)
            probes.append(values)
        return probes

    def grid(self) -> list[Assignment]:
        """Return all combinations, name of Optuna's parameter -> value.

        Raises:
            ValueError: There is a range of floats, or there are too many combinations.
        """
        rows: list[Assignment] = [{}]
        for parameter in self.parameters:
            values, name = parameter.distribution, parameter.name
            if isinstance(values, FloatDistribution):
                raise ValueError(f"{name}: got a range of floats, expected choices like [0.1, 0.2] for a grid")
            column: Sequence[Any] = parameter.ends  # all choices
            if isinstance(values, IntDistribution):
                column = range(values.low, values.high + 1)
            longer = (row | {name: value} for row in rows if parameter.exists(row) for value in column)
            rows = list(islice(longer, GRID_LIMIT + 1)) + [row for row in rows if not parameter.exists(row)]
            if len(rows) > GRID_LIMIT:
                raise ValueError(f"{name}: got a grid of more than {GRID_LIMIT:,} combinations, expected fewer values")
        return rows


def merge(texts: Iterable[str]) -> dict[Any, Any]:
    """Read YAML texts as one mapping of options to values.

    Raises:
        ValueError: A text is not valid YAML, or an option is there twice.
    """
    mapping: dict[Any, Any] = {}
    for text in texts:
        try:
            _check_keys(yaml.compose(text, yaml.SafeLoader))
            part = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:  # an alias may contain itself
            raise ValueError(f"{text!r} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(part, Mapping):
            raise ValueError(f"got {text!r}, expected OPTION: VALUES")
        if twice := [option for option in part if option in mapping]:
            raise ValueError(f"{twice[0]}: the option is there twice")
        mapping |= part
    return mapping


def to_words(assignment: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line, "--option=value"; a class comes before its settings."""
    return [f"--{option}={to_text(assignment[option])}" for option in sorted(assignment, key=lambda o: o.count("."))]


def to_text(value: Choice) -> str:
    """Return a value as it is typed: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _suggest(parameter: Parameter, trial: Trial) -> Any:
    name, values = parameter.name, parameter.distribution
    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(name, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _read_options(mapping: Mapping[Any, Any], name: str, option: str, conditions: Conditions) -> list[Parameter]:
    """Read options, or the settings of one choice; name and option are what their names begin with."""
    parameters: list[Parameter] = []
    for key, values in mapping.items():
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise ValueError(f"{name}{key}: got {key!r}, expected the name of an option, such as data.batch_size")
        own = _read(values, f"{name}{key}", f"{option}{key}", conditions)
        others = {parameter.option for parameter in parameters}
        if twice := [parameter.option for parameter in own if parameter.option in others]:
            raise ValueError(f"{twice[0]}: the option is there twice, by itself and as a setting of a choice")
        parameters += own
    return parameters


def _read(values: Any, name: str, option: str, conditions: Conditions) -> list[Parameter]:
    """Read one option and the settings of its choices."""
    if isinstance(values, str):
        return [Parameter(name, option, _read_range(values, name), conditions)]
    if not isinstance(values, Sequence | Mapping):
        raise ValueError(f"{name}: got {values!r}, expected a range like {_RANGES}, or choices like [64, 128]")
    choices = [_read_choice(value, name) for value in values]
    if not choices:
        raise ValueError(f"{name}: got {values!r}, expected at least one choice")
    for index, choice in enumerate(choices):
        # Optuna cannot tell true from 1, and fit cannot tell "null" from null.
        if equal := [other for other in choices[:index] if choice == other or to_text(choice) == to_text(other)]:
            raise ValueError(f"{name}: got {to_text(equal[0])} and {to_text(choice)}, expected different choices")
    parameters = [Parameter(name, option, CategoricalDistribution(choices), conditions)]
    settings = [*values.values()] if isinstance(values, Mapping) else [{}] * len(choices)
    for choice, own in zip(choices, settings, strict=True):
        child = f"{name}.{to_text(choice)}"
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f"{child}: got {own!r}, expected its settings, like {{dropout: 0 0.5}}, or {{}}")
        parameters += _read_options(own or {}, f"{child}.", f"{option}.", (*conditions, (name, choice)))
    return parameters


def _read_range(text: str, name: str) -> FloatDistribution | IntDistribution:
    words = text.split()
    is_log = words[:1] == ["log"]
    numbers = [number for word in words[is_log:] if (number := _number(word)) is not None]
    if len(numbers) != 2 or len(words) != 2 + is_log:
        raise ValueError(f"{name}: got {text!r}, expected a range like {_RANGES}, or choices like [64, 128]")
    low, high = numbers
    if low >= high:
        raise ValueError(f"{name}: got {text!r}, expected two different numbers, the lower one first")
    if is_log and low <= 0:
        raise ValueError(f"{name}: got {text!r}, expected numbers above 0 on a log scale")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)


def _read_choice(value: Any, name: str) -> Choice:
    if isinstance(value, str):
        number = _number(value)  # YAML 1.1 reads 1e-4 as text
        return value if number is None else number
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{name}: got {value!r} as a choice, expected text, a number, true, false or null")


def _number(text: str) -> int | float | None:
    """Return the number that a text is, an integer if it has neither point nor exponent; None if it is not finite."""
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    number = float(text) if "." in text or match[2] else int(text)
    return number if isinstance(number, int) or math.isfinite(number) else None


def _check_keys(node: yaml.Node | None) -> None:
    """Raise where a mapping has a key twice: YAML would keep the last one silently."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if twice := [key for index, key in enumerate(keys) if key in keys[:index]]:
            raise ValueError(f"{twice[0]}: the option is there twice")
        for _, value in node.value:
            _check_keys(value)
