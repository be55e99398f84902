"""Names of other files whose meaning takes other keys to tell, or that are no setting of a run."""

import math
import re
from collections.abc import Callable
from typing import Any

from specvit.config.foreign_keys import Entry
from specvit.importing.translation import ASKED, CHANGES, DROPPED, MODE, MONITOR, PATIENCE, UNKNOWN, Translation
from specvit.importing.values import is_number, problem_with, value_of
from specvit.utils.errors import ConfigError

WIDTH, HEADS = "model.hidden_size", "model.num_attention_heads"
PRECISION, WARMUP = "train.precision", "opt.warmup_epochs"
GROUPS = ("builtin", "synth", "bosz", "hdf5", "velocity")


def apply(found: Translation, entry: Entry, name: str, raw: Any) -> None:
    """Add what a special name means to a translation that has all ordinary ones; if it stays open, what to set."""
    next(handler for names, handler in HANDLERS.items() if entry.special in names.split())
    if not HANDLERS[entry.special](found, name, raw):
        found.note(ASKED, name, raw, entry.why)


def _head_dim(found: Translation, name: str, raw: Any) -> bool:
    width, heads = found.settings.get(WIDTH), found.settings.get(HEADS)
    if not is_number(raw) or raw <= 0 or not (width or heads):
        return False
    if width and heads and width != raw * heads:
        what = f"is {raw}, but {found.said[WIDTH]} and {found.said[HEADS]} make {width / heads:g}"
        found.faults.append(ConfigError(what, where=name, remedy="correct or remove one of them"))
    elif width and heads:
        found.note(DROPPED, name, raw, f"it is {WIDTH} / {HEADS}")
    elif width:
        found.take(name, raw, HEADS, width // raw or 1)
    elif heads:
        found.take(name, raw, WIDTH, int(raw * heads))
    return True


def _mlp_ratio(found: Translation, name: str, raw: Any) -> bool:
    width = found.settings.get(WIDTH)
    if width and is_number(raw):
        found.take(name, raw, "model.intermediate_size", round(width * raw))
    return bool(width and is_number(raw))


def _overlap(found: Translation, name: str, raw: Any) -> bool:
    patch = found.settings.get("model.patch_size")
    if raw and patch and is_number(raw):
        share = isinstance(raw, float) and raw < 1
        found.take(name, raw, "model.stride_size", round(patch * (1 - raw)) if share else int(patch - raw))
    elif not raw:
        found.note(DROPPED, name, raw, "patches are separate unless model.stride_size is less than model.patch_size")
    return bool(not raw or (patch and is_number(raw)))


def _steps_per_epoch(found: Translation) -> float | None:
    rows, batch = (found.settings.get(key) for key in ("data.num_samples", "train.batch_size"))
    step = (batch or 0) * found.settings.get("train.accumulate", 1)
    return rows // step if rows and step and rows >= step else None


def _warmup_steps(found: Translation, name: str, raw: Any) -> bool:
    steps = _steps_per_epoch(found)
    if not raw and WARMUP in found.settings:
        found.note(DROPPED, name, raw, f"{found.said[WARMUP]} says the warm-up")
        return True
    if is_number(raw) and (steps or raw == 0):
        found.take(name, raw, WARMUP, round(raw / (steps or 1), 4))
        return True
    return False


def _warmup(found: Translation, name: str, raw: Any) -> bool:
    """Take a share of the epochs, or none; a larger number may be of epochs or steps."""
    epochs, share = found.settings.get("train.epochs", 0), raw or 0
    if not raw and WARMUP in found.settings:
        found.note(DROPPED, name, raw, f"{found.said[WARMUP]} says the warm-up")
        return True
    if not is_number(share) or share >= 1 or (share and not epochs):
        return False
    found.take(name, raw, WARMUP, round(share * epochs, 4))
    return True


def _max_steps(found: Translation, name: str, raw: Any) -> bool:
    steps = _steps_per_epoch(found)
    if raw in (None, -1):
        found.note(DROPPED, name, raw, "a run is as long as train.epochs")
    elif steps and is_number(raw) and "train.epochs" not in found.settings:
        found.take(name, raw, "train.epochs", math.ceil(raw / steps))
    else:
        return False
    return True


def _length(found: Translation, name: str, raw: Any) -> bool:
    verdict = DROPPED if raw == found.settings.get("train.epochs") else CHANGES
    found.note(verdict, name, raw, "a schedule is as long as train.epochs")
    return True


def _beta(found: Translation, name: str, raw: Any) -> bool:
    betas = list(found.settings.get("opt.betas", (0.9, 0.999)))
    betas[int(name.endswith("2"))] = raw
    found.take(name, raw, "opt.betas", betas, wins=True)
    return True


def _half(found: Translation, name: str, raw: Any) -> bool:
    if raw:
        found.take(name, raw, PRECISION, "bf16-mixed" if name.endswith("bf16") else "16-mixed")
    elif PRECISION in found.settings:
        found.note(DROPPED, name, raw, f"{found.said[PRECISION]} says the precision")
    else:
        found.take(name, raw, PRECISION, "32")
    return True


def _half_type(found: Translation, name: str, raw: Any) -> bool:
    """Take the type of automatic mixed precision, which has an effect only where that is on."""
    if found.settings.get(PRECISION) in (None, "32"):
        found.note(DROPPED, name, raw, "it has no effect without mixed precision")
    else:
        value = value_of(PRECISION, raw)
        found.take(name, raw, PRECISION, value, wins=True)
    return True


def _best(found: Translation, name: str, raw: Any) -> bool:
    """Take what chooses the best checkpoint, unless early stopping says so: one monitor serves both here."""
    key = MODE if name.endswith("mode") else MONITOR
    if MONITOR not in found.settings or (key == MODE and found.said.get(MONITOR, "").startswith(name[:-4])):
        found.try_to_take(name, raw, key)
    elif not problem_with(key, raw) and value_of(key, raw) == found.settings.get(key):
        found.note(DROPPED, name, raw, f"as here: {found.said.get(key, key)} chooses the best epoch, too")
    elif key == MONITOR:
        found.note(CHANGES, name, raw, f"{found.said[MONITOR]} chooses the best epoch, too")
    else:
        found.note(DROPPED, name, raw, f"it belongs to another monitor than {found.said[MONITOR]}")
    return True


def _stopping(found: Translation, name: str, raw: Any) -> bool:
    if raw in (None, False, 0):
        found.take(name, raw, PATIENCE, None, wins=True, why="never")
    elif is_number(raw):
        found.take(name, raw, PATIENCE, raw)
    elif PATIENCE in found.settings:
        found.note(DROPPED, name, raw, f"{found.said[PATIENCE]} says so")
    else:
        return False
    return True


def _noise(found: Translation, name: str, raw: Any) -> bool:
    if raw:
        found.note(DROPPED, name, raw, "noise.noise_level says how much")
    else:
        found.take(name, raw, "noise.noise_type", "none", wins=True)
    return True


def _source(found: Translation, name: str, raw: Any) -> bool:
    text = str(raw).lower()
    file = re.search(r"\.(h5|hdf5|npz|fits)$", text)
    if file or re.search(r"^[/~.$]|/$", text):
        found.try_to_take(name, raw, "data.file_path" if file else "data.root")
        return True
    group = "bosz" if "bosz" in text else next((one for one in GROUPS if one == text), None)
    if group:
        found.take(name, raw, "data", group, why="train_200k_*, val_1k, test_10k" if group == "bosz" else "")
    elif paths := {"data.file_path", "data.root"} & set(found.settings):
        found.note(DROPPED, name, raw, f"{max(paths)} names the spectra")
    else:
        return False
    return True


def _gpus(found: Translation, name: str, raw: Any) -> bool:
    gpus = ",".join(map(str, raw)) if isinstance(raw, list) else raw
    found.note(DROPPED, name, raw, f"type CUDA_VISIBLE_DEVICES={gpus} before the command, and hydra/launcher=local")
    return True


def _search(found: Translation, name: str, raw: Any) -> bool:
    if not raw:
        found.note(DROPPED, name, raw, "this file is one run")
    return not raw


def _defaults(found: Translation, name: str, raw: Any) -> bool:
    others = [one for one in (raw if isinstance(raw, list) else [raw]) if one != "_self_"]
    text = "names other files, which are not read; import the composed configuration instead"
    found.note(UNKNOWN if others else DROPPED, name, raw, text if others else "it names no other file")
    return True


Handler = Callable[[Translation, str, Any], bool]
HANDLERS: dict[str, Handler] = {
    "head_dim": _head_dim,
    "mlp_ratio": _mlp_ratio,
    "overlap": _overlap,
    "warmup_steps": _warmup_steps,
    "warmup": _warmup,
    "max_steps": _max_steps,
    "length": _length,
    "betas": _beta,
    "half": _half,
    "half_type": _half_type,
    "best": _best,
    "stopping": _stopping,
    "noise": _noise,
    "source": _source,
    "gpus": _gpus,
    "search": _search,
    "defaults": _defaults,
}
