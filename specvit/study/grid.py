"""From a study's grids to its runs: cells x axes x seeds, without forbidden combinations."""

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specvit.config.overrides import MAX_RUNS
from specvit.study.schema import SEED, Axis, Definition, Grid
from specvit.study.yaml_schema import Settings, Typed, matches
from specvit.utils.errors import ConfigError

PLAIN = re.compile(r"[A-Za-z0-9_.+/-]+")
"""Text that Hydra reads unchanged, unless it is a number or one of `WORDS`."""
WORDS = ("null", "true", "false")


@dataclass(frozen=True)
class Point:
    """One run of a study: all its settings, those that the study's axes vary, and the cell it belongs to."""

    settings: Settings
    factors: Settings
    cell: str = ""
    replaced: Settings = field(default_factory=dict)
    """The values of axes whose keys were typed."""


def points_of(definition: Definition, typed: Settings | None = None) -> list[Point]:
    """Return a study's runs in order; `typed` settings come from the command line and hold for all of them.

    A typed key replaces the values that axes and seeds give it; raises `ConfigError` for one that a cell sets.
    """
    typed = typed or {}
    points: dict[str, Point] = {}
    for grid in definition.grids:
        refuse_varied(typed, {key for cell in grid.cells.values() for key in cell})
        refuse_varied(
            [key for key in typed if key.startswith("+")], {SEED, *(k for axis in grid.axes for k in axis.keys)}
        )
        seeds: list[Settings] = [{SEED: seed} for seed in definition.seeds] or [{}]
        count = math.prod(len(axis.values) for axis in grid.axes) * len(seeds) * len(grid.cells or " ")
        if count > MAX_RUNS:
            what = f"has {count:,} points, more than the {MAX_RUNS:,} that can be planned"
            raise ConfigError(
                what, where=definition.name, remedy="give fewer values, or write a search (docs/sweeps.md)"
            )
        base = {**definition.overrides, **grid.overrides, **typed}
        for name, cell in (grid.cells or {"": {}}).items():
            for chosen, seed in itertools.product(_combinations({**base, **cell}, {}, grid.axes, typed), seeds):
                varied = {**chosen, **seed}
                settings = {**base, **cell, **varied, **typed}
                if not any(matches(settings, rule) for rule in grid.forbid):
                    factors = {key: value for key, value in varied.items() if key not in typed}
                    replaced = {key: value for key, value in varied.items() if key in typed}
                    points.setdefault(repr((name, settings)), Point(settings, factors, name, replaced))
    if not points:
        raise ConfigError("has no runs: all are forbidden", where=definition.name, remedy="correct its `forbid`")
    return list(points.values())


def replaced_axes(definition: Definition, typed: Settings) -> list[str]:
    """Return a sentence for each typed key that replaces the values of an axis, or the seeds."""
    values: dict[str, dict[str, None]] = {SEED: dict.fromkeys(map(str, definition.seeds))}
    for axis in (axis for grid in definition.grids for axis in grid.axes):
        for key, value in (pair for step in axis.settings for pair in step.items()):
            values.setdefault(key, {})[as_text(value)] = None
    return [
        f"{key}={typed[key]} replaces {key}={','.join(values[key])} of the study" for key in typed if values.get(key)
    ]


def as_overrides(settings: Settings) -> list[str]:
    """Return settings as Hydra's override texts."""
    return [f"{key}={as_text(value)}" for key, value in settings.items()]


def as_text(value: Any) -> str:
    """Return a YAML value as Hydra's override grammar writes it."""
    if isinstance(value, str):
        return value if isinstance(value, Typed) or _is_plain(value) else _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _is_plain(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return PLAIN.fullmatch(text) is not None and text.lower() not in WORDS
    return False


def _quoted(text: str) -> str:
    """Return text between quotes; a backslash is one in Hydra's grammar unless quotes follow."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'


def _combinations(settings: Settings, chosen: Settings, axes: tuple[Axis, ...], typed: Settings) -> list[Settings]:
    """Return all choices along `axes`; an axis whose condition does not hold so far adds nothing.

    Conditions see `typed` values in place of those of an axis.
    """
    if not axes:
        return [chosen]
    axis, rest = axes[0], axes[1:]
    if not matches(settings, axis.when):
        return _combinations(settings, chosen, rest, typed)
    combinations = []
    for step in axis.settings:
        combinations += _combinations({**settings, **step, **typed}, {**chosen, **step}, rest, typed)
    return combinations


def refuse_varied(typed: Iterable[str], varied: set[str]) -> None:
    """Raise `ConfigError` for a typed setting that cells or a search vary."""
    for key in typed:
        if key.lstrip("+") in varied:
            remedy = "drop one of the two; a study's file can be copied to ./sweeps and edited"
            raise ConfigError("is given one value, and varied, too", where=key, remedy=remedy)


def product_grid(axes: dict[str, list[Any]]) -> Grid:
    """Return the grid of a plain multirun: each key with its values."""
    return Grid(axes=tuple(Axis((key,), tuple((value,) for value in values)) for key, values in axes.items()))
