"""The parts of a study's report, as markdown: what was asked, what came out, how runs ended, cost, how to repeat it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from specvit import __version__
from specvit.analysis.ablation import Tally
from specvit.analysis.ablation_report import Ablation, setting_table, tally_table
from specvit.analysis.records import Case
from specvit.config.schema import effective_level
from specvit.study.schema import ESCAPED
from specvit.study.store import StudyFolder, command_of
from specvit.study.trial_queue import group_counts, group_of
from specvit.utils.provenance import commit
from specvit.utils.text import markdown_table

MOST_CAUSES = 30
NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?")
Parts = dict[str, str]


def study_parts(
    study: StudyFolder,
    cases: Sequence[Case],
    found: Ablation,
    growth_said: Sequence[str],
) -> Parts:
    """Return the parts by name; each is markdown, and may be empty."""
    about = study.about()
    sentences = [*growth_said, *found.sentences]
    return {
        "name": study.name,
        "question": str(about.get("question") or "none was written into the study's file"),
        "status": _status(cases, found.tallies[0]),
        "findings": "\n".join(f"- {sentence}." for sentence in sentences) or "Nothing can be compared yet.",
        "design": "\n".join(_design(about, cases, found.metric)),
        "settings": "\n".join(markdown_table(setting_table(found.combinations, found.metric))),
        "counts": "\n".join(markdown_table(tally_table(found.tallies))),
        "failures": "\n".join(_failures(study)) or "None.",
        "cost": "\n".join(_cost(study, cases)),
        "repeat": "\n".join(_repeat(study, about)),
        "definitions": "\n".join(f"- {name}: {meaning}." for name, meaning in found.definitions.items()),
    }


def whole(parts: Parts, figures: dict[str, str]) -> str:
    """Return the report as markdown; `figures` are paths by name, relative to it."""
    parts = {name: text if name == "repeat" else _inert(text) for name, text in parts.items()}
    lines = [f"# {parts['name']}", "", f"**Question:** {parts['question']}", "", parts["status"]]
    for title, name in (("What came out", "findings"), ("Settings", "settings")):
        lines += ["", f"## {title}", "", parts[name]]
        if name == "findings":
            lines += [text for key, path in figures.items() for text in ("", f"![{key}]({path})")]
    for title, name in (
        ("How the runs ended", "counts"),
        ("Failures and their causes", "failures"),
        ("Design", "design"),
        ("Cost", "cost"),
        ("How to repeat it", "repeat"),
        ("Definitions", "definitions"),
    ):
        lines += ["", f"## {title}", "", parts[name]]
    return "\n".join(lines) + "\n"


def _inert(text: str) -> str:
    """Return markdown in which names and questions show no image and no HTML."""
    return re.sub(r"(<|(?<=!)\[)", r"\\\1", text)


def _status(cases: Sequence[Case], tally: Tally) -> str:
    still = f"{tally.open} {'is' if tally.open == 1 else 'are'} still open"
    warning = f" **{still}: these are not the last numbers.**" if tally.open else ""
    return f"{group_counts(case.state for case in cases)}.{warning}"


def _design(about: dict[str, Any], cases: Sequence[Case], metric: str) -> Iterator[str]:
    values: dict[str, dict[str, None]] = {}
    for case in cases:
        for key, value in case.factors.items():
            values.setdefault(key, {})[str(value)] = None
    for key, seen in values.items():
        shown = list(seen) if len(seen) <= 12 else [*list(seen)[:6], f"... {len(seen)} in all"]
        yield f"- {key}: {', '.join(shown)}"
    yield f"- seeds: {', '.join(map(str, sorted({case.seed for case in cases})))}"
    fixed = (about.get("definition") or {}).get("overrides") or {}
    yield from (f"- all runs: {key}={value}" for key, value in fixed.items())
    yield from (f"- typed: {key}={value}" for key, value in (about.get("typed") or {}).items())
    first = cases[0].config
    tests = dict.fromkeys(str(case.outcome.summary.get("test_rows")) for case in cases if case.outcome.summary)
    made = "built-in spectra, not observations" if first.data.makes else "files"
    count = " or ".join(tests) or "not yet known"
    yield f"- data: {made}; {count} test rows; noise level {effective_level(first.noise):g}"
    yield "- S/N of a spectrum: median over pixels of flux / error, divided by the noise level"
    seen = any(name.startswith("test_") for name in about.get("metrics") or {})  # a search by an older specvit
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
        cause = f"{known.get('cause') or 'no cause on file'}{remedy}"
        causes.setdefault(f"{state}: {NUMBER.sub('', cause)}", []).append((cause, trial.name))
    for kind, runs in list(causes.items())[:MOST_CAUSES]:
        example = "e.g. " if len({cause for cause, _ in runs}) > 1 else ""
        names = ", ".join(name for _, name in runs[:5])
        yield f"- **{kind.partition(':')[0]}**, {len(runs)}: {example}{runs[0][0]} ({names})"
    if len(causes) > MOST_CAUSES:
        yield f"- and {len(causes) - MOST_CAUSES} other causes"


def _cost(study: StudyFolder, cases: Sequence[Case]) -> Iterator[str]:
    minutes = [case.minutes for case in cases if case.minutes]
    hosts = Counter(trial.run.status().get("host") for trial in study.trials())
    devices = Counter(str(trial.run.status().get("device")) for trial in study.trials() if trial.run.status())
    yield f"- {sum(minutes) / 60:.2f} hours of training and validation in {len(minutes)} runs"
    yield f"- devices: {', '.join(f'{count} on {name}' for name, count in devices.items())}"
    yield f"- hosts: {len([host for host in hosts if host])}; begun {study.about().get('started', '')}"


def _repeat(study: StudyFolder, about: dict[str, Any]) -> Iterator[str]:
    yield f"    {command_of(study)}"
    yield ""
    yield f"specvit {__version__}" + (f", commit {commit()} (of this report)" if commit() else "")
    yield "Finished runs are not repeated; run the same command again to complete the others."
