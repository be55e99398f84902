"""What `specvit analysis ablation` found, as CSV, markdown, JSON and a figure."""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specvit import __version__
from specvit.analysis.ablation import Combination, Tally, best_first, combinations, stuck, tallies
from specvit.analysis.bounds.figure import DPI
from specvit.analysis.bounds.report import figure
from specvit.analysis.comparisons import LEVEL, Difference, differences, run_names, said
from specvit.analysis.fit_verdict import MILD, SHARE_OF_BOUND, STRONG
from specvit.analysis.records import Case
from specvit.study.results import is_r2
from specvit.study.schema import ESCAPED
from specvit.study.trial_queue import GROUPS
from specvit.tracking.figures import canvas
from specvit.tracking.metric_files import finite_or_none
from specvit.utils.files import write_atomic, write_json, write_text
from specvit.utils.provenance import commit
from specvit.utils.text import csv_text, markdown_table

Row = dict[str, Any]
DEFINITIONS = {
    "finished": "completed or early_stopped; learnt nothing: plateau; failed: diverged, oom, crashed, cancelled, "
    "refused, or given up as lost or timeout; pruned: by a search; open: waiting, running, to go on",
    "rate": "finished of those that finished, learnt nothing or failed",
    "minutes": "mean wall clock of training and validation of finished runs",
    "mean": "over seeds; a run that has not learnt (plateau, diverged, oom, crashed) counts as R² 0; by other metrics "
    "it has no value, and settings are sorted by the share that finished first; what is open or was stopped is out",
    "sd": "standard deviation over seeds of the runs that finished",
    "escape": "first step off the plateau ({}), as far as epochs show; mean over the runs that have one",
    "gap": "train R² less val R² in the tested epoch; training rows as the loop saw them, with dropout and fresh noise",
    "verdict": f"of the runs that finished: strongly overfit from a gap of {STRONG:.2f} on, mildly from {MILD:.2f} on; "
    "else underfit if test R² is below that of a LightGBM run here on the same rows, or below "
    f"{SHARE_OF_BOUND} of the test set's van Trees bound, where either is known; else balanced",
    "difference": "between runs equal in all else and in the seed, mean over the pairs of a seed, then over seeds; "
    f"[ ] is {LEVEL:.0%} for that comparison alone, by Student's t over its seeds; with one seed over its pairs; equal "
    "runs once",
    "better, worse": f"an interval without 0, and Holm's p of {1 - LEVEL:.2f} or less among all comparisons here, by "
    "the variance that a factor's values share; where runs never left the plateau, by an exact log-rank test",
}
MOST_BARS = 40


@dataclass(frozen=True)
class Ablation:
    """All that is found of a study; a `search` samples its settings, so that they are ranked, not paired."""

    metric: str
    where: str
    search: bool
    tallies: list[Tally]
    combinations: list[Combination]
    differences: list[Difference]

    @property
    def sentences(self) -> list[str]:
        """What came out, in words."""
        never = stuck(self.combinations) if self.metric == ESCAPED else []
        best = [best_said(self.combinations, self.metric)] if self.search else []
        return [*best, *never, *twins_said(self.combinations), *(said(one, self.metric) for one in self.differences)]

    @property
    def definitions(self) -> dict[str, str]:
        """What the words of the tables mean."""
        escapes = dict.fromkeys((case.escape.of, case.escape.above) for one in self.combinations for case in one.cases)
        off = " or ".join(f"{of} > {above}" for of, above in escapes)
        return DEFINITIONS | {"escape": DEFINITIONS["escape"].format(off)}


def ablation_of(
    cases: Sequence[Case], metric: str, where: str, bounds: Mapping[str, float], *, search: bool
) -> Ablation:
    """Return counts, settings and differences of runs; `bounds` as in `combinations`."""
    found = differences(cases, metric, fewest_pairs=2 if search else 1)
    return Ablation(metric, where, search, tallies(cases), combinations(cases, metric, bounds), found)


