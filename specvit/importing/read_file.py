"""Configuration files of other programs as flat dicts: dotted names, variables in our spelling, or one sentence."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from specvit.config.fields import mapping
from specvit.study.yaml_schema import parsed, valued
from specvit.utils.errors import DataError

MOST_BYTES = 2_000_000
"""Of a configuration; larger files are data."""
SECRET = re.compile(r"passw|secret|api_?key|access_?key|credential|(^|_)token$", re.IGNORECASE)
OWN = re.compile(r"\$\{(\.*[\w.]+)\}")
"""${a.b}, and relative to its section, ${.b}."""
VARIABLE = re.compile(r"\$(?:\{((?:oc\.env:|env:)\w+|[A-Z_][A-Z0-9_]*)(?::-|,)?((?<=[-,])[^}]*)?\}|([A-Z_]{2,})\b)")
"""${NAME}, ${env:NAME}, ${NAME:-default}, $NAME."""


def read_file(path: Path) -> dict[str, Any]:
    """Return the content of a YAML or JSON file with its keys; raises `DataError` naming the file."""
    fault = partial(DataError, where=str(path))
    if path.is_dir():
        raise fault("is a folder", remedy="name a file in it")
    if path.stat().st_size > MOST_BYTES:
        what = f"has {path.stat().st_size / 1e6:,.0f} MB, and a configuration has a few kB"
        raise fault(what, remedy="name a YAML or JSON file; `specvit data convert` takes spectra")
    try:
        plain = valued(parsed(path.read_bytes().decode("utf-8-sig")))
    except UnicodeDecodeError as problem:
        raise fault("is not UTF-8 text", remedy="name a YAML or JSON file, saved as UTF-8") from problem
    except yaml.YAMLError as problem:
        if "#x0000" in str(problem):
            raise fault("is not text", remedy="name a YAML or JSON file") from problem
        tab = " (a tab, where YAML wants spaces)" * ("'\\t'" in str(problem))
        what = f"is not valid YAML{tab}: {' '.join(str(problem).split())[:200]}"
        raise fault(what, remedy="correct the line that it names") from problem
    if not plain:
        raise fault("is empty", remedy="name a file with keys and values")
    if not isinstance(plain, dict):
        kind = "a list" if isinstance(plain, list) else "a single value"
        raise fault(f"is {kind}, not keys with values", remedy="name a configuration")
    return unwrapped(mapping(plain, str(path)))


def unwrapped(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a W&B run's config.yaml, where each is within `value`."""
    wrapped = {name: inner for name, inner in plain.items() if isinstance(inner, dict) and "value" in inner}
    if not wrapped or not all(set(inner) <= {"value", "desc"} for inner in wrapped.values()):
        return plain
    return {name: inner["value"] if name in wrapped else inner for name, inner in plain.items()}


def flat(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Return all values by dotted names; those of a list of sections are numbered.

    `plots[0].type`, and with their class, if they have one, `callbacks[0:EarlyStopping].patience`.
    """
    if isinstance(plain, dict) and plain:
        pairs = [(f"{prefix}.{name}" if prefix else str(name), value) for name, value in plain.items()]
    elif isinstance(plain, list) and prefix != "defaults" and any(isinstance(value, dict) for value in plain):
        pairs = [(f"{prefix}[{number}{_class_of(value)}]", value) for number, value in enumerate(plain)]
    else:
        return {prefix: plain}
    return {name: value for start, inner in pairs for name, value in flat(inner, start).items()}


def _class_of(value: Any) -> str:
    path = (value.get("class_path") or value.get("_target_") or "") if isinstance(value, dict) else ""
    return f":{str(path).rpartition('.')[2]}" * bool(path)


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Return flat values in which `${a.b}` is that value of the same file, and `${NAME}` is `${oc.env:NAME}`."""

    def value_of(value: Any, name: str, depth: int = 0) -> Any:
        def referred(found: re.Match[str]) -> Any:
            target = _target(found[1], name)
            return value_of(values[target], target, depth + 1) if target in values and depth < 9 else found[0]

        if isinstance(value, list):
            return [value_of(one, name, depth) for one in value]
        if not isinstance(value, str) or "$" not in value:
            return value
        whole = OWN.fullmatch(value)
        value = referred(whole) if whole else OWN.sub(lambda found: str(referred(found)), value)
        return VARIABLE.sub(_as_hydra_writes_it, value) if isinstance(value, str) else value

    return {name: value_of(value, name) for name, value in values.items()}


def _as_hydra_writes_it(found: re.Match[str]) -> str:
    default = f",{found[2]}" if found[2] else ""
    return f"${{oc.env:{(found[1] or found[3]).rpartition(':')[2]}{default}}}"


def _target(reference: str, name: str) -> str:
    """Return the dotted name that `.a`, `..a` or `a.b` refers to in the value of `name`."""
    dots = len(reference) - len(reference.lstrip("."))
    section = name.split(".")[:-dots] if dots else []
    return ".".join([*section, reference.lstrip(".")])


def shown(name: str, value: Any) -> str:
    """Return a value on one line for people, without what must not be shown."""
    if isinstance(value, str) and SECRET.search(name.rpartition(".")[2]):
        return "***"
    text = json.dumps(value) if value is None or isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
