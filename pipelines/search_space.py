"""What a search over a recipe may change: `train.learning-rate:log:5e-4:8e-3`, read and put into a recipe."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from p2es.errors import ConfigError

_FORM = "write path:log:low:high, path:uniform:low:high, path:int:low:high or path:choice:a,b,c"

Config = TypeVar("Config")


@dataclass(frozen=True)
class Axis:
    """One number of a recipe that is searched.

    Attributes
    ----------
    path : str
        `train.learning_rate`.
    kind : str
        `log`, `uniform`, `int` (both ends included) or `choice`.
    low, high : float
        Of all but `choice`.
    choices : tuple
        Of `choice`.
    """

    path: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str, recipe: Any) -> "Axis":
        """Read an axis; ConfigError when it is not of the form, or the recipe has no such number."""
        path, _, rest = text.partition(":")
        path = path.strip().replace("-", "_")
        kind, _, values = rest.partition(":")
        now = value_at(recipe, path)
        if kind == "choice":
            choices = tuple(_like(now, word, path) for word in values.split(",") if word)
            if len(choices) < 2:
                raise ConfigError(f"{text!r} leaves nothing to choose: {_FORM}")
            return cls(path, kind, choices=choices)
        try:
            low, high = (float(word) for word in values.split(":"))
        except ValueError:
            raise ConfigError(f"{text!r} is not an axis of a search: {_FORM}") from None
        if kind not in ("log", "uniform", "int") or not low < high or (kind == "log" and low <= 0):
            raise ConfigError(f"{text!r} is not an axis of a search: {_FORM}, low below high, and above 0 for log")
        if isinstance(now, bool) or not isinstance(now, int | float):
            raise ConfigError(f"{path} is {now!r}, not a number: search it by choice")
        if isinstance(now, int) != (kind == "int"):
            raise ConfigError(f"{path} is {now!r}: search it by {'int' if isinstance(now, int) else 'log or uniform'}")
        return cls(path, kind, low, high)

    def domain(self) -> Any:
        """Give it as Ray Tune's."""
        from ray import tune

        if self.kind == "log":
            return tune.loguniform(self.low, self.high)
        if self.kind == "uniform":
            return tune.uniform(self.low, self.high)
        if self.kind == "int":
            return tune.randint(int(self.low), int(self.high) + 1)
        return tune.choice(list(self.choices))


def value_at(config: Any, path: str) -> Any:
    """Give a number of a configuration by its path; ConfigError when there is none."""
    for name in path.split("."):
        if not dataclasses.is_dataclass(config) or name not in {field.name for field in dataclasses.fields(config)}:
            raise ConfigError(f"the recipe has no {path.replace('_', '-')}: `p2es train --help` lists its numbers")
        config = getattr(config, name)
    if dataclasses.is_dataclass(config):
        raise ConfigError(f"{path.replace('_', '-')} is a part of the recipe, not a number of it")
    return config


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Put values into a configuration, all at once, so that those that depend on each other are checked together."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = value
    here |= {name: with_values(getattr(config, name), part) for name, part in below.items()}
    return dataclasses.replace(config, **here)  # type: ignore[type-var]


def as_options(values: Mapping[str, Any]) -> str:
    """Write values as the options of a command."""
    shown = {path: f"{value:.4g}" if isinstance(value, float) else str(value) for path, value in values.items()}
    return " ".join(f"--{path.replace('_', '-')} {value}" for path, value in shown.items())


def axes(texts: Sequence[str], recipe: Any) -> list[Axis]:
    """Read the axes of a search; ConfigError where one is wrong, or twice there."""
    found = [Axis.parse(text, recipe) for text in texts]
    paths = [axis.path for axis in found]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path.replace('_', '-')} is searched twice: give it once")
    if not found:
        raise ConfigError(f"there is nothing to search: {_FORM}")
    return found


def _like(now: Any, word: str, path: str) -> Any:
    """Read a word as what is there now."""
    if isinstance(now, bool):
        if word not in ("True", "False"):
            raise ConfigError(f"{path} is {now}: choose among True and False")
        return word == "True"
    for kind in (int, float):
        if isinstance(now, kind):
            try:
                return kind(word)
            except ValueError:
                raise ConfigError(f"{path} is {now!r}: {word!r} cannot stand in its place") from None
    if isinstance(now, str):
        return word
    raise ConfigError(f"{path} is {now!r}: only numbers, words and True or False can be searched")
