"""Strict reading of a study's YAML: each error names the file and the key."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from specvit.config.suggestions import nearest
from specvit.utils.errors import ConfigError
from specvit.utils.files import check_aliases

Settings = dict[str, Any]
"""Overrides by key or group: `{"model/tokenizer": "sw", "opt.lr": 1e-4}`."""
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
"""Numbers for Hydra, which YAML reads as text unless they have both a point and a sign."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping, of which YAML itself takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys first."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    """Return the content of YAML text; raises `yaml.YAMLError`, also for duplicate keys."""
    try:
        check_aliases(text)
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as problem:  # a number of thousands of digits, brackets in brackets in brackets
        raise yaml.YAMLError(str(problem)) from problem


def valued(plain: Any) -> Any:
    """Return a YAML value in which 1e-4 is a number, as Hydra reads it."""
    if isinstance(plain, str) and EXPONENT.fullmatch(plain):
        return float(plain)
    if isinstance(plain, list):
        return [valued(value) for value in plain]
    return {key: valued(value) for key, value in plain.items()} if isinstance(plain, dict) else plain


class Typed(str):
    """A value as typed on the command line, which Hydra parses unchanged."""


class Reader:
    """Checks and converts parts of a plain structure; each error names the file and the key."""

    def __init__(self, file: str) -> None:
        """`file` is named in each error."""
        self.file = file

    def fault(self, what: str, where: str, remedy: str = "") -> ConfigError:
        """Return the error to raise."""
        return ConfigError(what, where=f"{self.file}: {where}" if where else self.file, remedy=remedy)

    def mapping(self, plain: Any, where: str) -> dict[str, Any]:
        """Return a mapping; none is an empty one."""
        if plain is None:
            return {}
        if not isinstance(plain, Mapping):
            raise self.fault(f"expects keys with values, not {plain!r}", where)
        return {str(key): value for key, value in plain.items()}

    def section(self, plain: Any, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        """Return a mapping that has only keys of `allowed`."""
        found = self.mapping(plain, where)
        for key in found:
            if key not in allowed:
                remedy = f"{nearest(key, allowed)}there are {', '.join(allowed)}"
                raise self.fault("unknown key", f"{where}.{key}".lstrip("."), remedy)
        return found

    def settings(self, plain: Any, where: str) -> Settings:
        """Return overrides: keys or groups with values."""
        return {key: valued(value) for key, value in self.mapping(plain, where).items()}

    def items(self, plain: Any, where: str) -> list[Any]:
        """Return a list; none is an empty one."""
        if plain is not None and not isinstance(plain, list):
            raise self.fault(f"expects a list, not {plain!r}", where)
        return plain or []

    def each(self, plain: Any, where: str, take: Callable[[Any, str], Settings]) -> tuple[Settings, ...]:
        """Return a list's items, each taken by `take`."""
        return tuple(take(item, f"{where}[{i}]") for i, item in enumerate(self.items(plain, where)))

    def rows(self, plain: Any, count: int, where: str) -> list[list[Any]]:
        """Return a list of at least one row of `count` values; a row of one is a bare value in YAML."""
        rows = [valued(value) if count > 1 else [valued(value)] for value in self.items(plain, where)]
        if not rows:
            raise self.fault("has no values", where, "write a list")
        for row in rows:
            if not isinstance(row, list) or len(row) != count:
                raise self.fault(f"{row!r} does not give {count} values", where, "write one value for each key")
        return rows

    def choice(self, value: Any, names: tuple[str, ...], where: str) -> str:
        """Return one of `names`."""
        if value not in names:
            raise self.fault(f"{value!r} is not one of {', '.join(names)}", where, nearest(str(value), names).strip())
        return value

    def named(self, plain: Any, names: tuple[str, ...], where: str) -> tuple[str, Settings]:
        """Return a name and options: `tpe`, or `{name: tpe, multivariate: true}`."""
        options = dict(plain) if isinstance(plain, Mapping) else {"name": plain}
        return self.choice(options.pop("name", None), names, where), valued(options)

    def whole(self, value: Any, where: str, low: int = 0) -> int:
        """Return a whole number of at least `low`."""
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.fault(f"expects a whole number of at least {low}, not {value!r}", where)
        return value

    def number(self, value: Any, where: str, above: float | None = None) -> float:
        """Return a finite number, greater than `above`; YAML takes 1e-4 for text, which is a number here."""
        found = valued(value)
        if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
            raise self.fault(f"expects a number, not {value!r}", where)
        if above is not None and found <= above:
            raise self.fault(f"is {value} but must be above {above:g}", where)
        return found

    def flag(self, value: Any, where: str) -> bool:
        """Return true or false."""
        if not isinstance(value, bool):
            raise self.fault(f"expects true or false, not {value!r}", where)
        return value

    def text(self, value: Any, where: str) -> str:
        """Return text."""
        if not isinstance(value, str):
            raise self.fault(f"expects text, not {value!r}", where)
        return value


def matches(settings: Settings, rule: Settings) -> bool:
    """Return True if `settings` have each key of `rule` at its value, or at one of its list of values."""
    return all(
        key in settings and meaning(settings[key]) in (value if isinstance(value, list) else [value])
        for key, value in rule.items()
    )


def meaning(value: Any) -> Any:
    """Return a setting as a study's file would contain it."""
    if not isinstance(value, Typed):
        return value
    try:
        return valued(yaml.safe_load(value))
    except yaml.YAMLError:
        return str(value)
