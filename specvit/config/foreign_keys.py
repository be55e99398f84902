"""What other configuration files call our keys, and which of theirs have none here: for hints and `specvit import`.

The names are in `foreign_keys.yaml`, which is read at the first question.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any

import yaml

from specvit.utils.errors import ConfigError

GENERAL = ("", "model", "train", "opt", "data")
"""Sections in which a name without a section means the same."""
OWN_SECTIONS = {"sched": "opt", "stop": "train.early_stopping", "log": "tracking"}


@dataclass(frozen=True)
class Entry:
    """What a name of another file is here: a `key`; or `special`; or nothing, and `why`.

    `same` are the values whose loss changes no result; None: no value's does.
    """

    key: str = ""
    special: str = ""
    why: str = ""
    same: list[Any] | None = None


@cache
def tables() -> dict[str, Any]:
    """Return the content of `foreign_keys.yaml`."""
    return yaml.safe_load(files("specvit.config").joinpath("foreign_keys.yaml").read_text(encoding="utf-8"))


@cache
def entries() -> dict[str, Entry]:
    """Return the entries by name; `view.*` is that of all names of a section, `optimizers**` of all that begin so."""
    rows = [(names, Entry(why=why)) for why, names in tables()["dropped"].items()]
    for why, fixed in tables()["fixed"].items():
        rows += [(names, Entry(why=why, same=same)) for names, same in fixed.items()]
    for handler, hints in tables()["special"].items():
        rows += [(names, Entry(special=handler, why=hint)) for hint, names in hints.items()]
    rows += [(names, Entry(key=key)) for key, names in tables()["keys"].items()]
    return {name: entry for names, entry in rows for name in names.split()}


@cache
def _sections() -> dict[str, str]:
    return {name: section for section, names in tables()["sections"].items() for name in names.split()}


def placed(dotted: str) -> tuple[str, str]:
    """Return the section of a name as specvit calls it, and the rest of the name in lower case with underscores.

    The rest has several parts where the name is within something unknown: `model.decoder.depth` is `decoder.depth`.
    """
    dotted = re.sub(r"\[\d+(:\w+)?\]", lambda found: f".{found[1][1:]}" if found[1] else "", dotted)
    parts = [
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower().replace("-", "_").replace(" ", "_")
        for part in dotted.replace("/", ".").split(".")
    ]
    section = ""
    for number, part in enumerate(parts[:-1]):
        if part in _sections():
            section = _sections()[part]
        elif part not in tables()["wrappers"].split():
            return section, ".".join(parts[number:])
    return section, parts[-1]


def entry_of(dotted: str) -> Entry | None:
    """Return what a name of another file is here; None for one that the tables do not know."""
    section, rest = placed(dotted)
    names = [f"{section}.{rest}".lstrip("."), *([rest] if section in GENERAL else [])]
    starts = [f"{start}**" for name in names for start in accumulate(name.split("."), "{}.{}".format)]
    whole = [f"{part}.*" for part in (section, _sections().get(rest))]
    return next((entries()[name] for name in (*names, *starts, *whole) if name in entries()), None)


def refuse_other_purpose(key: str, value: Any, choices: Iterable[str], where: str = "") -> None:
    """Raise `ConfigError` for a value of another file whose purpose is answered otherwise here."""
    text = re.sub(r"[^a-z0-9]", "", str(value).lower())
    for remedy, names in tables()["instead"].get(key, {}).items():
        if text in names.split():
            raise ConfigError(f"{value!r} is not one of {', '.join(choices)}", where=where, remedy=remedy)


def own_spelling(dotted: str) -> str:
    """Return a name in the sections of specvit: `training.early_stopping.mode` is `train.early_stopping.mode`."""
    section, rest = placed(dotted)
    return f"{OWN_SECTIONS.get(section, section)}.{rest}".lstrip(".")
