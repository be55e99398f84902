"""Rules of `model.reduction`, and how many of a spectrum's tokens it keeps."""

from collections.abc import Sequence
from typing import Any

from specvit.config.schema import ReductionConfig
from specvit.utils.errors import ConfigError
from specvit.utils.text import nearest

COUNTS = ("merge_ratio", "target_merge_tokens")
"""Two ways to say how many tokens are kept."""
NOTHING = ReductionConfig()


def check_reduction(reduction: ReductionConfig, labels: Sequence[str]) -> None:
    """Raise `ConfigError` for keys without effect, and for what leaves open how many tokens are kept."""
    if reduction.kind == "none":
        _refuse(
            reduction, [name for name in vars(NOTHING) if name != "kind"], "model.reduction.kind=none keeps all tokens"
        )
        return
    if reduction.select != "fisher":
        _refuse(reduction, ("select_label",), f"model.reduction.select={reduction.select} looks at no label")
    label = reduction.select_label
    if label is not None and label not in labels:
        what = f"is {label!r}, which is none of the labels of this run, {', '.join(labels)}"
        remedy = f"{nearest(label, labels)}choose one of data.param"
        raise ConfigError(what, where="model.reduction.select_label", remedy=remedy)
    if reduction.select == "list":
        _refuse(reduction, COUNTS, "model.reduction.select=list keeps the tokens of its wavelengths")
        _check_windows(reduction.keep_wavelengths)
        return
    _refuse(reduction, ("keep_wavelengths",), f"model.reduction.select={reduction.select} reads none")
    if (reduction.merge_ratio is None) == (reduction.target_merge_tokens is None):
        what = "is not set, nor model.reduction.target_merge_tokens, so how many tokens to keep is open"
        remedy = "set one of them, such as model.reduction.merge_ratio=0.375"
        if reduction.merge_ratio is not None:
            what, remedy = "says how many tokens to keep, and so does model.reduction.merge_ratio", "set one of the two"
        raise ConfigError(what, where=f"model.reduction.{COUNTS[reduction.merge_ratio is not None]}", remedy=remedy)


def _refuse(reduction: ReductionConfig, names: Sequence[str], why: str) -> None:
    """Raise `ConfigError` for the first of `names` that is set."""
    for name in names:
        if getattr(reduction, name) != getattr(NOTHING, name):
            remedy = "leave it out" + (", or set model.reduction.kind=static" if reduction.kind == "none" else "")
            raise ConfigError(f"has no effect: {why}", where=f"model.reduction.{name}", remedy=remedy)


def _check_windows(windows: tuple[tuple[float, float], ...] | None) -> None:
    where = "model.reduction.keep_wavelengths"
    if windows is None:
        what = "is not set, and model.reduction.select=list keeps the tokens that it names"
        raise ConfigError(what, where=where, remedy="give windows in vacuum Å, such as [[8180,8200],[8490,8510]]")
    for low, high in windows:
        if low > high:
            raise ConfigError(f"goes from {low:g} down to {high:g}", where=where, remedy="give the lower end first")


def check_count(reduction: ReductionConfig, tokens: int) -> None:
    """Raise `ConfigError` if more tokens are to be kept than a spectrum has."""
    if (wanted := reduction.target_merge_tokens or 0) > tokens:
        what = f"is {wanted}, but a spectrum has {tokens} tokens"
        raise ConfigError(what, where="model.reduction.target_merge_tokens", remedy=f"set {tokens} or less")


def kept_count(reduction: dict[str, Any] | None, tokens: int) -> int:
    """Return how many of a spectrum's `tokens` a plain section `model.reduction` keeps.

    Of a list of wavelengths the wavelengths decide, which are not known here: all tokens, the most that it can keep.
    """
    if reduction is None or reduction["kind"] == "none" or reduction["select"] == "list":
        return tokens
    return reduction["target_merge_tokens"] or max(1, round(reduction["merge_ratio"] * tokens))
