"""`specvit analysis ceiling`: R² by S/N under bounds on what any method could reach."""

import argparse
from pathlib import Path

from specvit.analysis.published_points import Point, read_reference
from specvit.analysis.runs import TestSet, by_test_set, finished_runs
from specvit.config.suggestions import nearest
from specvit.physics.population import STAR_COLUMNS
from specvit.utils.errors import ConfigError, DataError

LABELS = STAR_COLUMNS[:6]
"""Labels with ceilings: those that the built-in model turns into a spectrum."""
MOST_ROWS = 10_000
"""Stars with ceilings unless --rows says otherwise: more would not change a digit that is shown."""


def ceiling(options: argparse.Namespace) -> int:
    """Compute, write and draw the ceilings of each test set."""
    if options.label not in LABELS:
        remedy = f"{nearest(options.label, LABELS)}there are {', '.join(LABELS)}"
        raise ConfigError(f"no ceilings for {options.label!r}", where="--label", remedy=remedy)
    reference = read_reference(options.reference, "snr") if options.reference else []
    runs, notes = finished_runs(options.folder, options.label)
    sets = by_test_set(runs)
    out = options.out or (options.folder[0] / "ceiling" if len(options.folder) == 1 else Path("ceiling"))
    print("\n".join(notes + [f"test set: {found.said}, {len(found.runs)} run(s)" for found in sets]), flush=True)
    if len(sets) > 1:
        print(f"ceilings differ between test sets and noise, so each of the {len(sets)} has its own folder in {out}")
    refused = 0
    for found in sets:
        try:
            _one_set(found, options, reference, out / found.short if len(sets) > 1 else out)
        except (ConfigError, DataError) as problem:
            refused += 1
            if refused == len(sets):
                raise
            print(f"note: no ceilings for {found.said}: {problem}", flush=True)
    return 0


def _one_set(found: TestSet, options: argparse.Namespace, reference: list[Point], out: Path) -> None:
    """Compute, write and draw the ceilings of one test set. Loads torch, which a refusal need not wait for."""
    from specvit.analysis.bounds.figure import draw_ceiling
    from specvit.analysis.bounds.inputs import open_stars
    from specvit.analysis.bounds.r2_bounds import ceilings, check_labels_agree
    from specvit.analysis.bounds.report import Findings, model_rows, write_findings
    from specvit.tracking.figures import attempt

    first = found.runs[0]
    stars = open_stars(first.config, options.rows or MOST_ROWS, lambda *_: None)
    if options.label not in stars.names:
        what = f"{options.label} is 0 in every star of {found.said}"
        raise DataError(what, where="--label", remedy=f"there are {', '.join(stars.names)}")
    for run in found.runs:
        check_labels_agree(stars, options.label, run.true_N, str(run.folder / "predictions.csv"))
    allowed = ceilings(stars, options.label, first.snr_N[: len(stars)], lambda text: print(f"{text} ...", flush=True))
    models = [(setting, model_rows(setting, allowed.rows, len(stars))) for setting in found.settings]
    findings = Findings(
        options.label, found, allowed.rows, allowed.fixed, models, reference, allowed.without_bound, allowed.seconds
    )
    out.mkdir(parents=True, exist_ok=True)
    write_findings(findings, out)
    for name in ("ceiling.png", "ceiling.pdf"):
        attempt(out / name, lambda path: draw_ceiling(findings, path), print)
    print(_in_short(findings.rows[0], options.label))
    print(f"written: {out} ({allowed.seconds:.0f} s)", flush=True)


def _in_short(row: dict, label: str) -> str:
    """Return the ceilings of all stars in a line."""
    any_said = "" if row["van_trees"] is None else f"{row['van_trees_r2']:.3f} for any estimator (van Trees), "
    unbiased = f"{row['crlb_median_r2']:.3f} for the median star and {row['crlb_mean_r2']:.3f} in the mean, unbiased"
    return f"best R² of {label}, {row['rows']:,} stars: {any_said}{unbiased} (Cramér-Rao)"
