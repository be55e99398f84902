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

from specvit.config.spelling import nearest
from specvit.errors import ConfigError
from specvit.sweep.reading import Reader, Settings

SEED = "train.seed"


@dataclass(frozen=True)
class Axis:
    """Keys that move together through `values`; without effect unless `when` holds."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    when: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Named cells, each with its own settings, times axes, without what is forbidden."""

    overrides: Settings = field(default_factory=dict)
    cells: dict[str, Settings] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    forbid: tuple[Settings, ...] = ()


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
        """The keys that it sets; several between commas move together."""
        return [key.strip() for key in self.key.split(",")]

    def settings(self, value: Any) -> Settings:
        """Return what a value of it sets."""
        return dict(zip(self.keys, value, strict=True)) if len(self.keys) > 1 else {self.key: value}

    def examples(self) -> list[Any]:
        """Return values to try: all choices, or both ends."""
        if self.choices is not None:
            return list(self.choices)
        return [int(end) if self.whole else end for end in (self.low or 0.0, self.high or 0.0)]


@dataclass(frozen=True)
class Search:
    """A search by Optuna: what is asked for, where, and how."""

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


@dataclass(frozen=True)
class Budget:
    """When a study starts no further run."""

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
    """A study, whole."""

    name: str
    overrides: Settings = field(default_factory=dict)
    grids: tuple[Grid, ...] = ()
    search: Search | None = None
    seeds: tuple[int, ...] = ()
    budget: Budget = field(default_factory=Budget)
    table: Table = field(default_factory=Table)
    question: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    """The file's content, from which the search's workers read the same definition again."""

    def digest(self) -> str:
        """Return what must not change while the study goes on: all that decides which runs it has, and how it asks."""
        parts = asdict(self)
        for name in ("name", "budget", "table", "question", "source"):
            parts.pop(name)
        if parts["search"]:
            parts["search"].pop("trials")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def sweeps_dirs() -> list[Path]:
    """Return the folders with studies: the user's own `./sweeps` first, then the bundled one."""
    package = Path(__file__).resolve().parents[1]
    bundled = package / "sweeps" if (package / "sweeps").is_dir() else package.parent / "sweeps"
    own = Path.cwd() / "sweeps"
    return [own, bundled] if own.is_dir() and not (bundled.is_dir() and own.samefile(bundled)) else [bundled]


def find_study(name: str) -> Path:
    """Return the file of a study; raises `ConfigError` with the names that there are."""
    files = {path.stem: path for folder in reversed(sweeps_dirs()) for path in sorted(folder.glob("*.yaml"))}
    if name not in files:
        remedy = f"{nearest(name, files)}there are {', '.join(sorted(files)) or 'none'}"
        raise ConfigError(f"has no study {name!r}", where="sweeps", remedy=remedy)
    return files[name]


def read_definition(path: Path) -> Definition:
    """Return the study of a file; raises `ConfigError` naming file and key."""
    text = path.read_text()
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        what = f"is no valid YAML ({' '.join(str(error).split())[:160]})"
        raise ConfigError(what, where=str(path), remedy="mend the line that it names") from error
    definition = definition_of(plain or {}, path.stem, where=str(path))
    lines = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("# Question:")]
    question = lines[0].removeprefix("Question:").strip() if lines else ""
    return replace(definition, question=question)


def definition_of(plain: Any, name: str, *, where: str) -> Definition:
    """Return the study that a plain dict describes; raises `ConfigError` naming the first key at fault."""
    read = Reader(where)
    parts = read.section(plain, "", ("overrides", "grids", "search", "seeds", "budget", "table"))
    grids = tuple(_grid(read, grid, f"grids[{i}]") for i, grid in enumerate(read.items(parts.get("grids"), "grids")))
    search = _search(read, parts["search"]) if parts.get("search") is not None else None
    if bool(grids) == (search is not None):
        raise ConfigError("needs either grids or a search", where=where, remedy="write one of the two")
    return Definition(
        name=name,
        overrides=read.settings(parts.get("overrides"), "overrides"),
        grids=grids,
        search=search,
        seeds=tuple(read.whole(seed, "seeds") for seed in read.items(parts.get("seeds"), "seeds")),
        budget=Budget(**read.section(parts.get("budget"), "budget", ("hours", "failures"))),
        table=Table(**read.section(parts.get("table"), "table", ("metric", "of", "above"))),
        source=dict(plain),
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
    """Return an axis; several keys between commas move together, and each of its values is a list of that length."""
    keys = tuple(key.strip() for key in text.split(","))
    when: Settings = {}
    if isinstance(plain, Mapping):
        parts = read.section(plain, where, ("values", "when"))
        plain, when = parts.get("values"), read.settings(parts.get("when"), f"{where}.when")
    values = [value if len(keys) > 1 else [value] for value in read.items(plain, where)]
    if not values:
        raise read.fault("has no values", where, "write a list")
    for value in values:
        if not isinstance(value, list) or len(value) != len(keys):
            raise read.fault(f"{value!r} does not give {len(keys)} values", where, "write one value for each key")
    return Axis(keys, tuple(map(tuple, values)), when)


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
    sampler, sampler_options = _kind(read, parts.get("sampler", "tpe"), SAMPLERS, "search.sampler")
    pruner, options = _kind(read, parts.get("pruner", "none"), PRUNERS, "search.pruner")
    if len(metrics) > 1 and pruner != "none":
        raise read.fault("goes with one metric only", "search.pruner", "drop it, or all metrics but one")
    return Search(
        space=tuple(_dimension(read, str(key), value) for key, value in space.items()),
        metrics=dict(metrics),
        trials=read.whole(parts.get("trials"), "search.trials", low=1),
        seed=read.whole(parts.get("seed", 0), "search.seed"),
        sampler=sampler,
        sampler_options=sampler_options,
        pruner=pruner,
        warmup_steps=read.whole(options.pop("warmup_steps", 0), "search.pruner.warmup_steps"),
        pruner_options=options,
        start=read.each(parts.get("start"), "search.start", read.settings),
        forbid=read.each(parts.get("forbid"), "search.forbid", read.settings),
    )


def _kind(read: Reader, plain: Any, names: tuple[str, ...], where: str) -> tuple[str, Settings]:
    """Return a sampler's or pruner's name and options: `tpe`, or `{name: tpe, multivariate: true}`."""
    options = dict(plain) if isinstance(plain, Mapping) else {"name": plain}
    return read.choice(options.pop("name", None), names, where), options


def _dimension(read: Reader, key: str, plain: Any) -> Dimension:
    where = f"search.space.{key}"
    if isinstance(plain, list):
        plain = {"choices": plain}
    parts = read.section(plain, where, ("choices", "low", "high", "log", "step", "whole", "when"))
    when = read.settings(parts.pop("when", None), f"{where}.when")
    if "choices" in parts:
        choices = tuple(read.items(parts["choices"], where))
        if not choices or len(parts) > 1:
            raise read.fault("needs values and nothing beside choices", where, "write a list")
        return Dimension(key, choices=choices, when=when)
    for name in ("low", "high", "step"):
        if parts.get(name) is not None:
            parts[name] = read.number(parts[name], f"{where}.{name}")
    if parts.get("low") is None or parts.get("high") is None or parts["low"] >= parts["high"]:
        raise read.fault("needs low < high", where, "write, say, {low: 1.0e-5, high: 1.0e-2, log: true}")
    if parts.get("log") and (parts["low"] <= 0 or parts.get("step")):
        raise read.fault("with log needs low above 0 and no step", where, "drop log, or the step")
    return Dimension(key, **parts, when=when)
