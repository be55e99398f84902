"""The report on a study: question, findings, how runs ended, failures, design, cost, how to repeat it."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specvit import __version__
from specvit.analysis.ablation import Tally
from specvit.analysis.ablation_report import Ablation, ablation_of, setting_table, tally_table
from specvit.analysis.bounds.report import read_bounds
from specvit.analysis.figures import draw_ablation, draw_curves, draw_scaling, save_figures
from specvit.analysis.fit_verdict import bounds_of
from specvit.analysis.grouping import add_missing, by_test_set, series_of
from specvit.analysis.pooled_folds import pool_folds
from specvit.analysis.records import Runs, directions_of, is_search, with_predictions
from specvit.analysis.report import as_page, bullets, fill, inert, joined, table
from specvit.analysis.scaling import Scaling, pair_sentence, scaling_of, slope_sentence
from specvit.analysis.single_panel import draw_single
from specvit.analysis.template_values import template_values
from specvit.config.schema import effective_level
from specvit.study.schema import ESCAPED
from specvit.study.store import StudyFolder, command_of
from specvit.study.trial_queue import group_counts, group_of
from specvit.utils.errors import FolderError
from specvit.utils.files import write_text
from specvit.utils.provenance import commit
from specvit.utils.text import counted, short_value

MOST_CAUSES = 30
TEMPLATES = Path(__file__).with_name("templates")
NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?")
Parts = dict[str, str]
TITLES = {
    "findings": "What came out",
    "settings": "Settings",
    "counts": "How the runs ended",
    "failures": "Failures and their causes",
    "design": "Design",
    "cost": "Cost",
    "repeat": "How to repeat it",
    "definitions": "Definitions",
}


def write_study_report(
    study: StudyFolder, runs: Runs, metric: str, label: str, out: Path, template: str | None
) -> tuple[str, list[Path]]:
    """Write report.html, report.md, their figures and the filled template into `out`; return the status and pages.

    `template` is a file, or the name of a packaged one, which becomes an HTML page as well.
    """
    bounds = bounds_of([study.path], runs)
    asked = directions_of([study.path])
    ablation = ablation_of(runs, metric, study.name, bounds, search=is_search([study.path]), asked=asked)
    scaling, allowed, notes = _scaling(study, runs, label)
    figures = {"ablation": lambda: draw_ablation(ablation)}
    if scaling:
        figures = {"scaling": lambda: draw_scaling(scaling, [], allowed), **figures}
    if scaling and template:
        figures["single"] = lambda: draw_single(scaling, [])
    if any(outcome.rows for outcome in runs.outcome):
        figures["curves"] = lambda: draw_curves(runs)
    matters = ""
    if ablation.search:
        from specvit.study.optuna_study import search_figures

        of_search, matters = search_figures(study)
        figures = {**of_search, **figures}
    drawn = save_figures(out / "figures", figures)
    parts = study_parts(study, runs, ablation, scaling, matters, notes)
    text = whole(parts, {name: f"figures/{path.name}" for name, path in drawn.items() if name != "single"})
    pages = [out / "report.html", out / "report.md"]
    write_text(pages[1], text)
    write_text(pages[0], as_page(study.name, text, out))
    if template:
        packaged = {path.stem: path for path in TEMPLATES.glob("*.md")}.get(template)
        values = {**parts, **template_values(study, runs, ablation, scaling)}
        pages.append(fill(packaged or Path(template), values, out, drawn))
        if packaged:
            text = pages[-1].read_text(encoding="utf-8")
            pages.append(out / f"{template}.html")
            write_text(pages[-1], as_page(study.name, text, out, language=template.rpartition("_")[2]))
    return parts["status"], pages


def _scaling(study: StudyFolder, runs: Runs, label: str) -> tuple[Scaling | None, dict[str, float], list[str]]:
    """Return scores by training rows, bounds and notes, if a study has several sizes and its runs one test set."""
    if len({config.data.num_samples for config in runs.config}) < 2:
        return None, {}, []
    try:
        pooled, notes = pool_folds(with_predictions(runs, label, noiseless=True)[0], label)
    except FolderError:
        return None, {}, []
    first, *others = by_test_set(pooled)
    if others:
        return None, {}, []
    series = series_of(first)
    add_missing(series, runs)
    bounds = read_bounds(first, label, [study.path])
    notes = [f"by training rows, {note.removeprefix('note: ')}" for note in notes]
    return scaling_of(label, first, series, bounds.get("van_trees", 1.0)), bounds, notes


def study_parts(
    study: StudyFolder,
    runs: Runs,
    ablation: Ablation,
    scaling: Scaling | None,
    matters: str = "",
    notes: Sequence[str] = (),
) -> Parts:
    """Return the parts by name; each is markdown, and may be empty.

    `matters` is a finding on a search's keys, `notes` are those on `scaling`.
    """
    about = study.about()
    sentences = [
        *([*map(pair_sentence, scaling.pairs), *map(slope_sentence, scaling.pairs)] if scaling else ()),
        *notes,
        *ablation.sentences,
        *[matters] * bool(matters),
    ]
    return {
        "name": study.name,
        "question": str(about.get("question") or "none was written into the study's file"),
        "status": _status(runs, ablation.tallies[0]),
        "findings": bullets(sentences) or "Nothing can be compared yet.",
        "design": "\n".join(_design(about, runs, ablation.metric)),
        "settings": table(setting_table(ablation.combinations, ablation.metric)),
        "counts": table(tally_table(ablation.tallies)),
        "failures": "\n".join(_failures(study)) or "None.",
        "cost": "\n".join(_cost(study, runs)),
        "repeat": "\n".join(_repeat(study)),
        "definitions": bullets(f"{name}: {meaning}" for name, meaning in ablation.definitions.items()),
    }


def whole(parts: Parts, figures: Mapping[str, str]) -> str:
    """Return the report as markdown; `figures` are paths by name, relative to it."""
    parts = {name: text if name == "repeat" else inert(text) for name, text in parts.items()}
    blocks = [f"# {parts['name']}", f"**Question:** {parts['question']}", parts["status"]]
    for name, title in TITLES.items():
        blocks += [f"## {title}", parts[name]]
        if name == "findings":
            blocks += [f"![{key}]({path})" for key, path in figures.items()]
    return joined(blocks)


def _status(runs: Runs, tally: Tally) -> str:
    still = f"{tally.open} {'is' if tally.open == 1 else 'are'} still open"
    warning = f" **{still}: these are not the last numbers.**" if tally.open else ""
    return f"{group_counts(runs.state)}.{warning}"


def _design(about: dict[str, Any], runs: Runs, metric: str) -> Iterator[str]:
    values: dict[str, dict[str, str]] = {}
    for factors in runs.factors:
        for key, value in factors.items():
            values.setdefault(key, {})[str(value)] = short_value(value)
    for key, seen in values.items():
        texts = list(seen.values() if len(set(seen.values())) == len(seen) else seen)
        shown = texts if len(texts) <= 12 else [*texts[:6], f"... {len(texts)} in all"]
        yield f"- {key}: {', '.join(shown)}"
    yield f"- seeds: {', '.join(map(str, sorted(set(runs.seed))))}"
    fixed = (about.get("definition") or {}).get("overrides") or {}
    yield from (f"- all runs: {key}={value}" for key, value in fixed.items())
    yield from (f"- typed: {key}={value}" for key, value in (about.get("typed") or {}).items())
    first = runs.config.iloc[0]
    tests = dict.fromkeys(str(outcome.summary.get("test_rows")) for outcome in runs.outcome if outcome.summary)
    origin = "built-in spectra, not observations" if first.data.makes else "files"
    count = " or ".join(tests) or "not yet known"
    levels = dict.fromkeys(f"{effective_level(config.noise):g}" for config in runs.config)
    yield f"- data: {origin}; {count} test rows; noise level {', '.join(levels)}"
    if first.data.folds:
        together = "scores and ± here are over folds and seeds, `specvit analysis folds` scores all folds together"
        yield f"- cross-validation over stars: {first.data.folds} folds; {together}"
    yield "- S/N of a spectrum: median over pixels of flux / error, divided by the noise level"
    seen = any(name.startswith("test_") for name in about.get("metrics") or {})  # a search by an older version
    choice = "by which the search chose its settings" if seen else "that no choice has seen"
    of_rows = f", on test rows {choice}" if metric.startswith("test_") else ""
    yield f"- metric: {metric}{', see escape below' if metric == ESCAPED else of_rows}"


def _failures(study: StudyFolder) -> Iterator[str]:
    """Yield the runs that failed or learnt nothing by cause; causes that differ in their numbers alone are one."""
    causes: dict[str, list[tuple[str, str]]] = {}
    for trial in study.trials():
        state = study.state(trial)
        if group_of(state) not in ("learnt nothing", "failed"):
            continue
        known = {**trial.run.status(), **{k: v for k, v in (trial.end or {}).items() if v}}
        remedy = f"; {known['remedy']}" if known.get("remedy") else ""
        cause = f"{known.get('cause') or 'no recorded cause'}{remedy}"
        causes.setdefault(f"{state}: {NUMBER.sub('', cause)}", []).append((cause, trial.name))
    for kind, runs in list(causes.items())[:MOST_CAUSES]:
        example = "e.g. " if len({cause for cause, _ in runs}) > 1 else ""
        names = ", ".join(name for _, name in runs[:5])
        yield f"- **{kind.partition(':')[0]}**, {len(runs)}: {example}{runs[0][0]} ({names})"
    if len(causes) > MOST_CAUSES:
        yield f"- and {len(causes) - MOST_CAUSES} other causes"


def _cost(study: StudyFolder, runs: Runs) -> Iterator[str]:
    minutes = runs.minutes.dropna()
    hosts = Counter(trial.run.status().get("host") for trial in study.trials())
    devices = Counter(str(trial.run.status().get("device")) for trial in study.trials() if trial.run.status())
    yield f"- {sum(minutes) / 60:.2f} hours of training and validation in {counted(len(minutes), 'run')}"
    yield f"- devices: {', '.join(f'{count} on {name}' for name, count in devices.items())}"
    yield f"- hosts: {len([host for host in hosts if host])}; begun {study.about().get('started', '')}"


def _repeat(study: StudyFolder) -> Iterator[str]:
    yield f"    {command_of(study)}"
    yield ""
    yield f"specvit {__version__}" + (f", commit {commit()} (of this report)" if commit() else "")
    yield "Finished runs are not repeated; run the same command again to complete the others."
