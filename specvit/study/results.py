"""The results of a run, read from its folder alone: scores, curves, the step of its escape. Imports nothing heavy."""

import math
from dataclasses import dataclass
from typing import Any

from specvit.metrics.metrics import REGRESSION, better_direction, metric_of
from specvit.run_folder.folder import DONE, RunFolder
from specvit.study.schema import ESCAPED, Table
from specvit.utils.files import read_json, read_json_lines

NOT_LEARNT = ("plateau", "diverged", "oom", "crashed")
"""States of runs that have not learnt: in a comparison their R² is 0. Runs that were stopped do not count."""


@dataclass(frozen=True)
class Outcome:
    """A run's record: the summary of its test, its epochs in order, and their wall-clock figures."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    timing: list[dict[str, Any]]

    @property
    def best_row(self) -> dict[str, Any]:
        """The epoch whose weights are tested; the last one while there is no summary."""
        best = self.summary.get("best_epoch")
        return next((row for row in self.rows if row.get("epoch") == best), self.rows[-1] if self.rows else {})

    @property
    def train_seconds(self) -> float:
        """Wall-clock seconds of training and validation."""
        return sum((row.get("train_seconds") or 0.0) + (row.get("val_seconds") or 0.0) for row in self.timing)


def outcome_of(run: RunFolder) -> Outcome:
    """Return the current content of a run folder; empty where there is none."""
    summary = read_json(run.file("summary.json"), {})
    return Outcome(summary, read_json_lines(run.file("metrics.jsonl")), read_json_lines(run.file("timing.jsonl")))


def value_of(outcome: Outcome, metric: str, table: Table | None = None) -> float | None:
    """Return a metric of a run: of its summary, of its best epoch, `train_seconds`, or `escape_step` by `table`."""
    if metric == "train_seconds":
        return outcome.train_seconds or None
    if metric == ESCAPED:
        return escape_step(outcome, table) if table else None
    value = outcome.summary.get(metric, outcome.best_row.get(metric))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def is_r2(metric: str) -> bool:
    """Return True if a metric is an R² (of any split or label), which is 0 for a model that has learnt nothing."""
    return metric_of(_of_any_split(metric)) is REGRESSION["r2"]


def ranked_value(value: float | None, state: str, metric: str) -> float | None:
    """Return the value of a run in a comparison of settings: `value` if it finished, R² 0 if it has not learnt.

    None for a run that has not ended or was stopped, and for one that has not learnt under any other metric, which has
    no value that stands for failure.
    """
    if state in NOT_LEARNT:
        return 0.0 if is_r2(metric) else None
    return value if state in DONE else None


def rank(metric: str, mean: float | None, finished: int, failed: int, *, lower: bool) -> tuple[float, float]:
    """Return the sort key of a setting, the best first.

    By the mean where failed runs are in it (R²), after all others if none finished: 0 is more than a negative R². Else
    by the share of failed runs, then by the mean of the others.
    """
    if mean is None:
        return 2.0, 0.0
    share = failed / (finished + failed)
    return float(finished == 0) if is_r2(metric) else share, mean if lower else -mean


def lower_is_better(metric: str, asked: dict[str, str] | None = None) -> bool:
    """Return True if a lower metric is better; `asked` has the directions of a search."""
    if direction := (asked or {}).get(metric):
        return direction == "minimize"
    return metric in (ESCAPED, "train_seconds") or better_direction(_of_any_split(metric)) == "lower"


def has_direction(metric: str, asked: dict[str, str] | None = None) -> bool:
    """Return True if a higher or lower metric is better; a bias or a slope has a best value in between.

    `asked` has the directions of a search.
    """
    return metric in (asked or {}) or lower_is_better(metric) or better_direction(_of_any_split(metric)) is not None


def _of_any_split(metric: str) -> str:
    """Return a metric without its split: `test_r2`, `best_val_r2` -> `r2`."""
    return metric.removeprefix("best_").partition("_")[2]


def escape_step(outcome: Outcome, table: Table) -> float | None:
    """Return the first step at which `table.of` exceeded `table.above`; None if it has not."""
    for row in outcome.rows:
        value = row.get(table.of or "")
        if value is not None and table.above is not None and value > table.above:
            return float(row["step"])
    return None
