"""Keys that users set: fields of frozen dataclasses, declared by `key` and built strictly from plain dicts by `build`.

Types are exact (no "3" for 3, no 1 for true; an int may stand for a float, a number for text), and unknown keys are
refused. All faults of a dict are reported together. Rules that span several keys are checked by who calls `build`.
"""

import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from typing import Any

from specvit.utils.errors import ConfigError, Faults
from specvit.utils.text import nearest

REQUIRED = MISSING
"""The default of a key that must be set."""
EMPTY = "is a variable not set? leave the key out, or give it a value"


def key(
    default: Any = REQUIRED,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    aliases: dict[str, str] | None = None,
    commas: bool = False,
    may_be_empty: bool = False,
    read: Callable[[Any, str], Any] | None = None,
    identity: bool = True,
    neutral: Any = MISSING,
    used_if: Callable[[Any], bool] | None = None,
) -> Any:
    """Declare one key with its default (a class: its instances are) and what `build` checks of it.

    `low` and `high` are inclusive, `above` is exclusive. Case does not matter in `choices`; `aliases` (in lower case)
    are other names of theirs. With `commas` one value, or text with commas, may stand for a list. `read` takes value
    and dotted key, and replaces all other checks.
    Of a run's keys, `identity=False` marks those that cannot change a result, and `neutral=` those that a later version
    added: at that value the run id leaves them out. `used_if=` says when a key of its section has an effect.
    """
    metadata = {"low": low, "high": high, "above": above, "choices": choices, "aliases": aliases or {}}
    metadata |= {"commas": commas, "may_be_empty": may_be_empty, "read": read}
    metadata |= {"identity": identity, "neutral": neutral, "used_if": used_if}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


hints_of = cache(typing.get_type_hints)


