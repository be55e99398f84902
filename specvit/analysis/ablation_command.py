"""`specvit analysis ablation`: what each factor of a study does."""

import argparse
from pathlib import Path

from specvit.analysis.ablation import combinations, differences, tallies
from specvit.analysis.ablation_report import Ablation, draw_ablation, write_ablation
from specvit.analysis.cases import Case, cases_in, metric_of
from specvit.config.spelling import nearest
from specvit.errors import ConfigError
from specvit.sweep.definition import ESCAPED
from specvit.tracking.figures import attempt

SPLITS, ENDS = ("test_", "val_", "train_"), ("_low", "_high", "_rows")
"""What the names of metrics begin with; those of ends of intervals, and counts, are not offered."""


def ablation(options: argparse.Namespace) -> int:
    """Count, score, compare, write and draw."""
    cases, notes = cases_in(options.folder)
    metric = options.metric or metric_of(options.folder)
    _check_metric(cases, metric)
    out = options.out or (options.folder[0] / "ablation" if len(options.folder) == 1 else Path("ablation"))
    found = Ablation(
        metric,
        ", ".join(folder.name for folder in options.folder),
        tallies(cases),
        combinations(cases, metric),
        differences(cases, metric),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_ablation(found, out)
    for name in ("ablation.png", "ablation.pdf"):
        attempt(out / name, lambda path: draw_ablation(found, path), print)
    whole = found.tallies[0]
    counts = f"{whole.total} runs: {whole.finished} finished, {whole.failed} failed"
    print("\n".join([*notes, counts, *found.sentences]))
    print(f"written: {out}", flush=True)
    return 0


def _check_metric(cases: list[Case], metric: str) -> None:
    records = [record for case in cases for record in (case.outcome.summary, case.outcome.best_row)]
    known = {name for record in records for name, value in record.items() if isinstance(value, int | float)}
    if known and metric not in known | {"train_seconds", ESCAPED}:
        named = sorted(name for name in known if name.startswith(SPLITS) and not name.endswith(ENDS))
        remedy = f"{nearest(metric, named)}there are {', '.join(named)}"
        raise ConfigError("is a metric that no run has", where=f"--metric {metric}", remedy=remedy)
