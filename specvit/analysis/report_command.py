"""`specvit analysis report`: one page on a study, for people who were not there."""

import argparse
from pathlib import Path

from specvit.analysis.ablation_report import Ablation, ablation_of, draw_ablation
from specvit.analysis.curves import draw_many
from specvit.analysis.fit_verdict import bounds_of
from specvit.analysis.html import as_page, fill
from specvit.analysis.records import Case, cases_in, check_metric, is_search, metric_of
from specvit.analysis.runs import by_test_set, finished_runs
from specvit.analysis.scaling import Scaling, scaling_of
from specvit.analysis.scaling import said as growth_said
from specvit.analysis.scaling_command import ceilings_of
from specvit.analysis.scaling_figure import Ceilings, draw_scaling
from specvit.analysis.series import add_missing, series_of
from specvit.analysis.study_report import study_parts, whole
from specvit.study.store import StudyFolder
from specvit.tracking.figures import attempt
from specvit.utils.errors import FolderError
from specvit.utils.files import write_text


def report(options: argparse.Namespace) -> int:
    """Write report.html and report.md of a study, and a page of the user's own if there is one."""
    study = StudyFolder(_found(options.study))
    metric = options.metric or metric_of([study.path])
    cases, notes = cases_in([study.path])
    check_metric(cases, metric)
    bounds = bounds_of([study.path], cases)
    found = ablation_of(cases, metric, study.name, bounds, search=is_search([study.path]))
    grown, allowed = _scaling(study, cases, options.label)
    out = options.out or study.path / "report"
    figures = _draw(out, cases, found, grown, allowed)
    sentences = [growth_said(pair) for pair in grown.pairs] if grown else []
    parts = study_parts(study, cases, found, sentences)
    text = whole(parts, {name: f"figures/{path.name}" for name, path in figures.items()})
    write_text(out / "report.md", text)
    write_text(out / "report.html", as_page(study.name, text, out))
    pages = [out / "report.html", out / "report.md"]
    if options.template:
        pages.append(fill(options.template, dict(parts), out, figures))
    print("\n".join([*notes, parts["status"], *(f"written: {page}" for page in pages)]), flush=True)
    return 0


def _found(named: str) -> Path:
    """Return the study's folder: a path, or a name in multirun/."""
    for path in (Path(named), Path("multirun") / named):
        if (path / "study.json").exists():
            return path
    there = ", ".join(sorted(path.parent.name for path in Path("multirun").glob("*/study.json")))
    raise FolderError(
        "is not a study", where=named, remedy=f"there are {there}" if there else "start one with sweeps=NAME"
    )


def _scaling(study: StudyFolder, cases: list[Case], label: str) -> tuple[Scaling | None, Ceilings]:
    """Return scores by training rows and ceilings, where the study has several sizes and all runs one test set."""
    if len({case.config.data.num_samples for case in cases}) < 2:
        return None, {}
    try:
        runs, _ = finished_runs([study.path], label, noiseless=True)
    except FolderError:
        return None, {}
    sets = by_test_set(runs)
    if len(sets) > 1:
        return None, {}
    series = series_of(sets[0])
    add_missing(series, [study.path])
    allowed = ceilings_of(sets[0], label, [study.path])
    return scaling_of(label, sets[0], series, allowed.get("van_trees", 1.0)), allowed


def _draw(out: Path, cases: list[Case], found: Ablation, grown: Scaling | None, allowed: Ceilings) -> dict[str, Path]:
    """Draw the figures, as PNG and PDF, and return the PNG files by name."""
    place = out / "figures"
    place.mkdir(parents=True, exist_ok=True)
    drawn = {"ablation": lambda path: draw_ablation(found, path)}
    if grown:
        drawn = {"scaling": lambda path: draw_scaling(grown, [], allowed, path), **drawn}
    if any(case.outcome.rows for case in cases):
        drawn["curves"] = lambda path: draw_many(cases, path)
    for name, draw in drawn.items():
        for kind in ("png", "pdf"):
            attempt(place / f"{name}.{kind}", draw, print)
    return {name: place / f"{name}.png" for name in drawn if (place / f"{name}.png").exists()}
