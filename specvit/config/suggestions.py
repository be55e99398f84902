"""Known keys, near misses, and the names of other configuration files."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from specvit.config.fields import hints_of, spellings
from specvit.config.foreign_keys import entry_of, own_spelling
from specvit.config.model_kinds import MODEL_KINDS
from specvit.config.schema import Config, ModelConfig

COMMON_NAMES = ("experiment", "kind", "mode", "name", "type")
"""Keys of several sections, whose equal name in another section means nothing."""
OLDER_OPTIONS = {
    "loss": {"l2": "mse", "mae": "l1"},
    "model/tokenizer": {"C1D": "c1d", "CNN": "c1d", "SW": "sw"},
    "hydra/launcher": {
        **{"submitit_slurm": "slurm", "submitit_local": "local", "joblib": "local", "ray": "local", "rq": "local"},
        "basic": "inprocess",
    },
}


@cache
def known_keys(cls: type = Config, prefix: str = "") -> dict[str, bool]:
    """Return every dotted key of the schema; the value says whether the key is a section."""
    keys: dict[str, bool] = {}
    for name, kind in typing.get_type_hints(cls).items():
        keys[prefix + name] = dataclasses.is_dataclass(kind)
        sections = [model.config for model in MODEL_KINDS.values()] if kind is ModelConfig else [kind]
        for section in filter(dataclasses.is_dataclass, sections):
            keys.update(known_keys(section, f"{prefix}{name}."))
    return keys


@cache
def declarations(dotted: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """Return the type of a key and what `fields.key` says of it: of `model`, once for each kind that has the key."""
    *sections, leaf = dotted.split(".")
    classes: list[type] = [Config]
    for name in sections:
        kinds = [hints_of(cls).get(name) for cls in classes]
        models = [model.config for model in MODEL_KINDS.values() if ModelConfig in kinds]
        classes = [cls for cls in (*kinds, *models) if isinstance(cls, type) and dataclasses.is_dataclass(cls)]
    classes.sort(key=lambda cls: cls is ModelConfig)  # which says less than the kinds themselves
    entries = [(cls, entry) for cls in classes for entry in dataclasses.fields(cls) if entry.name == leaf]
    return [(hints_of(cls)[leaf], entry.metadata) for cls, entry in entries]


@cache
def choices_by_name(dotted: str) -> dict[str, str]:
    """Return the choices of a key by their names and aliases in lower case; none where it is not of that kind."""
    return {name: one for _, rules in declarations(dotted) if rules for name, one in spellings(rules).items()}


def is_known(dotted: str) -> bool:
    """Return True for a key of the schema or of its free-form mapping, `tracking.tags`."""
    return dotted in known_keys() or dotted.startswith("tracking.tags.")


def suggest(dotted: str, groups: Iterable[str] = ()) -> str:
    """Return the advice for an unknown key: its present name, or a known key or group that is truly close."""
    section, _, rest = dotted.partition(".")
    entry = entry_of(dotted)
    if entry and entry.why:
        return entry.why if entry.special else f"leave it out: {entry.why}"
    if is_known(right := entry.key if entry else own_spelling(dotted)):
        return f"it is called {right} here"
    sections = difflib.get_close_matches(section, known_keys(), n=1, cutoff=0.75)
    if sections and is_known(right := f"{sections[0]}.{rest}"):
        return f"did you mean {right}?"
    parent, _, leaf = dotted.rpartition(".")
    same = [known for known in known_keys() if leaf == known.rpartition(".")[2] and leaf not in COMMON_NAMES]
    same = [known for known in same if known.startswith(f"{section}.")] or same
    if len(same) == 1:
        return f"did you mean {same[0]}?"
    beside = {known.rpartition(".")[2]: known for known in known_keys() if known.rpartition(".")[0] == parent}
    if not parent:
        beside |= {group: group for group in groups}
    near = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.75)
    return f"did you mean {beside[near[0]]}?" if near else "`specvit train --cfg job` lists every key"
