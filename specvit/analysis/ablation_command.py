"""`specvit analysis ablation`: what each factor of a study does."""

import argparse
from pathlib import Path

from specvit.analysis.ablation_report import ablation_of, draw_ablation, write_ablation
from specvit.analysis.fit_verdict import bounds_of
from specvit.analysis.records import cases_in, check_metric, is_search, metric_of
from specvit.study.trial_queue import group_counts
from specvit.tracking.figures import attempt


def ablation(options: argparse.Namespace) -> int:
    """Count, score, compare, write and draw."""
    cases, notes = cases_in(options.folder)
    metric = options.metric or metric_of(options.folder)
    check_metric(cases, metric)
    out = options.out or (options.folder[0] / "ablation" if len(options.folder) == 1 else Path("ablation"))
    where = ", ".join(folder.name for folder in options.folder)
    found = ablation_of(cases, metric, where, bounds_of(options.folder, cases), search=is_search(options.folder))
    out.mkdir(parents=True, exist_ok=True)
    write_ablation(found, out)
    for name in ("ablation.png", "ablation.pdf"):
        attempt(out / name, lambda path: draw_ablation(found, path), print)
    print("\n".join([*notes, group_counts(case.state for case in cases), *found.sentences]))
    print(f"written: {out}", flush=True)
    return 0
