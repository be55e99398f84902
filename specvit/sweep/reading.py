"""Takes a study's YAML apart, strictly: each fault names the file and the key."""

from collections.abc import Callable, Mapping
from typing import Any

from specvit.config.spelling import nearest
from specvit.errors import ConfigError

Settings = dict[str, Any]
"""Overrides by key or group: `{"model/tokenizer": "sw", "opt.lr": 1e-4}`."""


class Reader:
    """Takes a plain structure apart; each fault names the file and the key."""

    def __init__(self, file: str) -> None:
        """`file` is named in each fault."""
        self.file = file

    def fault(self, what: str, where: str, remedy: str = "") -> ConfigError:
        """Return the error to raise."""
        return ConfigError(what, where=f"{self.file}: {where}", remedy=remedy)

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
        return self.mapping(plain, where)

    def items(self, plain: Any, where: str) -> list[Any]:
        """Return a list; none is an empty one."""
        if plain is not None and not isinstance(plain, list):
            raise self.fault(f"expects a list, not {plain!r}", where)
        return plain or []

    def each(self, plain: Any, where: str, take: Callable[[Any, str], Settings]) -> tuple[Settings, ...]:
        """Return a list's items, each taken by `take`."""
        return tuple(take(item, f"{where}[{i}]") for i, item in enumerate(self.items(plain, where)))

    def choice(self, value: Any, names: tuple[str, ...], where: str) -> str:
        """Return one of `names`."""
        if value not in names:
            raise self.fault(f"{value!r} is none of {', '.join(names)}", where, nearest(str(value), names).strip())
        return value

    def whole(self, value: Any, where: str, low: int = 0) -> int:
        """Return a whole number of at least `low`."""
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.fault(f"expects a whole number of at least {low}, not {value!r}", where)
        return value

    def number(self, value: Any, where: str) -> float:
        """Return a number; YAML takes 1e-4 for text, which is a number here."""
        try:
            return value if isinstance(value, int | float) and not isinstance(value, bool) else float(str(value))
        except ValueError:
            raise self.fault(f"expects a number, not {value!r}", where) from None
