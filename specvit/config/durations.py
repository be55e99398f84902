"""Durations of a run as they are configured: a number of epochs (`1`, `0.25`), or of steps (`500steps`)."""

import re
from fractions import Fraction
from typing import Any

from specvit.utils.errors import ConfigError

Duration = int | float | str
MOST = 10_000_000


def read_duration(raw: Any, where: str) -> Duration:
    """Return a configured duration, whole epochs as an int; raises `ConfigError` for another spelling."""
    if isinstance(raw, str) and re.fullmatch(r"[1-9]\d{0,11}steps", raw):
        return raw
    if isinstance(raw, int | float) and not isinstance(raw, bool) and 0 < raw <= MOST:
        return int(raw) if raw == int(raw) else raw
    other = re.fullmatch(r"\s*([\d.]+)[\s_]*(s|step|steps|e|ep|epoch|epochs|)\s*", str(raw).lower())
    steps = "steps" * bool(other and other[2].startswith("s"))
    remedy = f"write {other[1]}{steps}" if isinstance(raw, str) and other else ""
    what = f"expects epochs, a number above 0 and of at most {MOST:,}, or steps, such as 500steps, not {raw!r}"
    raise ConfigError(what, where=where, remedy=remedy)


def in_steps(duration: Duration, epoch_steps: int) -> Fraction:
    """Return a duration in steps, not rounded."""
    if isinstance(duration, str):
        return Fraction(duration.removesuffix("steps"))
    return Fraction(str(duration)) * epoch_steps


def check_rhythm(epochs: int, eval_every: Duration, log_every: Duration | None, epoch_steps: int | None = None) -> None:
    """Raise `ConfigError` where a run would end before its first validation, or log no line between two of them.

    Without `epoch_steps` epochs and steps are not compared.
    """
    pairs = [("eval_every", eval_every, "epochs", epochs)]
    pairs += [("log_every", log_every, "eval_every", eval_every)] if log_every is not None else []
    for name, duration, other, limit in pairs:
        comparable = epoch_steps or isinstance(duration, str) == isinstance(limit, str)
        if comparable and in_steps(duration, epoch_steps or 1) > in_steps(limit, epoch_steps or 1):
            unit = f" at {epoch_steps} steps an epoch" if isinstance(duration, str) != isinstance(limit, str) else ""
            remedy = f"set a shorter train.{name}" + ", or null for none" * (name == "log_every")
            raise ConfigError(
                f"is {duration}, longer than train.{other}={limit}{unit}", where=f"train.{name}", remedy=remedy
            )
