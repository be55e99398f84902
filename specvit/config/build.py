"""The strict builder: a plain dict becomes frozen dataclasses, or one sentence says which key is wrong.

Types are exact (no "3" for 3, no 1 for true; an int may stand for a float), unknown keys are refused, ranges and
choices come from the schema's metadata; `config.validate` then holds the rules that span several keys.
"""

import dataclasses
import json
import math
import sys
import types
import typing
from typing import Any

from specvit.config.model_kinds import MODEL_KINDS, refuse_foreign
from specvit.config.schema import Config, ModelConfig
from specvit.config.suggestions import nearest, suggest
from specvit.config.validate import check_together
from specvit.utils.errors import ConfigError


def build_config(plain: dict[str, Any]) -> Config:
    """Return the frozen config of a resolved plain dict; raises `ConfigError` naming the first key at fault."""
    config = _section(Config, plain, "")
    check_together(config)
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as a plain dict (lists for tuples), ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _section(cls: type, plain: Any, prefix: str) -> Any:
    if not isinstance(plain, dict):
        raise ConfigError(
            f"expects a section, not {plain!r}", where=prefix.rstrip("."), remedy="set its keys one by one"
        )
    hints = typing.get_type_hints(cls)
    for name in plain:
        if name not in hints:
            refuse_foreign(f"{prefix}{name}", plain.get("kind", "vit"))
            raise ConfigError("unknown key", where=f"{prefix}{name}", remedy=suggest(f"{prefix}{name}"))
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in plain:
            values[field.name] = _value(plain[field.name], hints[field.name], field.metadata, f"{prefix}{field.name}")
    return cls(**values)


def _value(raw: Any, kind: Any, rules: Any, where: str) -> Any:
    """Return `raw` as `kind`, checked against the field's `rules`."""
    if kind is ModelConfig:
        kind = _model_kind(raw, where)
    if dataclasses.is_dataclass(kind):
        return _section(typing.cast(type, kind), raw, f"{where}.")
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if raw is None and types.NoneType in options:
        return None
    kind = next(option for option in options if option is not types.NoneType)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        if not isinstance(raw, dict):
            raise ConfigError(f"expects names with values, not {raw!r}", where=where)
        return {str(name): str(value) for name, value in raw.items()}
    if origin is tuple:
        return _tuple(raw, arguments, rules, where)
    return _scalar(raw, kind, rules, where)


def _model_kind(raw: Any, where: str) -> type:
    """Return the dataclass of the section that `model.kind` asks for."""
    kind = raw.get("kind", "vit") if isinstance(raw, dict) else "vit"
    if kind not in MODEL_KINDS:
        what = f"{kind!r} is not one of {', '.join(MODEL_KINDS)}"
        raise ConfigError(what, where=f"{where}.kind", remedy=nearest(str(kind), MODEL_KINDS).strip())
    return MODEL_KINDS[kind].config


def _tuple(raw: Any, arguments: tuple[Any, ...], rules: Any, where: str) -> tuple[Any, ...]:
    """Return a tuple; one text may hold several items between commas, and one bare item is a tuple of one."""
    item = arguments[0]
    if isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",")] if item is str else [raw]
    items = list(raw) if isinstance(raw, list | tuple) else [raw]
    wanted = len(arguments) if arguments[-1] is not Ellipsis else None
    if not items or (wanted is not None and len(items) != wanted):
        raise ConfigError(f"expects {wanted or 'at least one'} value(s), not {raw!r}", where=where)
    return tuple(_scalar(value, item, rules, where) for value in items)


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _scalar(raw: Any, kind: type, rules: Any, where: str) -> Any:
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        raw = float(raw) if abs(raw) < sys.float_info.max else math.inf
    if kind is str and isinstance(raw, int | float) and not isinstance(raw, bool):
        raw = str(raw)
    if type(raw) is not kind:
        hint = "write it like 1.0e-4" if kind is float and isinstance(raw, str) else ""
        raise ConfigError(f"expects {NAMES[kind]}, not {raw!r}", where=where, remedy=hint)
    if raw == "" and where != "tracking.notes":
        raise ConfigError(
            "is empty", where=where, remedy="is a variable not set? leave the key out, or give it a value"
        )
    return _in_range(_choice(raw, rules, where), rules, where)


def _choice(raw: Any, rules: Any, where: str) -> Any:
    raw = rules.get("aliases", {}).get(raw, raw)
    choices = rules.get("choices")
    if choices and raw not in choices:
        what = f"{raw!r} is not one of {', '.join(choices)}"
        raise ConfigError(what, where=where, remedy=nearest(str(raw), choices).strip())
    return raw


def _in_range(raw: Any, rules: Any, where: str) -> Any:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        return raw
    low, high, above = rules.get("low"), rules.get("high"), rules.get("above")
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"expects a finite number, not {raw}", where=where)
    if low is not None and raw < low:
        raise ConfigError(f"is {raw} but must be at least {low:g}", where=where)
    if above is not None and raw <= above:
        raise ConfigError(f"is {raw} but must be above {above:g}", where=where)
    if high is not None and raw > high:
        raise ConfigError(f"is {raw} but must be at most {high:g}", where=where)
    return raw


def flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested section as one dict with dotted keys."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
