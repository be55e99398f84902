"""A run's identity: a hash of everything that changes its result, and of nothing else.

It covers every config key except those marked `identity=False` (tracking, device, saving, display, and paths, which the
data manifest replaces), the data manifest, and `numerics_version`. A key at its `neutral` value is excluded, so that
a new key renames no older run, and so is a key without effect (`used_if`, `ModelKind.identity_sections`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specvit.config.build import build_config, flatten
from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config, ViTConfig
from specvit.run_folder.folder import RunFolder
from specvit.utils.errors import FolderError
from specvit.utils.files import read_json, read_yaml
from specvit.utils.text import short_count

REPEATED = ("train.seed", "data.fold")
"""Keys by which runs of one setting differ."""


def identity_of(config: Config, manifest: dict[str, Any], extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the identity as a plain dict; `extra` holds the digest of weights to start from, for example."""
    named, kind = _identity_part(config), kind_of(config.model)
    if not kind.is_network:
        seed = {"train": {"seed": config.train.seed}} if kind.uses_seed(config) else {}
        named = {name: part for name, part in named.items() if name in kind.identity_sections} | seed
        named["data"] = {name: value for name, value in named["data"].items() if name not in kind.unused_data}
    parts = {"numerics_version": numerics_version(config), "config": named, "data": manifest}
    return {**parts, **({"extra": extra} if extra else {})}


def without_repeated(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in an identity as dotted keys, without seed and fold."""
    return {name: value for name, value in flatten(identity).items() if name not in REPEATED}


def num_rows(manifest: dict[str, Any]) -> int:
    """Return the number of rows of a split from its part of the manifest in an identity."""
    return int(manifest["shape"][0] if "shape" in manifest else manifest["rows"])


def numerics_version(config: Config) -> int:
    """Return the version of the maths and random streams that last changed this run's numbers.

    Whoever changes them adds a version for the runs that change; all others keep their ids. 3: the residual stream of
    `rope` and `none` became float32 in 16-bit precision, which `auto` may be. 2: every other run.
    """
    model = config.model
    was_narrow = isinstance(model, ViTConfig) and model.pos_encoding_type in ("rope", "none")
    return 3 if was_narrow and config.train.precision != "32" else 2


def run_id(identity: dict[str, Any]) -> str:
    """Return the 8 hexadecimal digits that end a run folder's name."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_name(config: Config) -> str:
    """Return a readable folder name, such as `c1d-p64-h64-log_g-builtin-5k-s42`."""
    model, data = config.model, config.data
    count = "all" if data.num_samples < 0 else short_count(data.num_samples)
    label = "-".join(data.param) if len(data.param) < 3 else f"{len(data.param)}labels"
    parts = [label, "endless" if data.endless else data.kind, count]
    parts += [f"f{data.fold}of{data.folds}"] if data.folds else []
    if kind_of(model).is_network or kind_of(model).uses_seed(config):
        parts.append(f"s{config.train.seed}")
    if isinstance(model, ViTConfig):
        return "-".join([model.proj_fn.lower(), f"p{model.patch_size}", f"h{model.hidden_size}", *parts])
    return "-".join([model.kind, *parts])


def without_effect(config: Config, typed: Iterable[str]) -> list[str]:
    """Return which `typed` keys and groups, such as train.epochs and opt, change no result of this configuration.

    Those of `tracking`, keys that are never part of the identity, and keys at their neutral value do not count.
    `train.log_every` and `train.save_every` do count for an estimator, which has no training loop.
    """
    loops = () if kind_of(config.model).is_network else ("train.log_every", "train.save_every")
    used, idle = flatten(identity_of(config, {})["config"]), []
    for dotted in dict.fromkeys(typed):
        value, rules = config, {}
        for name in dotted.split("."):
            field = getattr(value, "__dataclass_fields__", {}).get(name)
            if field is None or not (field.metadata.get("identity", True) or dotted in loops):
                break
            value, rules = getattr(value, name), field.metadata
        else:
            is_used = any(f"{key}.".startswith(f"{dotted}.") for key in used)
            is_fixed = dotted in ("tracking", "loss", "loss.name") or rules.get("neutral", rules) == value
            idle += [] if is_used or is_fixed else [dotted]
    return idle


def _identity_part(section: Any) -> dict[str, Any]:
    part = {}
    for field in dataclasses.fields(section):
        value, rules = getattr(section, field.name), field.metadata
        neutral, used_if = rules.get("neutral", dataclasses.MISSING), rules.get("used_if")
        if not rules.get("identity", True) or (neutral is not dataclasses.MISSING and value == neutral):
            continue
        if used_if is not None and not used_if(section):
            continue
        if dataclasses.is_dataclass(value):
            if inner := _identity_part(value):
                part[field.name] = inner
        else:
            part[field.name] = list(value) if isinstance(value, tuple) else value
    return part


def note_of_other_data(folder: RunFolder, identity: dict[str, Any]) -> str:
    """Return a note if another run has the same settings on changed data of the same shape, else ""."""
    name = folder.path.name.removesuffix(f"-{folder.run_id}")
    notes = []
    for path in sorted(folder.path.parent.glob(f"{name}-*/run.json")):
        if path.parent == folder.path:
            continue
        try:
            other = (read_json(path) or {}).get("identity", {})
        except OSError:  # another user's folder, for example: the note is optional
            continue
        if _without_data(other) == _without_data(identity) and (words := _differences(other["data"], identity["data"])):
            notes.append(f"{path.parent} has the same settings on other data ({words} differ)")
    return f"note: {notes[-1]}; this is a new run" if notes else ""


def _without_data(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in identity.items() if name != "data"}


def _differences(other: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return which digests of two manifests differ; "" for data of another kind or shape, which is intended."""
    if any(split not in other or other[split].get("shape") != part.get("shape") for split, part in ours.items()):
        return ""
    kinds = {"labels": "labels", "rows": "spectra"}
    differing = [
        f"{split} {kinds[kind]}"
        for split, part in ours.items()
        for kind in kinds
        if kind in part and part[kind] != other[split].get(kind)
    ]
    return ", ".join(differing)


def read_config(folder: Path) -> Config:
    """Return the configuration of a run folder; raises `FolderError`."""
    RunFolder(folder, "").about()  # raises for a folder of another format
    try:
        return build_config(read_yaml(folder / "config.yaml"))
    except OSError as problem:
        remedy = "name a folder in outputs/"
        raise FolderError("is not a run folder (no config.yaml)", where=str(folder), remedy=remedy) from problem