def best_said(combined: Sequence[Combination], metric: str) -> str:
    """Return which setting of a search is best, by how much, and among how many."""
    ranked = best_first(combined, metric)
    ended = sum(one.finished + one.unlearnt for one in combined)
    if not ranked or ranked[0].score is None:
        return "no trial has finished"
    best = ranked[0]
    return (
        f"best of {ended} ended trials: {_name(best)}, {metric} {best.score:.4g} ({best.finished} of {len(best.cases)} "
        f"runs finished; {best.cases[0].run_id}); it is the best of many, so expect less of it on other seeds"
    )


def twins_said(combined: Sequence[Combination]) -> list[str]:
    """Return a sentence on runs that are the same as another, if there are any."""
    settings = {id(case): one for one in combined for case in one.cases}
    names = run_names(case for one in combined for case in one.cases)
    twins = [(own, first) for own, first in names.items() if own != first]
    if not twins:
        return []
    own, first = (_name(settings[which]) for which in twins[0])
    return [f"{len(twins)} of {len(names)} runs equal another to the last digit and count once ({own} and {first})"]


def _name(one: Combination) -> str:
    return ", ".join(f"{key}={value}" for key, value in one.factors.items()) or "all"


def write_ablation(found: Ablation, out: Path) -> None:
    """Write ablation.csv, .md and .json into `out`."""
    rows = [_row(one, found.metric) for one in found.combinations]
    write_text(out / "ablation.csv", csv_text(rows))
    write_text(out / "ablation.md", "\n".join(_markdown(found)) + "\n")
    write_json(out / "ablation.json", _plain(found, rows))


def _row(one: Combination, metric: str) -> Row:
    escapes = [step for step in one.escapes if step is not None]
    tests = dict.fromkeys(str(c.outcome.summary.get("data", "")) for c in one.cases if c.outcome.summary)
    return {
        **one.factors,
        metric: one.score,
        "sd": one.sd,
        "mean_of_finished": one.mean,
        "scored": len(one.values),
        "finished": one.finished,
        "runs": len(one.cases),
        "escape_step": statistics.fmean(escapes) if escapes else None,
        "escaped": f"{len(escapes)}/{len(one.escapes)}",
        "gap": one.gap,
        "verdict": one.verdict,
        "states": " ".join(case.state or "waiting" for case in one.cases),
        "seeds": " ".join(str(case.seed) for case in one.cases),
        "run_ids": " ".join(case.run_id for case in one.cases),
        "data": " ".join(tests),
    }


def _plain(found: Ablation, rows: list[Row]) -> Row:
    return {
        "metric": found.metric,
        "definitions": found.definitions,
        "tallies": [{**asdict(tally), "rate": tally.rate} for tally in found.tallies],
        "settings": [finite_or_none(row) for row in rows],
        "differences": [{**finite_or_none(asdict(one)), "said": said(one, found.metric)} for one in found.differences],
        "from": found.where,
        "specvit": __version__,
        "commit": commit(),
    }


def _markdown(found: Ablation) -> Iterator[str]:
    yield f"# {found.where}"
    yield ""
    yield from markdown_table(tally_table(found.tallies))
    yield ""
    yield from markdown_table(setting_table(found.combinations, found.metric))
    if found.sentences:
        yield ""
        yield from (f"- {sentence}." for sentence in found.sentences)
    yield ""
    yield from (f"- {name}: {meaning}." for name, meaning in found.definitions.items())