class Builder:
    """Builds a dataclass from a plain dict; a subclass may word the refusal of unknown keys."""

    def build(self, cls: type, plain: Any, prefix: str = "", **given: Any) -> Any:
        """Return a `cls` of the keys in `plain` and the fields `given`, which `plain` may not set.

        `prefix` precedes the keys in errors, such as `hydra.launcher.`; raises `ConfigError`.
        """
        keys = {entry.name: entry for entry in fields(cls) if entry.name not in given}
        faults = Faults()
        plain = mapping(plain, prefix.rstrip(".: "))
        for name in plain:
            if name not in keys:
                with faults:
                    self.refuse(plain, name, prefix, keys)
        for name, entry in keys.items():
            with faults:
                if name in plain:
                    given[name] = self.value(plain[name], hints_of(cls)[name], entry.metadata, spelt(prefix, name))
                elif entry.default is MISSING and entry.default_factory is MISSING and not faults:
                    raise ConfigError("is not set", where=spelt(prefix, name), remedy="give it a value")
        faults.report()
        return cls(**given)

    def refuse(self, plain: dict[str, Any], name: str, prefix: str, keys: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for an unknown key of a section `plain`."""
        remedy = f"{nearest(name, keys)}there are {', '.join(keys)}"
        raise ConfigError("unknown key", where=spelt(prefix, name), remedy=remedy)

    def value(self, raw: Any, kind: Any, rules: Mapping[str, Any], where: str) -> Any:
        """Return `raw` as a `kind`, checked against the `rules` of `key`; raises `ConfigError`."""
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if raw is None and types.NoneType in kinds:
            return None
        if rules.get("read"):
            return rules["read"](raw, where)
        origin, arguments = typing.get_origin(kinds[0]), typing.get_args(kinds[0])
        if is_dataclass(kinds[0]):
            return self.build(typing.cast(type, kinds[0]), raw, f"{where}.")
        if origin is dict:
            items = {} if raw is None else mapping(raw, where)
            return self._each(items, arguments[1], rules, [f"{where}.{name}" for name in items])
        if origin is tuple:
            return self._tuple(raw, arguments, rules, where)
        return raw if kinds[0] is Any else _scalar(raw, kinds, rules, where)

    def _tuple(self, raw: Any, arguments: tuple[Any, ...], rules: Mapping[str, Any], where: str) -> tuple[Any, ...]:
        kind, wanted = arguments[0], len(arguments) if arguments[-1] is not Ellipsis else None
        items = list(raw) if isinstance(raw, list | tuple) else [raw]
        if rules.get("commas"):
            if isinstance(raw, str) and kind is str:
                items = [part.strip() for part in raw.split(",")]
            if not items:
                raise ConfigError(f"expects at least one value, not {raw!r}", where=where)
        elif raw is None:
            return ()
        elif not isinstance(raw, list | tuple):
            raise ConfigError(f"expects a list, not {raw!r}", where=where)
        if wanted is not None and len(items) != wanted:
            raise ConfigError(f"expects {wanted} values, not {raw!r}", where=where)
        numbered = is_dataclass(kind) or typing.get_origin(kind) is not None
        places = [f"{where}[{number}]" if numbered else where for number in range(len(items))]
        return tuple(self._each(dict(enumerate(items)), kind, rules, places).values())

    def _each(self, items: dict[Any, Any], kind: Any, rules: Mapping[str, Any], places: list[str]) -> dict[Any, Any]:
        """Return the items, each as a `kind`; `places` are their dotted keys."""
        built, faults = {}, Faults()
        for (name, raw), where in zip(items.items(), places, strict=True):
            with faults:
                built[name] = self.value(raw, kind, rules, where)
        faults.report()
        return built


build = Builder().build
checked = Builder().value


def mapping(raw: Any, where: str) -> dict[str, Any]:
    """Return a mapping whose keys are text; raises `ConfigError` for anything else."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"expects keys with values, not {raw!r}", where=where)
    return {str(name): value for name, value in raw.items()}


def spelt(prefix: str, name: str) -> str:
    """Return a key as its user writes it: `opt.lr`, `--to-resolution`."""
    return prefix + (name.replace("_", "-") if prefix == "--" else name)


def spellings(rules: Mapping[str, Any]) -> dict[str, str]:
    """Return the choices of a key by their names and aliases in lower case."""
    return {choice.lower(): choice for choice in rules["choices"]} | rules["aliases"]


def _scalar(raw: Any, kinds: tuple[Any, ...], rules: Mapping[str, Any], where: str) -> Any:
    if raw == "" and not rules.get("may_be_empty"):
        raise ConfigError("is empty", where=where, remedy=EMPTY)
    value: Any = raw
    choices = rules.get("choices")
    if str in kinds and type(raw) in (int, float):
        value = str(raw)
    elif float in kinds and int not in kinds and type(raw) is int:
        value = float(raw) if abs(raw) < sys.float_info.max else math.inf
    if choices and type(value) is str:
        value = spellings(rules).get(value.lower(), value)
    if choices and value not in choices:
        remedy = nearest(str(raw), choices).strip()
        raise ConfigError(f"{raw!r} is not one of {', '.join(choices)}", where=where, remedy=remedy)
    if type(value) not in kinds or (type(value) in (int, float) and not _in_range(value, rules)):
        shown = repr(raw) if len(repr(raw)) < 60 else f"{repr(raw)[:56]}..."
        remedy = "write it like 1.0e-4" if float in kinds and isinstance(raw, str) else ""
        raise ConfigError(f"expects {_expected(kinds, rules)}, not {shown}", where=where, remedy=remedy)
    return value


def _in_range(value: float, rules: Mapping[str, Any]) -> bool:
    low, high, above = rules.get("low"), rules.get("high"), rules.get("above")
    return (
        -math.inf < value < math.inf
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
    )


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _expected(kinds: tuple[Any, ...], rules: Mapping[str, Any]) -> str:
    """Return what a value is to be, such as "a number above 0"."""
    bounds = [rules.get(name) for name in ("low", "high", "above")]
    low, high, above = ("" if bound is None else f"{bound:,}".removesuffix(".0") for bound in bounds)
    name = NAMES[[kind for kind in kinds if kind is not types.NoneType][-1]]
    if low and high:
        return f"{name} from {low} to {high}"
    limits = [f"of at least {low}" * bool(low), f"above {above}" * bool(above), f"of at most {high}" * bool(high)]
    return f"{name} {' and '.join(filter(None, limits))}".strip()
