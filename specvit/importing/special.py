"""Names of other files whose meaning takes other keys to tell, or that are no setting of a run.

Each handler returns the keys that a name sets, or a verdict with its reason; None if it stays open.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from specvit.config.foreign_keys import Entry
from specvit.importing.translation import ASKED, CHANGES, DROPPED, MODE, MONITOR, PATIENCE, UNKNOWN, Translation
from specvit.importing.values import is_number, problem_with, value_of
from specvit.utils.errors import ConfigError

Answer = dict[str, Any] | tuple[str, str] | None
WIDTH, HEADS = "model.hidden_size", "model.num_attention_heads"
PRECISION, WARMUP, EPOCHS = "train.precision", "opt.warmup_epochs", "train.epochs"
GROUPS = ("builtin", "synth", "bosz", "hdf5", "velocity")


def apply(found: Translation, entry: Entry, name: str, raw: Any) -> None:
    """Add what a special name means to a translation that has all ordinary ones; if it stays open, what to set."""
    answer = HANDLERS[entry.special](found, name, raw)
    if isinstance(answer, dict):
        for key, value in answer.items():
            found.take(name, raw, key, value)
    else:
        verdict, text = answer or (ASKED, entry.why)
        found.note(verdict, name, raw, text)


def head_dim(found: Translation, name: str, raw: Any) -> Answer:
    """Take width or heads from the other one."""
    width, heads = found.settings.get(WIDTH), found.settings.get(HEADS)
    if not is_number(raw) or raw <= 0 or not (width or heads):
        return None
    if not (width and heads):
        return {HEADS: width // raw or 1} if width else {WIDTH: int(raw * (heads or 0))}
    if width != raw * heads:
        what = f"is {raw}, but {found.said[WIDTH]} and {found.said[HEADS]} make {width / heads:g}"
        found.faults.append(ConfigError(what, where=name, remedy="correct or remove one of them"))
        return {}
    return DROPPED, f"it is {WIDTH} / {HEADS}"


def mlp_ratio(found: Translation, name: str, raw: Any) -> Answer:
    """Take the hidden layer from the width."""
    width = found.settings.get(WIDTH)
    return {"model.intermediate_size": round(width * raw)} if width and is_number(raw) else None


def overlap(found: Translation, name: str, raw: Any) -> Answer:
    """Take the stride from the patch; a float below 1 is a share of it."""
    patch = found.settings.get("model.patch_size")
    if not raw:
        return DROPPED, "patches are separate unless model.stride_size is less than model.patch_size"
    if not (patch and is_number(raw)):
        return None
    share = isinstance(raw, float) and raw < 1
    return {"model.stride_size": round(patch * (1 - raw)) if share else int(patch - raw)}


def _steps_per_epoch(found: Translation) -> float | None:
    rows, batch = (found.settings.get(key) for key in ("data.num_samples", "train.batch_size"))
    step = (batch or 0) * found.settings.get("train.accumulate", 1)
    return rows // step if rows and step and rows >= step else None


def warmup_steps(found: Translation, name: str, raw: Any) -> Answer:
    """Take steps as epochs."""
    steps = _steps_per_epoch(found)
    if not raw and WARMUP in found.settings:
        return DROPPED, f"{found.said[WARMUP]} says the warm-up"
    return {WARMUP: round(raw / (steps or 1), 4)} if is_number(raw) and (steps or raw == 0) else None


def warmup(found: Translation, name: str, raw: Any) -> Answer:
    """Take a share of the epochs, or none; a larger number may be of epochs or steps."""
    epochs, share = found.settings.get(EPOCHS, 0), raw or 0
    if not raw and WARMUP in found.settings:
        return DROPPED, f"{found.said[WARMUP]} says the warm-up"
    known = is_number(share) and share < 1 and (epochs or not share)
    return {WARMUP: round(share * epochs, 4)} if known else None


def max_steps(found: Translation, name: str, raw: Any) -> Answer:
    """Take steps as epochs, where these are not stated."""
    steps = _steps_per_epoch(found)
    if raw in (None, -1):
        return DROPPED, "a run is as long as train.epochs"
    return {EPOCHS: math.ceil(raw / steps)} if steps and is_number(raw) and EPOCHS not in found.settings else None


def length(found: Translation, name: str, raw: Any) -> Answer:
    """Drop the length of a schedule."""
    return DROPPED if raw == found.settings.get(EPOCHS) else CHANGES, "a schedule is as long as train.epochs"


def betas(found: Translation, name: str, raw: Any) -> Answer:
    """Take one of the two."""
    both = list(found.settings.get("opt.betas", (0.9, 0.999)))
    both[int(name.endswith("2"))] = raw
    found.take(name, raw, "opt.betas", both, wins=True)
    return {}


def half(found: Translation, name: str, raw: Any) -> Answer:
    """Take a flag of mixed precision."""
    if raw:
        return {PRECISION: "bf16-mixed" if name.endswith("bf16") else "16-mixed"}
    said = found.said.get(PRECISION)
    return (DROPPED, f"{said} says the precision") if said else {PRECISION: "32"}


def half_type(found: Translation, name: str, raw: Any) -> Answer:
    """Take the type of automatic mixed precision, which has an effect only where that is on."""
    if found.settings.get(PRECISION) in (None, "32"):
        return DROPPED, "it has no effect without mixed precision"
    if problem := problem_with(PRECISION, raw):
        return UNKNOWN, f"{PRECISION} {problem}"
    found.take(name, raw, PRECISION, value_of(PRECISION, raw), wins=True)
    return {}


def best(found: Translation, name: str, raw: Any) -> Answer:
    """Take what chooses the best checkpoint, unless early stopping says so: one monitor serves both here."""
    key = MODE if name.endswith("mode") else MONITOR
    if MONITOR not in found.settings or (key == MODE and found.said.get(MONITOR, "").startswith(name[:-4])):
        found.try_to_take(name, raw, key)
        return {}
    if not problem_with(key, raw) and value_of(key, raw) == found.settings.get(key):
        return DROPPED, f"as here: {found.said.get(key, key)} chooses the best epoch, too"
    if key == MONITOR:
        return CHANGES, f"{found.said[MONITOR]} chooses the best epoch, too"
    return DROPPED, f"it belongs to another monitor than {found.said[MONITOR]}"


def stopping(found: Translation, name: str, raw: Any) -> Answer:
    """Take a flag of early stopping, or its patience."""
    if raw in (None, False, 0):
        found.take(name, raw, PATIENCE, None, wins=True, why="never")
        return {}
    if is_number(raw):
        return {PATIENCE: raw}
    return (DROPPED, f"{found.said[PATIENCE]} says so") if PATIENCE in found.settings else None


def noise(found: Translation, name: str, raw: Any) -> Answer:
    """Take a flag that turns noise off."""
    if raw:
        return DROPPED, "noise.noise_level says how much"
    found.take(name, raw, "noise.noise_type", "none", wins=True)
    return {}


def source(found: Translation, name: str, raw: Any) -> Answer:
    """Take a file, a folder, or the name of spectra that specvit has."""
    text = str(raw).lower()
    file = re.search(r"\.(h5|hdf5|npz|fits)$", text)
    if file or re.search(r"^[/~.$]|/$", text):
        found.try_to_take(name, raw, "data.file_path" if file else "data.root")
        return {}
    if "bosz" in text:
        found.take(name, raw, "data", "bosz", why="train_200k_*, val_1k, test_10k")
        return {}
    if text in GROUPS:
        return {"data": text}
    paths = {"data.file_path", "data.root"} & set(found.settings)
    return (DROPPED, f"{max(paths)} names the spectra") if paths else None


def gpus(found: Translation, name: str, raw: Any) -> Answer:
    """Say how GPUs are chosen."""
    own = ",".join(map(str, raw)) if isinstance(raw, list) else raw
    return DROPPED, f"type CUDA_VISIBLE_DEVICES={own} before the command, and hydra/launcher=local"


def search(found: Translation, name: str, raw: Any) -> Answer:
    """Ask for the space of a search."""
    return None if raw else (DROPPED, "this file is one run")


def defaults(found: Translation, name: str, raw: Any) -> Answer:
    """Name the other files of a Hydra configuration."""
    if all(one == "_self_" for one in (raw if isinstance(raw, list) else [raw])):
        return DROPPED, "it names no other file"
    return UNKNOWN, "names other files, which are not read; import the composed configuration instead"


_ORDER: tuple[Callable[[Translation, str, Any], Answer], ...] = (
    *(head_dim, mlp_ratio, overlap, warmup_steps, warmup, max_steps, length, betas, half, half_type),
    *(best, stopping, noise, source, gpus, search, defaults),
)
HANDLERS = {handler.__name__: handler for handler in _ORDER}
"""By `Entry.special`, in the order in which they are applied."""
