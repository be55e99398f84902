"""From the flat values of another file to our settings."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from specvit.config.foreign_keys import Entry, entry_of, own_spelling
from specvit.config.model_kinds import kinds_with
from specvit.config.suggestions import is_known, known_keys, suggest
from specvit.importing.special import HANDLERS, apply
from specvit.importing.translation import ASKED, CHANGES, DROPPED, MODE, MONITOR, UNKNOWN, Translation
from specvit.importing.values import is_number, problem_with
from specvit.metrics.metrics import better_direction

FILES = ("data.file_path", "data.val_path", "data.test_path")
ARCHITECTURE = {
    "p": "model.patch_size",
    "s": "model.stride_size",
    "h": "model.hidden_size",
    "l": "model.num_hidden_layers",
    "a": "model.num_attention_heads",
    "f": "model.intermediate_size",
}
"""Of p16_h256_L6_a8."""
TIMM = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the models that timm and the transformers library call so."""


def translate(values: Mapping[str, Any]) -> Translation:
    """Return what the flat values of a file are here; contradictions are in its `faults`."""
    found = Translation()
    special: list[tuple[Entry, str]] = []
    for name, raw in values.items():
        entry = find_entry(name)
        key = entry.key if entry else ""
        if entry and entry.special:
            special.append((entry, name))
        elif raw in ({}, "") or (raw in (None, []) and not (key and not problem_with(key, raw))):
            found.note(DROPPED, name, raw, "it is not set")
        elif entry is None or isinstance(raw, dict):
            found.note(UNKNOWN, name, raw, suggestion(name))
        elif key:
            take_key(found, name, raw, key)
        else:
            _drop(found, name, raw, entry)
    order = {who: number for number, who in enumerate(HANDLERS)}
    for entry, name in sorted(special, key=lambda one: (not values[one[1]], order[one[0].special])):
        apply(found, entry, name, values[name])  # what is false yields to what is true
    _complete(found)
    return found


def find_entry(name: str) -> Entry | None:
    """Return what a name is here: a key of ours as it is or in another section, or what the tables say."""
    if _is_key(name):
        return Entry(key=name)
    entry, own = entry_of(name), own_spelling(name)
    return Entry(key=own) if entry is None and _is_key(own) else entry


def _is_key(name: str) -> bool:
    return is_known(name) and not known_keys().get(name, False)


def suggestion(name: str) -> str:
    """Return what a name that nobody knows may mean."""
    if known_keys().get(own_spelling(name)):
        return "it is a section here, not a value"
    hint = suggest(name)
    if "--cfg job" not in hint:
        return hint
    leaf = name.rpartition(".")[2]
    if (entry := entry_of(leaf)) and entry.key:
        return f"did you mean {entry.key}?"
    leaves = {key.rpartition(".")[2]: key for key, is_section in known_keys().items() if not is_section}
    near = difflib.get_close_matches(leaf.lower(), leaves, n=1, cutoff=0.7)
    return f"did you mean {leaves[near[0]]}?" if near else "no key here has a name like it"


def take_key(found: Translation, name: str, raw: Any, key: str) -> None:
    """Take a name over as `key`, in the forms that only this key has."""
    if key == "model.kind" and isinstance(raw, str) and (parts := architecture(raw)):
        for part, value in parts.items():
            found.take(name, raw, part, value)
    elif key == "data.root" and str(raw).lower().endswith((".h5", ".hdf5")):
        found.try_to_take(name, raw, "data.file_path")
    elif key in FILES and raw is not None:
        found.try_to_take(name, _shards(name, raw), key)
    elif key == "tracking.name" and raw is not None:
        found.take(name, raw, key, re.sub(r"[^A-Za-z0-9._=+-]+", "-", str(raw)).lstrip("._=+-") or "imported")
    elif key == "noise.noise_level" and not name.endswith("noise_level"):
        found.try_to_take(name, raw, key, "times the error of each pixel")
    elif key == "train.batch_size" and "per_device" in name:
        found.try_to_take(name, raw, key, "of one device: multiply it if there were several")
    else:
        found.try_to_take(name, raw, key)


def architecture(text: str) -> dict[str, Any]:
    """Return the keys in p16_h256_L6_a8 or vit_base_patch16_224; none for other names."""
    text = text.strip().lower()
    parts = [re.fullmatch(r"([pshlaf])(\d+)", word) for word in re.split("[_-]", text)]
    if all(parts):
        return {ARCHITECTURE[part[1]]: int(part[2]) for part in parts if part}
    found = re.fullmatch(r"(?:google/)?(?:vit|deit)[_-](tiny|small|base|large)[_-]patch(\d+)(?:[_-].*)?", text)
    if not found:
        return {}
    width, layers, heads = TIMM[found[1]]
    sizes = {"model.hidden_size": width, "model.num_hidden_layers": layers, "model.num_attention_heads": heads}
    return {"model.kind": "vit", "model.patch_size": int(found[2]), **sizes, "model.intermediate_size": 4 * width}


def _shards(name: str, raw: Any) -> Any:
    """Return files of spectra: folders of a set, as train_shards names them, hold dataset.h5."""
    if isinstance(raw, list):
        return [_shards(name, one) for one in raw]
    text = str(raw)
    is_folder = text.endswith("/") or name.rpartition(".")[2].endswith("shards")
    return f"{text.rstrip('/')}/dataset.h5" if is_folder and not text.endswith((".h5", ".hdf5")) else text


def _drop(found: Translation, name: str, raw: Any, entry: Entry) -> None:
    """Note that a name has no counterpart, and whether that changes results."""
    value = raw.lower() if isinstance(raw, str) else raw
    if entry.same is None or raw is None:
        found.note(DROPPED, name, raw, entry.why)
    elif value in entry.same:
        found.note(DROPPED, name, raw, f"as here: {entry.why}")
    else:
        found.note(CHANGES, name, raw, entry.why)


def _complete(found: Translation) -> None:
    """Add what the file's own keys imply, and drop keys of other kinds of model."""
    settings = found.settings
    width, monitor, kind = (settings.get(key) for key in ("model.hidden_size", MONITOR, "model.kind"))
    if MODE in settings and not monitor:
        found.lines[ASKED] += [(own, f"of which metric? set {MONITOR}") for own in found.give_back(MODE)]
    if is_number(width) and "model.intermediate_size" not in settings:
        several = "; type it with each other width" * ("model.hidden_size" in found.several)
        found.imply("model.intermediate_size", 4 * width, f"4 times the width, as is usual{several}")
    if monitor and MODE not in settings:
        lower = better_direction(monitor.removeprefix("val_")) == "lower"
        found.imply(MODE, "min" if lower else "max", f"the better side of {monitor}")
    for key, own, kinds in (("momentum", 0.9, ("SGD", "RMSprop")), ("weight_decay", 0.01, ("SGD", "RMSprop", "Adam"))):
        if settings.get("opt.type") in kinds and f"opt.{key}" not in settings:
            found.imply(f"opt.{key}", 0.0, f"as torch has it; specvit's own is {own}")
    for key in [key for key in settings if (owners := kinds_with(key)) and (kind or "vit") not in owners]:
        found.lines[CHANGES] += [(own, f"model={kind or 'vit'} has no {key}") for own in found.give_back(key)]
