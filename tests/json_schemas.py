"""The tables of docs/json.md as schemas, and the check of a document against them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "json.md"
PLAIN = {"string": str, "integer": int, "number": int | float, "boolean": bool, "null": type(None)}


def _tables(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each table and the type of each of its keys."""
    for name, body in re.findall(r"^####? (\S+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        keys = {}
        for line in re.findall(r"^\| (`.*)$", body, re.MULTILINE):
            named, kind, *_ = (cell.strip() for cell in line.split("|"))
            keys |= {key: kind for key in re.findall(r"`([^`]+)`", named)}
        yield name, keys


@dataclass
class Schemas:
    """The tables by name, and which types of which keys documents have had."""

    tables: dict[str, dict[str, str]] = field(default_factory=lambda: dict(_tables(PAGE.read_text())))
    seen: set[tuple[str, str, str]] = field(default_factory=set)

    def check(self, document: dict[str, Any]) -> None:
        """Fail unless a document is as the table of its schema says."""
        self._check(document, document["schema"], document["schema"])

    def unseen(self, schema: str) -> set[tuple[str, str, str]]:
        """Return what no document has had yet of the types that a schema documents: table, key, type."""
        there: set[tuple[str, str, str]] = set()
        open_tables, done = {schema}, set[str]()
        while open_tables:
            done.add(table := open_tables.pop())
            for key, kinds in self.tables[table].items():
                there |= {(table, key, kind) for kind in kinds.split(" or ")}
                open_tables |= {name for name in self.tables if re.search(rf"\b{name}( or|$)", kinds)} - done
        return there - self.seen

    def check_object(self, value: dict[str, Any], table: str) -> None:
        """Fail unless an object is as a table says."""
        self._check(value, table, table)

    def _check(self, value: Any, kind: str, where: str) -> None:
        if value is None and kind.endswith("/null") and " " not in kind:
            return
        kind = kind if " " in kind else kind.removesuffix("/null")
        if kind in PLAIN:
            assert isinstance(value, PLAIN[kind]) and (kind == "boolean" or not isinstance(value, bool)), (where, value)
        elif kind.startswith("array of "):
            assert isinstance(value, list), (where, value)
            for one in value:
                self._check(one, kind.removeprefix("array of "), f"{where}[]")
        elif kind.startswith("map of "):
            assert isinstance(value, dict), (where, value)
            for key, one in value.items():
                self._check(one, kind.removeprefix("map of "), f"{where}.{key}")
        elif kind != "any":
            self._check_object(value, kind, where)

    def _check_object(self, value: Any, table: str, where: str) -> None:
        assert isinstance(value, dict), (where, value)
        keys = self.tables[table]
        for key, one in value.items():
            documented = key if key in keys else next((name for name in keys if _stands_for(name, key)), None)
            assert documented, f"{where}.{key} is not documented"
            self._check_any(one, table, documented, f"{where}.{key}")
        needed = [key for key, kinds in keys.items() if "<" not in key and "absent" not in kinds]
        assert not set(needed) - set(value), (where, set(needed) - set(value))
        self.seen |= {(table, key, "absent") for key in set(keys) - set(value)}

    def _check_any(self, value: Any, table: str, key: str, where: str) -> None:
        """Fail unless a value has one of the types of its key."""
        faults = []
        for kind in self.tables[table][key].split(" or "):
            try:
                self._check(value, kind, where)
            except (AssertionError, KeyError) as fault:
                faults.append(fault)
            else:
                self.seen.add((table, key, kind))
                return
        raise AssertionError([str(fault) for fault in faults])


def _stands_for(name: str, key: str) -> bool:
    return re.fullmatch(re.sub(r"<\w+>", ".+", name), key) is not None
