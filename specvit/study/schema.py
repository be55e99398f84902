"""What a study is: one YAML file in `sweeps/`, read strictly into frozen dataclasses.

A study is a concatenation of grids (cells x axes x seeds), or a search by Optuna over a space. `docs/sweeps.md` shows
the format; this module is its specification.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from specvit.config.suggestions import nearest
from specvit.study.search_space import Dimension, Search
from specvit.study.yaml_schema import Reader, Settings, parsed
from specvit.utils.errors import ConfigError

SEED, ESCAPED = "train.seed", "escape_step"


@dataclass(frozen=True)
class Axis:
    """Keys that vary together over `values`; ignored unless `when` holds."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    when: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Named cells, each with its own settings, times axes, without forbidden combinations."""

    overrides: Settings = field(default_factory=dict)
    cells: dict[str, Settings] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    forbid: tuple[Settings, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Limits after which a study starts no further run."""

    hours: float | None = None
    failures: int | None = None


@dataclass(frozen=True)
class Table:
    """What the study's table shows: a metric of the summary, or the first step at which `of` exceeds `above`."""

    metric: str = "test_r2"
    of: str | None = None
    above: float | None = None


@dataclass(frozen=True)
class Definition:
    """The complete definition of a study."""

    name: str
    overrides: Settings = field(default_factory=dict)
    grids: tuple[Grid, ...] = ()
    search: Search | None = None
    seeds: tuple[int, ...] = ()
    budget: Budget = field(default_factory=Budget)
    table: Table = field(default_factory=Table)
    question: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    """The content of the file, from which the workers of a search rebuild the definition."""

    def digest(self) -> str:
        """Return a hash of what must not change when a study is resumed: all that decides its runs and its sampling."""
        parts = asdict(self)
        for name in ("name", "budget", "table", "question", "source"):
            parts.pop(name)
        if parts["search"]:
            parts["search"].pop("trials")
        for grid in parts["grids"]:
            grid["cells"] = list(grid["cells"].items())  # their order numbers the trials
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def values_of(self, key: str) -> list[Any]:
        """Return the values that the study gives a key or group in any of its runs."""
        settings = [self.overrides, *(part for grid in self.grids for part in (grid.overrides, *grid.cells.values()))]
        for axis in (axis for grid in self.grids for axis in grid.axes):
            settings += [dict(zip(axis.keys, row, strict=True)) for row in axis.values]
        for dimension in self.search.space if self.search else ():
            settings += [dimension.settings(value) for value in dimension.examples()]
        return [part[key] for part in settings if key in part]


def read_definition(path: Path) -> Definition:
    """Return the study of a file; raises `ConfigError` naming file and key."""
    try:
        text = path.read_text()
        plain = parsed(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        what = f"is not valid YAML ({' '.join(str(error).split())[:160]})"
        raise ConfigError(what, where=str(path), remedy="mend the line that it names") from error
    definition = definition_of({} if plain is None else plain, path.stem, where=str(path))
    lines = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("# Question:")]
    question = lines[0].removeprefix("Question:").strip() if lines else ""
    return replace(definition, question=question)


def definition_of(plain: Any, name: str, *, where: str) -> Definition:
    """Return the study that a plain dict describes; raises `ConfigError` naming the first key at fault."""
    read = Reader(where)
    parts = read.section(plain, "", ("overrides", "grids", "search", "seeds", "budget", "table"))
    seeds = tuple(read.whole(seed, "seeds") for seed in read.items(parts.get("seeds"), "seeds"))
    grids = tuple(_grid(read, grid, f"grids[{i}]") for i, grid in enumerate(read.items(parts.get("grids"), "grids")))
    search = _search(read, parts["search"]) if parts.get("search") is not None else None
    if bool(grids) == (search is not None):
        raise ConfigError("needs either grids or a search", where=where, remedy="write one of the two")
    if search and seeds:
        raise read.fault("go with grids", "seeds", "drop them, or put train.seed into search.space")
    return Definition(
        name=name,
        overrides=read.settings(parts.get("overrides"), "overrides"),
        grids=grids,
        search=search,
        seeds=seeds,
        budget=_budget(read, parts.get("budget")),
        table=_table(read, parts.get("table")),
        source=dict(plain),
    )


def _budget(read: Reader, plain: Any) -> Budget:
    parts = read.section(plain, "budget", ("hours", "failures"))
    hours, failures = parts.get("hours"), parts.get("failures")
    return Budget(
        hours=None if hours is None else read.number(hours, "budget.hours", above=0.0),
        failures=None if failures is None else read.whole(failures, "budget.failures", low=1),
    )


def _table(read: Reader, plain: Any) -> Table:
    parts = read.section(plain, "table", ("metric", "of", "above"))
    metric, of, above = (
        read.text(parts.get("metric", Table.metric), "table.metric"),
        parts.get("of"),
        parts.get("above"),
    )
    if metric == ESCAPED and (of is None or above is None):
        raise read.fault(f"needs `of` and `above` for {ESCAPED}", "table", "write, say, of: val_r2, above: 0.1")
    return Table(
        metric=metric,
        of=None if of is None else read.text(of, "table.of"),
        above=None if above is None else read.number(above, "table.above"),
    )


def _grid(read: Reader, plain: Any, where: str) -> Grid:
    parts = read.section(plain, where, ("overrides", "cells", "axes", "forbid"))
    cells = read.mapping(parts.get("cells"), f"{where}.cells")
    axes = read.mapping(parts.get("axes"), f"{where}.axes")
    return Grid(
        overrides=read.settings(parts.get("overrides"), f"{where}.overrides"),
        cells={str(name): read.settings(cell, f"{where}.cells.{name}") for name, cell in cells.items()},
        axes=tuple(_axis(read, str(keys), values, f"{where}.axes.{keys}") for keys, values in axes.items()),
        forbid=read.each(parts.get("forbid"), f"{where}.forbid", read.settings),
    )


def _axis(read: Reader, text: str, plain: Any, where: str) -> Axis:
    """Return an axis; several keys, separated by commas, vary together, and each value is a list of that length."""
    keys = tuple(key.strip() for key in text.split(","))
    when: Settings = {}
    if isinstance(plain, Mapping):
        parts = read.section(plain, where, ("values", "when"))
        plain, when = parts.get("values"), read.settings(parts.get("when"), f"{where}.when")
    return Axis(keys, tuple(map(tuple, read.rows(plain, len(keys), where))), when)


SEARCH_KEYS = ("space", "metrics", "trials", "seed", "sampler", "pruner", "start", "forbid")
SAMPLERS = ("tpe", "cmaes", "gp", "random", "grid", "qmc", "nsga2")
PRUNERS = ("none", "median", "percentile", "halving", "hyperband", "patient", "wilcoxon")


def _search(read: Reader, plain: Any) -> Search:
    parts = read.section(plain, "search", SEARCH_KEYS)
    space = read.mapping(parts.get("space"), "search.space")
    metrics = read.mapping(parts.get("metrics"), "search.metrics")
    if not space or not metrics:
        raise read.fault("needs a space and metrics", "search", "write, say, metrics: {val_r2: maximize}")
    for name, direction in metrics.items():
        read.choice(direction, ("minimize", "maximize"), f"search.metrics.{name}")
    sampler, sampler_options = read.named(parts.get("sampler", "tpe"), SAMPLERS, "search.sampler")
    pruner, options = read.named(parts.get("pruner", "none"), PRUNERS, "search.pruner")
    if len(metrics) > 1 and pruner != "none":
        raise read.fault("goes with one metric only", "search.pruner", "drop it, or all metrics but one")
    dimensions = tuple(_dimension(read, str(key), value) for key, value in space.items())
    start = read.each(parts.get("start"), "search.start", read.settings)
    _check_start(read, start, dimensions)
    return Search(
        space=dimensions,
        metrics=dict(metrics),
        trials=read.whole(parts.get("trials"), "search.trials", low=1),
        seed=read.whole(parts.get("seed", 0), "search.seed"),
        sampler=sampler,
        sampler_options=sampler_options,
        pruner=pruner,
        warmup_steps=read.whole(options.pop("warmup_steps", 0), "search.pruner.warmup_steps"),
        pruner_options=options,
        start=start,
        forbid=read.each(parts.get("forbid"), "search.forbid", read.settings),
    )


def _check_start(read: Reader, start: tuple[Settings, ...], space: tuple[Dimension, ...]) -> None:
    """Raise `ConfigError` for a start point outside the space: Optuna would ignore unknown keys."""
    by_key = {dimension.key: dimension for dimension in space}
    for number, point in enumerate(start):
        for key, value in point.items():
            where = f"search.start[{number}].{key}"
            if key not in by_key:
                raise read.fault("is not in the space", where, nearest(key, by_key).strip())
            if not by_key[key].allows(value):
                raise read.fault(f"{value!r} is outside of the space", where)


def _dimension(read: Reader, key: str, plain: Any) -> Dimension:
    where, count = f"search.space.{key}", len(key.split(","))
    if isinstance(plain, list):
        plain = {"choices": plain}
    parts = read.section(plain, where, ("choices", "low", "high", "log", "step", "whole", "when"))
    when = read.settings(parts.pop("when", None), f"{where}.when")
    if "choices" in parts or count > 1:
        if set(parts) != {"choices"}:
            raise read.fault("needs choices and nothing beside them", where, "write a list")
        rows = read.rows(parts["choices"], count, where)
        return Dimension(key, choices=tuple(row if count > 1 else row[0] for row in rows), when=when)
    low, high, step = (
        None if parts.get(name) is None else read.number(parts[name], f"{where}.{name}")
        for name in ("low", "high", "step")
    )
    log, whole = (read.flag(parts.get(name, False), f"{where}.{name}") for name in ("log", "whole"))
    if low is None or high is None or low >= high:
        raise read.fault("needs low < high", where, "write, say, {low: 1.0e-5, high: 1.0e-2, log: true}")
    if log and (low <= 0 or step is not None):
        raise read.fault("with log needs low above 0 and no step", where, "drop log, or the step")
    if step is not None and step <= 0:
        raise read.fault(f"is {step} but must be above 0", f"{where}.step")
    if whole and any(number != int(number) for number in (low, high, step or 1)):
        raise read.fault("is to be whole, but low, high or step is not", where, "drop whole, or the fractions")
    return Dimension(key, low=low, high=high, log=log, step=step, whole=whole, when=when)
