"""The space of a search: its dimensions, and how a trial suggests a value of each. Does not import Optuna."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from specvit.study.yaml_schema import Settings, matches

FORBIDDEN = "is forbidden by the study"


@dataclass(frozen=True)
class Dimension:
    """One key that Optuna chooses: from `choices`, or a number between `low` and `high`."""

    key: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: Settings = field(default_factory=dict)

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


@dataclass(frozen=True)
class Search:
    """A search by Optuna: space, metrics, number of trials, sampler and pruner."""

    space: tuple[Dimension, ...]
    metrics: dict[str, str]
    """Metric -> `minimize` or `maximize`."""
    trials: int
    seed: int = 0
    sampler: str = "tpe"
    sampler_options: Settings = field(default_factory=dict)
    pruner: str = "none"
    pruner_options: Settings = field(default_factory=dict)
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
