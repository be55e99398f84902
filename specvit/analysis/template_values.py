"""What a study was and measured as plain values, for templates that write sentences in a language of their own."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from specvit import __version__
from specvit.analysis.ablation_report import Ablation
from specvit.analysis.records import Run, Runs, rows_of
from specvit.analysis.scaling import Scaling
from specvit.config.schema import effective_level
from specvit.run_folder.folder import RunFolder
from specvit.study.plan import relative
from specvit.study.store import StudyFolder, command_of
from specvit.study.table import setting_text
from specvit.study.trial_queue import GROUPS
from specvit.utils.provenance import commit
from specvit.utils.quantities import unit_of
from specvit.utils.text import hide_secrets, short_count, short_value

Values = dict[str, Any]
CURVES = {"val_r2": "R²", "val_accuracy": "accuracy"}


def template_values(study: StudyFolder, runs: Runs, ablation: Ablation, scaling: Scaling | None) -> Values:
    """Return the facts of a study, its scores and its records by name; what is not known is empty."""
    about, first = study.about(), runs.config.iloc[0]
    definition = about.get("definition") or {}
    label = scaling.label if scaling else ", ".join(dict.fromkeys(config.data.param[0] for config in runs.config))
    levels = dict.fromkeys(f"{effective_level(config.noise):g}" for config in runs.config)
    counts = Counter(runs.group)
    tests = dict.fromkeys(outcome.summary.get("test_rows") for outcome in runs.outcome if outcome.summary)
    records = [_record(run) for run in rows_of(runs)]
    return {
        "asked": about.get("question") or "",
        "hypotheses": definition.get("hypotheses") or {},
        "started": about.get("started") or "",
        "groups": {"total": len(runs), **{name.replace(" ", "_"): counts[name] for name in GROUPS}},
        **{
            "makes": first.data.makes,
            "label": label,
            "unit": unit_of(label),
            "test_rows": [rows for rows in tests if rows],
        },
        "noise_level": ", ".join(levels),
        "folds": first.data.folds,
        "seeds": sorted(set(runs.seed)),
        "varied": _varied(runs),
        "fixed": {**(definition.get("overrides") or {}), **(about.get("typed") or {})},
        "pairs": _pairs(scaling) if scaling else [],
        "points": _points(scaling) if scaling else [],
        "metric": ablation.metric,
        "scores": [
            {"name": one.label, "score": one.score, "sd": one.sd, "finished": one.finished, "total": len(one.records)}
            for one in ablation.combinations
        ],
        "scores_at": _scores_at(runs),
        "records": records,
        "devices": dict(Counter(record["device"] for record in records if record["device"])),
        **{"command": command_of(study), "output": relative(study.path), "link": _link(first)},
        **{"specvit": __version__, "commit": commit() or ""},
    }


def _varied(runs: Runs) -> dict[str, list[str]]:
    """Return the values of each factor, in the order of first appearance."""
    values: dict[str, dict[str, None]] = {}
    for factors in runs.factors:
        for key, value in factors.items():
            values.setdefault(key, {})[short_value(value)] = None
    return {key: list(seen) for key, seen in values.items()}


def _pairs(scaling: Scaling) -> list[Values]:
    """Return every two lines with where one overtakes the other, to two digits, and the slopes of both."""
    return [
        {
            **{"ahead": pair.ahead.series.name, "behind": pair.behind.series.name, "sizes": pair.sizes},
            **{end: float(f"{getattr(pair.crossover, end):.2g}") for end in ("rows", "low", "high")},
            "slopes": asdict(pair.slopes),
        }
        for pair in scaling.pairs
    ]


def _points(scaling: Scaling) -> list[Values]:
    return [
        {
            **{"name": line.series.name, "size": short_count(point.rows), "seeds": len(point.runs)},
            **{name: asdict(point.scores[name]) for name in ("r2", "mae")},
        }
        for line in scaling.lines
        for point in line.points
    ]


def _scores_at(runs: Runs) -> Callable[..., list[Values]]:
    """Return a function of epochs: for each network their validation score, or that of the nearest epoch with one."""
    name = next((name for name in CURVES if any(name in o.rows[0] for o in runs.outcome if o.rows)), "")

    def scores_at(*epochs: int) -> list[Values]:
        found = []
        for run in rows_of(runs[runs.trains_by_steps]):
            rows = [row for row in run.outcome.rows if isinstance(row.get(name), float)]
            nearest = [min(rows, key=functools.partial(_distance, epoch)) for epoch in epochs if rows]
            about = {"name": setting_text(run.factors), "seed": run.seed, "best": run.outcome.summary.get("best_epoch")}
            cells = [{"epoch": row["epoch"], "value": row[name]} for row in nearest]
            found.append({**about, "score": CURVES[name], "cells": cells})
        return found

    return scores_at


def _distance(epoch: int, row: Values) -> int:
    return abs(row["epoch"] - epoch)


def _record(run: Run) -> Values:
    """Return where a run is and what made it."""
    folder = RunFolder(run.folder, run.run_id)
    made_by = [attempt["made_by"] for attempt in folder.attempts() if "made_by" in attempt]
    device = (made_by[-1] if made_by else folder.status()).get("device", "")
    about = {"id": run.run_id, "setting": setting_text(run.factors), "seed": run.seed, "state": run.state or "waiting"}
    return {**about, "device": device, "folder": relative(run.folder)}


def _link(config: Any) -> str:
    return hide_secrets(config.tracking.uri or "")
