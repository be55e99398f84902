"""What a study is: one YAML file in `sweeps/`, read strictly into frozen dataclasses.

A study is a concatenation of grids (cells x axes x seeds), or a search by Optuna over a space. `docs/sweeps.md` shows
the format; this module is its specification.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from specvit.config.fields import build, key, mapping
from specvit.run_folder.identity import REPEATED
from specvit.study.search_space import Search, read_search, value_rows
from specvit.study.yaml_schema import Settings, parsed, valued
from specvit.utils.errors import ConfigError

SEED, FOLD = REPEATED
ESCAPED = "escape_step"


@dataclass(frozen=True)
class Axis:
    """Keys that vary together over `values`; ignored unless `when` holds."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...] = key((), read=lambda raw, where: raw)
    when: Settings = key(dict)

    @property
    def settings(self) -> list[Settings]:
        """The settings of each step along it."""
        return [dict(zip(self.keys, row, strict=True)) for row in self.values]


def _axes(plain: Any, where: str) -> tuple[Axis, ...]:
    axes = mapping({} if plain is None else plain, where)
    return tuple(_axis(names, values, f"{where}.{names}") for names, values in axes.items())


def _axis(names: str, plain: Any, where: str) -> Axis:
    """Return an axis; several keys, separated by commas, vary together, and each value is a list of that length."""
    keys = tuple(name.strip() for name in names.split(","))
    axis: Axis = build(Axis, plain if isinstance(plain, dict) else {"values": plain}, f"{where}.", keys=keys)
    return replace(axis, values=tuple(map(tuple, value_rows(axis.values, len(keys), where))))


@dataclass(frozen=True)
class Grid:
    """Named cells, each with its own settings, times axes, without forbidden combinations."""

    overrides: Settings = key(dict)
    cells: dict[str, Settings] = key(dict)
    axes: tuple[Axis, ...] = key((), read=_axes)
    forbid: tuple[Settings, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Limits after which a study starts no further run."""

    hours: float | None = key(None, above=0)
    failures: int | None = key(None, low=1)


@dataclass(frozen=True)
class Table:
    """What the study's table shows: a metric of the summary, or the first step at which `of` exceeds `above`."""

    metric: str = "test_r2"
    of: str | None = None
    above: int | float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """What a study is to test, and the criterion by which it is judged, written before its first run."""

    claim: str = key()
    criterion: str = key()


@dataclass(frozen=True)
class Definition:
    """The complete definition of a study."""

    name: str
    overrides: Settings = key(dict)
    grids: tuple[Grid, ...] = ()
    search: Search | None = key(None, read=read_search)
    seeds: tuple[int, ...] = key((), low=0)
    budget: Budget = key(Budget)
    table: Table = key(Table)
    hypotheses: dict[str, Hypothesis] = key(dict)
    """By name, such as H1; for reports."""
    health_minutes: float | None = key(None, above=0)
    """From the start of a run to the first check of its health; None: the default."""
    question: str = ""
    source: dict[str, Any] = key(dict)
    """The content of the file, from which the workers of a search rebuild the definition."""

    def digest(self) -> str:
        """Return a hash of what must not change when a study is resumed.

        That is all that decides its runs and its sampling, and the hypotheses, whose criteria precede the results.
        """
        parts = asdict(self)
        if not self.hypotheses:  # studies of before have none
            parts.pop("hypotheses")
        for name in ("name", "budget", "table", "health_minutes", "question", "source"):
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
            settings += axis.settings
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
        raise ConfigError(what, where=str(path), remedy="correct the line that it names") from error
    definition = definition_of({} if plain is None else plain, path.stem, where=str(path))
    lines = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("# Question:")]
    question = lines[0].removeprefix("Question:").strip() if lines else ""
    return replace(definition, question=question)


def definition_of(plain: Any, name: str, *, where: str) -> Definition:
    """Return the study that a plain dict describes; raises `ConfigError` naming the keys at fault."""
    prefix = f"{where}: " if where else ""
    parts = {part: valued(value) for part, value in mapping(plain, where).items() if value is not None}
    if isinstance(parts.get("grids"), list):
        parts["grids"] = [{} if grid is None else grid for grid in parts["grids"]]
    definition: Definition = build(Definition, parts, prefix, name=name, question="", source=dict(plain))
    grids, search, table = definition.grids, definition.search, definition.table
    if bool(grids) == (search is not None):
        raise ConfigError("needs either grids or a search", where=where, remedy="write one of the two")
    if search and definition.seeds:
        remedy = "drop them, or put train.seed into search.space"
        raise ConfigError("need grids", where=f"{prefix}seeds", remedy=remedy)
    if table.metric == ESCAPED and (table.of is None or table.above is None):
        what, remedy = f"needs `of` and `above` for {ESCAPED}", "write, say, of: val_r2, above: 0.1"
        raise ConfigError(what, where=f"{prefix}table", remedy=remedy)
    return definition
