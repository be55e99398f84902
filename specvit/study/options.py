"""The `sweep.*` keys of the command line: how a study is run, never what its runs compute."""

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

import yaml

from specvit.config.suggestions import nearest
from specvit.study.yaml_schema import valued
from specvit.utils.errors import ConfigError
from specvit.utils.urls import holds_secret


@dataclass(frozen=True)
class SweepOptions:
    """How a study is run. Each can be typed anew when the same command is given again."""

    name: str | None = None
    """The study's folder in `multirun/`; None: the name of its file."""
    folder: str = "multirun"
    dry_run: bool = False
    """Say what would run, what is there and what it costs; start nothing."""
    detach: bool = False
    """Start in the background and print pid and log."""
    retry: bool = False
    """Try failed runs again."""
    extend: bool = False
    """Accept a definition that has changed: runs that are finished stay."""
    max_parallel: int | None = None
    """Workers at once, over whatever the launcher has."""
    trials: int | None = None
    """Another number of trials than the file's."""
    hours: float | None = None
    failures: int | None = None
    """Start no further run after so many hours, or with so many failed ones."""
    storage: str | None = None
    """Optuna's storage: sqlite:////FILE, postgresql+psycopg://USER@HOST/DB, ...; None: a journal file in the study."""


def split_options(overrides: list[str]) -> tuple[SweepOptions, list[str]]:
    """Return the `sweep.*` options among overrides, and the others; raises `ConfigError` for one it does not know."""
    found: dict[str, Any] = {}
    others = []
    hints = typing.get_type_hints(SweepOptions)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not key.lstrip("+").startswith("sweep.") or not equals:
            others.append(text)
            continue
        name = key.lstrip("+").removeprefix("sweep.")
        if name not in hints:
            remedy = f"{nearest(name, hints)}there are {', '.join(hints)}"
            raise ConfigError("unknown key", where=f"sweep.{name}", remedy=remedy)
        found[name] = _value(value, hints[name], f"sweep.{name}")
    options = SweepOptions(**found)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < math.inf:
            raise ConfigError(f"is {value} but must be a number above 0", where=f"sweep.{field.name}")
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", options.name):
        what = f"{options.name!r} cannot be a folder's name"
        raise ConfigError(what, where="sweep.name", remedy="use letters, digits and . _ = + -")
    if options.storage is not None and holds_secret(options.storage):
        what = "holds a password or token, which would stand in the study's record and reports"
        remedy = (
            "leave it out: PostgreSQL takes it from PGPASSWORD or ~/.pgpass, MySQL from ?read_default_file=~/.my.cnf"
        )
        raise ConfigError(what, where="sweep.storage", remedy=remedy)
    return options, others


def _value(text: str, kind: Any, where: str) -> Any:
    """Return a typed value, read as YAML."""
    if not text.strip():
        raise ConfigError(
            "is empty", where=where, remedy="is a variable not set? leave the key out, or give it a value"
        )
    try:
        value = valued(yaml.safe_load(text))
    except yaml.YAMLError:
        value = text
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in kinds:
        return None
    if str in kinds and value is not None:
        return text
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in kinds:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        wanted = " or ".join(names[kind] for kind in kinds if kind is not types.NoneType)
        raise ConfigError(f"expects {wanted}, not {text!r}", where=where)
    return value
