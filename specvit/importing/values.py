"""A value of another file as the value of one of our keys: numbers that are text, 50k, other names of choices."""

import math
import re
import types
import typing
from functools import cache
from typing import Any

from specvit.config.fields import checked, spellings
from specvit.config.fields import key as declared
from specvit.config.foreign_keys import refuse_other_purpose, tables
from specvit.config.model_kinds import MODEL_KINDS
from specvit.config.suggestions import declarations
from specvit.metrics.metrics import CLASSIFICATION, REGRESSION
from specvit.utils.errors import ConfigError

CLASS_NAMES = {"vit": "vit", "transformer": "vit", "cnn": "cnn", "ridge": "ridge", "lgbm": "lightgbm"}
SPLITS = {"valid": "val", "validation": "val", "eval": "val", "dev": "val", "training": "train", "testing": "test"}
METRIC_NAMES = {"rsquared": "r2", "r2score": "r2", "acc": "accuracy", "meanabsoluteerror": "mae", "l1": "mae"}
FLAGS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
UNITS = {"": 1, "k": 1000, "m": 1_000_000}


@cache
def rules_of(key: str) -> tuple[Any, Any]:
    """Return the type of one of our keys, and what `config.fields.key` says of it; `Any` for a free mapping's."""
    if key == "model.kind":
        return str, declared(choices=tuple(MODEL_KINDS)).metadata
    return next(iter(declarations(key)), (Any, {}))


def value_of(key: str, raw: Any) -> Any:
    """Return a foreign value as one of `key`, in plain types; raises `ConfigError` without a place."""
    kind, rules = rules_of(key)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    listed = [one for one in kinds if typing.get_origin(one) is tuple]
    if listed and isinstance(raw, list | tuple):
        inner = typing.get_args(listed[0])[0]
        value: Any = [_scalar(key, one, (inner,), rules) for one in raw]
    elif key == "data.param" and isinstance(raw, str):
        value = [_scalar(key, one.strip(), (str,), rules) for one in raw.strip("[]").split(",")]
        value = value[0] if len(value) == 1 else value
    else:
        value = _scalar(key, raw, tuple(typing.get_args(listed[0])[:1]) if listed else kinds, rules)
    if "${" in str(value):
        if others := [name for name in re.findall(r"\$\{([^}]*)", str(value)) if not name.startswith("oc.env:")]:
            raise ConfigError(f"refers to {others[0]}, which the file lacks", remedy="write the value")
        if rules.get("choices") or ("str" not in str(kind) and kind is not Any):
            raise ConfigError("takes no variable", remedy="write the value")
        return value
    built = checked(value, kind, rules, "")
    return list(built) if isinstance(built, tuple) and isinstance(value, list) else value if listed else built


def _scalar(key: str, raw: Any, kinds: tuple[Any, ...], rules: Any) -> Any:
    """Return a single foreign value, not yet checked."""
    if rules.get("choices") or key in tables()["choices"]:
        return _choice(key, raw, rules)
    text = raw.strip() if isinstance(raw, str) else raw
    if key == "train.early_stopping.monitor":
        if own := validation_metric(str(raw)):
            return own
        raise ConfigError(f"{raw!r} is not a metric here, such as val_loss, val_r2, val_mae")
    if types.NoneType in kinds and (text is False or str(text).lower() in ("none", "null", "")):
        return None
    if key == "train.gradient_clip" and raw in (0, 0.0, "0"):
        return None
    if bool in kinds and isinstance(text, str | int):
        return FLAGS.get(str(text).lower(), raw)
    if {int, float} & set(kinds) and isinstance(text, str | float):
        return _number(text, whole=float not in kinds)
    return raw


def _number(text: str | float, *, whole: bool) -> Any:
    """Return 50k, 1_000, "2e-05" and 200.0 as numbers; anything else unchanged."""
    written = str(text).strip().lower()
    if re.match(r"[-+]?[1-9]\d{0,2}(,\d{3})+(?!\d)", written):  # 1,000; but 0,001 is not 1
        written = written.replace(",", "")
    found = re.fullmatch(r"([-+]?[\d._]*\d\.?(?:e[-+]?\d+)?)\s*([km]?)", written)
    try:
        number = float(found[1].replace("_", "")) * UNITS[found[2]] if found else math.inf
    except ValueError:
        return text
    return text if not math.isfinite(number) else int(number) if number == int(number) and whole else number


def plain(text: str) -> str:
    """Return the last part of a name in lower case, without signs: `torch.optim.AdamW` is adamw."""
    return re.sub(r"[^a-z0-9]", "", text.rpartition(".")[2].lower() if not re.fullmatch(r"[\d.]+", text) else text)


def _choice(key: str, raw: Any, rules: Any) -> Any:
    known = {plain(name): choice for name, choice in spellings(rules).items()}
    for choice, others in tables()["choices"].get(key, {}).items():
        known |= dict.fromkeys(others.split(), choice)
    text = plain("null" if raw is None else str(raw))
    refuse_other_purpose(key, raw, rules.get("choices", ()))
    if key == "model.kind" and text not in known:  # the name of a class, such as SpectralViT
        return next((kind for part, kind in CLASS_NAMES.items() if part in text), raw)
    return known.get(text, raw)


def metric_name(text: str) -> str | None:
    """Return our name of a metric in another's words, `val/R2`, `best_valid_mae`; None for one that is not ours."""
    parts = [part for part in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower()) if part]
    best, parts = ("best_" if parts[:1] == ["best"] else ""), parts[parts[:1] == ["best"] :]
    if len(parts) > 1 and SPLITS.get(parts[-1], parts[-1]) in ("train", "val", "test"):
        parts = [parts[-1], *parts[:-1]]
    if len(parts) < 2 or (split := SPLITS.get(parts[0], parts[0])) not in ("train", "val", "test"):
        return None
    rest = METRIC_NAMES.get("".join(parts[1:]), "_".join(parts[1:]))
    return f"{best}{split}_{rest}" if rest in {"loss", *REGRESSION, *CLASSIFICATION} else None


def validation_metric(text: str) -> str | None:
    """Return the metric of the validation rows in another's words, of whatever split; `loss` alone is theirs, too."""
    own = metric_name(text) or metric_name(f"val_{text}")
    return f"val_{own.removeprefix('best_').partition('_')[2]}" if own else None


def is_number(value: Any) -> typing.TypeGuard[int | float]:
    """Return True for a number, which a flag is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def problem_with(key: str, raw: Any) -> str:
    """Return why a value cannot be one of `key`, "" if it can."""
    try:
        value_of(key, raw)
    except ConfigError as problem:
        return f"{problem.what}{f'; {problem.remedy}' if problem.remedy else ''}"
    return ""
