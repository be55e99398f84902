"""A study's table: for each setting the mean over seeds, its spread and the number of runs; as text, CSV or markdown.

Read from run folders alone, without torch, mlflow or optuna.
"""

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specvit.run_folder.folder import DONE
from specvit.run_folder.identity import REPEATED
from specvit.run_folder.verdict import LEARNT
from specvit.study.results import NOT_LEARNT, is_r2, lower_is_better, outcome_of, rank, ranked_value, value_of
from specvit.study.schema import ESCAPED, Table
from specvit.study.store import StudyFolder, Trial
from specvit.utils.errors import ConfigError
from specvit.utils.text import csv_lines, markdown_table, short_value, text_table


@dataclass
class Row:
    """One setting of a study: its runs, each counted once even if several trials share it."""

    factors: dict[str, Any]
    values: list[float] = field(default_factory=list)
    """Of the runs that finished, seed by seed."""
    ranked: list[float] = field(default_factory=list)
    """The same with R² 0 for each run that has not learnt."""
    states: dict[str, int] = field(default_factory=dict)
    run_ids: set[str] = field(default_factory=set)

    @property
    def failed(self) -> int:
        """The number of runs that ended without having learnt."""
        return sum(self.states.get(state, 0) for state in NOT_LEARNT)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of `values`; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def facts(self) -> dict[str, Any]:
        """Return the row with its figures, as the JSON document of a table has it."""
        figures = {"mean": _mean(self.ranked), "mean_of_finished": _mean(self.values), "sd": self.spread}
        figures |= {"min": min(self.values, default=None), "max": max(self.values, default=None)}
        counts = {"finished": len(self.values), "runs": len(self.run_ids), "states": self.states}
        return {"factors": self.factors, **figures, **counts}


def table_rows(study: StudyFolder, metric: str | None = None, by: list[str] | None = None) -> tuple[str, list[Row]]:
    """Return the metric's name and the rows, in the study's order; `by` groups by some of the factors only.

    Raises `ConfigError` for a metric that no finished run has, or a factor that the study does not vary.
    """
    about = study.about()
    table = Table(**about["table"])
    asked = about.get("metrics") or {}
    metric = metric or next(iter(asked), table.metric)
    if metric == ESCAPED and table.of is None:
        raise ConfigError("needs a threshold", where=metric, remedy="write `of` and `above` into the study's table")
    trials = study.trials()
    factors = factor_names(map(factors_of, trials))
    _check_factors(by or [], factors)
    rows: dict[str, Row] = {}
    finished, names = 0, set()
    for trial in trials:
        own = {key: value for key, value in factors_of(trial).items() if (key in by if by else key not in REPEATED)}
        row = rows.setdefault(repr(own), Row({key: own.get(key) for key in by or factors if by or key not in REPEATED}))
        if trial.run_id in row.run_ids:  # a study may ask for the same run twice
            continue
        state, outcome = study.state(trial), outcome_of(trial.run)
        row.run_ids.add(trial.run_id)
        row.states[state] = row.states.get(state, 0) + 1
        value = value_of(outcome, metric, table)
        if (ranked := ranked_value(value, state, metric)) is not None:
            row.ranked.append(ranked)
        if state in DONE:
            finished += 1
            names |= {k for k, v in {**outcome.summary, **outcome.best_row}.items() if isinstance(v, int | float)}
            if value is not None and state in LEARNT:
                row.values.append(value)
    if finished and metric not in names | {"train_seconds", ESCAPED}:
        known = sorted(name for name in names if name.startswith(("test_", "val_", "best_")))
        raise ConfigError("is a metric that no finished run has", where=metric, remedy=f"there are {', '.join(known)}")
    ordered = list(rows.values())
    if asked:  # a search: the best first
        lower = lower_is_better(metric, asked)
        ordered.sort(key=lambda row: rank(metric, _mean(row.ranked), len(row.values), row.failed, lower=lower))
    return metric, ordered


def factors_of(trial: Trial) -> dict[str, Any]:
    """Return what the study varies in a trial; its cell, too."""
    return {**({"cell": trial.cell} if trial.cell else {}), **trial.factors}


def setting_text(factors: dict[str, Any]) -> str:
    """Return factors with their values in short: `model/tokenizer=sw, opt.lr=0.00606`."""
    return ", ".join(f"{key}={short_value(value)}" for key, value in factors.items())


def factor_names(factors_of_all: Iterable[dict[str, Any]]) -> list[str]:
    """Return all factors in the order of first appearance."""
    return list(dict.fromkeys(itertools.chain.from_iterable(factors_of_all)))


def render(metric: str, rows: list[Row], style: str) -> str:
    """Return the table as `text`, `csv` or `markdown`."""
    factors = list(rows[0].factors) if rows else []
    exact = style == "csv"
    failed = is_r2(metric) and any(row.failed for row in rows)
    head = [*factors, metric, *(["of the finished"] if failed else []), "sd", "min", "max", "runs", "other"]
    show = str if exact else short_value
    body = [
        [
            *("-" if row.factors[key] is None else show(row.factors[key]) for key in factors),
            *_figures(row, exact=exact, failed=failed),
        ]
        for row in rows
    ]
    if style == "csv":
        return csv_lines([head, *body]).rstrip("\n")
    if style == "markdown":
        return "\n".join(markdown_table([head, *body]))
    return "\n".join(text_table([head, *([" ".join(text.splitlines()) for text in cells] for cells in body)]))


def _figures(row: Row, *, exact: bool, failed: bool) -> list[str]:
    """Return the mean with R² 0 for failed runs, and if any row `failed` that of the finished; the rest is theirs."""
    show = repr if exact else (lambda value: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    values = row.values
    means = [show(mean) if (mean := _mean(some)) is not None else "" for some in (row.ranked, values)]
    spread = "" if row.spread is None else show(row.spread)
    others = [f"{count} {state}" for state, count in row.states.items() if state != "completed"]
    ends = [show(min(values)), show(max(values))] if values else ["", ""]
    return [*means[: 1 + failed], spread, *ends, f"{len(values)}/{len(row.run_ids)}", ", ".join(others)]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _check_factors(by: list[str], factors: list[str]) -> None:
    for name in by:
        if name not in factors:
            raise ConfigError("is not varied by this study", where=name, remedy=f"it varies {', '.join(factors)}")