def setting_table(combined: Sequence[Combination], metric: str) -> list[list[str]]:
    """Return the cells of a table with a line a setting."""
    factors = list(dict.fromkeys(name for one in combined for name in one.factors))
    steps = [] if metric == ESCAPED else ["steps to leave the plateau"]
    failed = is_r2(metric) and any(one.unlearnt for one in combined)
    head = [
        *factors,
        metric,
        *(["of the finished"] if failed else []),
        "finished",
        *steps,
        "train less val R²",
        "verdict",
        "run ids",
    ]
    cells = []
    for one in combined:
        row = _row(one, metric)
        escape = "" if row["escape_step"] is None else f"{row['escape_step']:,.0f}"
        cells.append(
            [
                *(str(one.factors.get(name, "-")) for name in factors),
                figure(one.score, None if one.unlearnt else one.sd, whole=metric == ESCAPED),
                *([figure(one.mean, one.sd, whole=metric == ESCAPED)] if failed else []),
                f"{one.finished}/{len(one.cases)}",
                *([f"{escape} ({row['escaped']})".strip() if one.escapes else ""] if steps else []),
                "" if one.gap is None else f"{one.gap:+.3f}",
                one.verdict,
                row["run_ids"],
            ]
        )
    return [head, *cells]


def tally_table(tallies: Sequence[Tally]) -> list[list[str]]:
    """Return the cells of a table with a line a value of a factor."""
    head = ["factor", "value", "total", *GROUPS, "rate", "minutes", "how else"]
    return [head, *map(_tally_cells, tallies)]


def _tally_cells(tally: Tally) -> list[str]:
    rate = "" if tally.rate is None else f"{tally.rate:.0%}"
    minutes = "" if tally.minutes is None else f"{tally.minutes:.1f}"
    how = ", ".join(f"{count} {state or 'waiting'}" for state, count in tally.how.items())
    groups = (tally.finished, tally.unlearnt, tally.failed, tally.pruned, tally.open)
    counts = (str(count) for count in (tally.total, *groups))
    return [tally.factor, str(tally.value), *counts, rate, minutes, how]


def draw_ablation(found: Ablation, path: Path) -> None:
    """Draw each setting's metric as a bar, best first, each seed as a dot, R² 0 if it failed; and how many finished."""
    scored = best_first(found.combinations, found.metric)[MOST_BARS - 1 :: -1]
    rates = [tally for tally in found.tallies if tally.factor != "all"] or found.tallies
    height = 1.2 + 0.24 * max(len(scored), min(len(rates), MOST_BARS))
    panels, axes = canvas(1, 2, (11.0, min(height, 11.0)))
    bars, shares = axes[0]
    for place, one in enumerate(scored):
        spread = None if one.unlearnt else one.sd
        bars.barh(place, one.score, xerr=spread, color="tab:blue", alpha=0.5, ecolor="0.2", height=0.7)
        bars.plot(one.ranked, [place] * len(one.ranked), ".", color="0.2", ms=4)
    labels = [textwrap.shorten(", ".join(f"{v}" for v in one.factors.values()) or "all", 44) for one in scored]
    bars.set_yticks(range(len(scored)), labels, fontsize=7)
    if found.metric == ESCAPED:
        bars.set_xscale("log")
    bars.set(xlabel=f"{found.metric}: mean and standard deviation over seeds, each seed a dot")
    for place, tally in enumerate(reversed(rates[:MOST_BARS])):
        shares.barh(place, tally.finished, color="tab:green", alpha=0.6, height=0.7)
        shares.barh(place, tally.unlearnt, left=tally.finished, color="tab:orange", alpha=0.6, height=0.7)
        ends = tally.finished + tally.unlearnt
        shares.barh(place, tally.failed, left=ends, color="tab:red", alpha=0.6, height=0.7)
    names = [textwrap.shorten(f"{tally.factor}={tally.value}", 44) for tally in reversed(rates[:MOST_BARS])]
    shares.set_yticks(range(len(names)), names, fontsize=7)
    shares.set(xlabel="runs that finished (green), learnt nothing (orange), failed (red)")
    for axis in (bars, shares):
        axis.grid(alpha=0.25, axis="x")
    kind = path.suffix.removeprefix(".")
    write_atomic(path, lambda stream: panels.savefig(stream, format=kind, dpi=DPI))
