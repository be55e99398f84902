"""A search: how it is read, its space, and how a trial suggests a value of each dimension. Does not import Optuna."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from specvit.config import fields
from specvit.config.fields import build, checked, mapping
from specvit.study.yaml_schema import Settings, matches
from specvit.utils.errors import ConfigError
from specvit.utils.text import nearest

FORBIDDEN = "is forbidden by the study"
SAMPLERS = ("tpe", "cmaes", "gp", "random", "grid", "qmc", "nsga2")
PRUNERS = ("none", "median", "percentile", "halving", "hyperband", "patient", "wilcoxon")


@dataclass(frozen=True)
class Dimension:
    """One key that Optuna chooses: from `choices`, or a number between `low` and `high`."""

    key: str
    choices: tuple[Any, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = fields.key(None, above=0)
    whole: bool = False
    when: Settings = fields.key(dict)

    @property
    def keys(self) -> list[str]:
        """The keys that it sets; several, separated by commas, vary together."""
        return [key.strip() for key in self.key.split(",")]

    def settings(self, value: Any) -> Settings:
        """Return the settings of a value."""
        return dict(zip(self.keys, value, strict=True)) if len(self.keys) > 1 else {self.key: value}

    def allows(self, value: Any) -> bool:
        """Return True if a value is in the dimension."""
        if self.choices is not None:
            return value in self.choices
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (self.low or 0.0) <= value <= (self.high or 0.0)

    def values(self) -> list[Any] | None:
        """Return all possible values; None for a number without a step."""
        if self.choices is not None:
            return list(self.choices)
        step = self.step or (1 if self.whole else None)
        if self.log or step is None or self.low is None or self.high is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.rounded(self.low + n * step) for n in range(count)]

    def rounded(self, value: float) -> float:
        """Return a number with as many decimals as low and step have: 0.1 + 2 · 0.1 is 0.3."""
        if self.whole or self.step is None:
            return value
        exponents = (Decimal(repr(number)).as_tuple().exponent for number in (self.low, self.step))
        return round(value, max(0, *(-exponent for exponent in exponents if isinstance(exponent, int))))

    def examples(self) -> list[Any]:
        """Return values to try: all choices, or both ends."""
        if self.choices is not None:
            return list(self.choices)
        return [int(end) if self.whole else end for end in (self.low or 0.0, self.high or 0.0)]


def _space(plain: Any, where: str) -> tuple[Dimension, ...]:
    return tuple(_dimension(name, value, f"{where}.{name}") for name, value in mapping(plain, where).items())


def _dimension(name: str, plain: Any, where: str) -> Dimension:
    count = len(name.split(","))
    found: Dimension = build(Dimension, {"choices": plain} if isinstance(plain, list) else plain, f"{where}.", key=name)
    low, high, step = found.low, found.high, found.step
    if found.choices is not None or count > 1:
        if found.choices is None or found != Dimension(name, choices=found.choices, when=found.when):
            raise ConfigError("needs choices and nothing beside them", where=where, remedy="write a list")
        rows = value_rows(list(found.choices), count, where)
        return replace(found, choices=tuple(row if count > 1 else row[0] for row in rows))
    if low is None or high is None or low >= high:
        remedy = "write, say, {low: 1.0e-5, high: 1.0e-2, log: true}"
        raise ConfigError("needs low < high", where=where, remedy=remedy)
    if found.log and (low <= 0 or step is not None):
        raise ConfigError("with log needs low above 0 and no step", where=where, remedy="drop log, or the step")
    if found.whole and any(number != int(number) for number in (low, high, step or 1)):
        what, remedy = "is to be whole, but low, high or step is not", "drop whole, or the fractions"
        raise ConfigError(what, where=where, remedy=remedy)
    return found


def value_rows(plain: Any, count: int, where: str) -> list[list[Any]]:
    """Return a list of at least one row of `count` values; a row of one is a bare value in YAML."""
    rows = [row if count > 1 else [row] for row in checked(plain, tuple[Any, ...], {}, where)]
    if not rows:
        raise ConfigError("has no values", where=where, remedy="write a list")
    for row in rows:
        if not isinstance(row, list) or len(row) != count:
            what = f"{row!r} does not give {count} values"
            raise ConfigError(what, where=where, remedy="write one value for each key")
    return rows


@dataclass(frozen=True)
class Search:
    """A search by Optuna: space, metrics, number of trials, sampler and pruner."""

    trials: int = fields.key(low=1)
    space: tuple[Dimension, ...] = fields.key((), read=_space)
    metrics: dict[str, str] = fields.key(dict, choices=("minimize", "maximize"))
    seed: int = fields.key(0, low=0)
    sampler: str = fields.key("tpe", choices=SAMPLERS)
    sampler_options: Settings = fields.key(dict)
    pruner: str = fields.key("none", choices=PRUNERS)
    pruner_options: Settings = fields.key(dict)
    warmup_steps: int = 0
    """Optimizer steps before which nothing is pruned."""
    start: tuple[Settings, ...] = ()
    forbid: tuple[Settings, ...] = ()

    def count(self, asked: int | None = None, base: Settings | None = None) -> int:
        """Return the number of trials: `asked` or that of the file, but not more than the space has points.

        `base` are the settings that all trials share.
        """
        wanted = asked or self.trials
        if any(dimension.values() is None for dimension in self.space):
            return wanted
        return len(list(itertools.islice(self._points(base or {}, self.space), wanted)))

    def _points(self, settings: Settings, space: tuple[Dimension, ...]) -> Iterator[Settings]:
        """Yield the points of `space` on top of `settings`, without forbidden ones."""
        if not space:
            if not any(matches(settings, rule) for rule in self.forbid):
                yield settings
            return
        first, *others = space
        choices = [first.settings(value) for value in first.values() or ()] if matches(settings, first.when) else [{}]
        for added in choices:
            yield from self._points(settings | added, tuple(others))

    @property
    def points(self) -> int:
        """Number of points of the grid over all choices."""
        return math.prod(len(dimension.choices or ()) for dimension in self.space)


def read_search(plain: Any, where: str) -> Search:
    """Return the search that a plain dict describes; raises `ConfigError`."""
    plain = mapping(plain, where)
    sampler_options, pruner_options = (_options(plain, name, where) for name in ("sampler", "pruner"))
    steps = checked(pruner_options.pop("warmup_steps", 0), int, {"low": 0}, f"{where}.pruner.warmup_steps")
    given = {"sampler_options": sampler_options, "pruner_options": pruner_options, "warmup_steps": steps}
    search = build(Search, plain, f"{where}.", **given)
    if not search.space or not search.metrics:
        remedy = "write, say, metrics: {val_r2: maximize}"
        raise ConfigError("needs a space and metrics", where=where, remedy=remedy)
    if len(search.metrics) > 1 and search.pruner != "none":
        what, remedy = "needs a search by one metric", "drop it, or all metrics but one"
        raise ConfigError(what, where=f"{where}.pruner", remedy=remedy)
    _check_start(search, where)
    return search


def _options(plain: dict[str, Any], name: str, where: str) -> Settings:
    """Return the options of `{name: tpe, multivariate: true}`, and leave the name alone in `plain`."""
    example = {"sampler": "tpe", "pruner": "median"}[name]
    if not isinstance(plain.get(name), dict):
        return {}
    options = dict(plain[name])
    if options.get("name") is None:
        what = f"needs the name of the {name} beside its options"
        raise ConfigError(what, where=f"{where}.{name}.name", remedy=f"write {{name: {example}, ...}}")
    plain[name] = options.pop("name")
    return options


def _check_start(search: Search, where: str) -> None:
    """Raise `ConfigError` for a start point outside the space: Optuna would ignore unknown keys."""
    by_key = {dimension.key: dimension for dimension in search.space}
    for number, point in enumerate(search.start):
        for name, value in point.items():
            at = f"{where}.start[{number}].{name}"
            if name not in by_key:
                raise ConfigError("is not in the space", where=at, remedy=nearest(name, by_key).strip())
            if not by_key[name].allows(value):
                raise ConfigError(f"{value!r} is outside of the space", where=at)


def suggest(trial: Any, space: tuple[Dimension, ...]) -> Settings:
    """Return the settings that a trial suggests, without dimensions whose condition does not hold."""
    chosen: Settings = {}
    for dimension in space:
        if matches(chosen, dimension.when):
            chosen |= dimension.settings(_suggest_one(trial, dimension))
    return chosen


def _suggest_one(trial: Any, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        by_text = {encoded(value): value for value in dimension.choices}
        return by_text[trial.suggest_categorical(dimension.key, list(by_text))]
    low, high = dimension.low, dimension.high
    assert low is not None and high is not None
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return dimension.rounded(trial.suggest_float(dimension.key, low, high, log=dimension.log, step=dimension.step))


def encoded(value: Any) -> Any:
    """Return a choice as Optuna stores it: a list as its text."""
    return json.dumps(value) if isinstance(value, list | dict) else value
