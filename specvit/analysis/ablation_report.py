"""What `specvit analysis ablation` reports of a study: tables of counts, settings and differences."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specvit.analysis.ablation import Combination, Tally, best_first, combinations, stuck, tallies
from specvit.analysis.comparisons import LEVEL, Difference, differences, first_equals, sentence
from specvit.analysis.fit_verdict import MILD, SHARE_OF_BOUND, STRONG
from specvit.analysis.records import Runs
from specvit.analysis.report import Row, bullets, table, with_spread, write_report
from specvit.study.results import is_r2
from specvit.study.schema import ESCAPED
from specvit.study.table import factor_names
from specvit.study.trial_queue import GROUPS
from specvit.utils.text import short_value

DEFINITIONS = {
    "finished": "completed or early_stopped; learnt nothing: plateau; failed: diverged, oom, crashed, cancelled, "
    "refused, or given up as lost or timeout; pruned: by a search; open: waiting, running, or stopped to resume",
    "rate": "finished of those that finished, learnt nothing or failed",
    "minutes": "mean wall clock of training and validation of finished runs",
    "mean": "over seeds; a run that has not learnt (plateau, diverged, oom, crashed) counts as R² 0; by other metrics "
    "it has no value, and settings are sorted by the share that finished first; "
    "what is open or was stopped is left out",
    "sd": "standard deviation over seeds, and folds of a cross-validation, of the runs that finished",
    "escape": "first step off the plateau ({}), as far as epochs show; mean over the runs that have one",
    "gap": "train R² less val R² in the tested epoch; training rows as the loop saw them, with dropout and fresh noise",
    "verdict": f"of the runs that finished: strongly overfit from a gap of {STRONG:.2f} on, mildly from {MILD:.2f} on; "
    "else underfit if test R² is below that of a LightGBM run here on the same rows, or below "
    f"{SHARE_OF_BOUND} of the test set's van Trees bound, where either is known; else balanced",
    "difference": "between runs equal in all else and in the seed, mean over the pairs of a seed, then over seeds; "
    f"[ ] is {LEVEL:.0%} for that comparison alone, by Student's t over its seeds; with one seed over its settings; "
    "equal runs once",
    "better, worse": f"an interval without 0, and Holm's p of {1 - LEVEL:.2f} or less among all comparisons here, by "
    "the variance that a factor's values share; where runs never left the plateau, by an exact log-rank test",
}


NOT_COMPARED = (
    "\n\nRuns of another program: their rows, noise and code may differ, so none is compared with those above."
)


@dataclass(frozen=True)
class Ablation:
    """The results on a study; the settings of a `search` are sampled, so they are ranked and not paired."""

    metric: str
    where: str
    search: bool
    tallies: list[Tally]
    combinations: list[Combination]
    differences: list[Difference]
    asked: dict[str, str]
    """The directions of a search's metrics."""

    @property
    def sentences(self) -> list[str]:
        """The findings in words."""
        best = [best_sentence(self.combinations, self.metric, self.asked)] if self.search else []
        never = stuck(self.combinations) if self.metric == ESCAPED else []
        compared = [sentence(one, self.metric, self.asked) for one in self.differences]
        return [*best, *never, *twin_sentences(self.combinations), *compared]

    @property
    def definitions(self) -> dict[str, str]:
        """The meaning of the tables' words."""
        escapes = dict.fromkeys((run.escape.of, run.escape.above) for one in self.combinations for run in one.records)
        threshold = " or ".join(f"{of} > {above}" for of, above in escapes)
        return DEFINITIONS | {"escape": DEFINITIONS["escape"].format(threshold)}


def ablation_of(
    runs: Runs,
    metric: str,
    where: str,
    bounds: Mapping[str, float],
    *,
    search: bool,
    asked: dict[str, str] | None = None,
) -> Ablation:
    """Return counts, settings and differences of runs; `bounds` as in `combinations`, `asked` as in `best_first`."""
    compared = differences(runs, metric, fewest_pairs=2 if search else 1)
    return Ablation(metric, where, search, tallies(runs), combinations(runs, metric, bounds), compared, asked or {})


def best_sentence(combined: Sequence[Combination], metric: str, asked: dict[str, str]) -> str:
    """Return which setting of a search is best, its score, and how many it was chosen from."""
    ranked = best_first(combined, metric, asked)
    ended = sum(one.finished + one.unlearnt for one in combined)
    if not ranked or ranked[0].score is None:
        return "no trial has finished"
    best = ranked[0]
    return (
        f"best of {ended} ended trials: {best.label}, {metric} {best.score:.4g} "
        f"({best.finished} of {len(best.records)} runs finished; {best.records[0].run_id}); "
        "it is the best of many, so expect less of it on other seeds"
    )


def twin_sentences(combined: Sequence[Combination]) -> list[str]:
    """Return a sentence on runs that are identical to another, if there are any."""
    runs = [(record, one) for one in combined for record in one.records]
    firsts = first_equals([record.outcome.rows for record, _ in runs])
    twins = [(runs[own][1].name, runs[first][1].name) for own, first in enumerate(firsts) if own != first]
    if not twins:
        return []
    own, first = twins[0]
    equal = (
        "equals another to the last digit and counts"
        if len(twins) == 1
        else "equal another to the last digit and count"
    )
    return [f"{len(twins)} of {len(runs)} runs {equal} once ({own} and {first})"]


def write_ablation(ablation: Ablation, out: Path, others: Sequence[Ablation] = ()) -> None:
    """Write ablation.csv, .md and .json into `out`; runs of other programs, in `others`, below and by themselves."""
    rows = [_row(one, ablation.metric) for one in ablation.combinations]
    compared = [{**asdict(one), "said": sentence(one, ablation.metric, ablation.asked)} for one in ablation.differences]
    facts: Row = {
        "metric": ablation.metric,
        "definitions": ablation.definitions,
        "tallies": [tally._asdict() for tally in ablation.tallies],
        "settings": rows,
        "differences": compared,
        "from": ablation.where,
    }
    for other in others:
        own = [{"table": other.where, **_row(one, other.metric)} for one in other.combinations]
        counts = [tally._asdict() for tally in other.tallies]
        facts.setdefault("tables", []).append(
            {"from": other.where, "metric": other.metric, "tallies": counts, "settings": own}
        )
        rows = rows + own
    blocks = [
        *_blocks(ablation, f"# {ablation.where}"),
        *(block for other in others for block in _blocks(other, f"## {other.where}{NOT_COMPARED}")),
        bullets(f"{name}: {meaning}" for name, meaning in ablation.definitions.items()),
    ]
    write_report(out, "ablation", rows=rows, facts=facts, blocks=blocks)


def _blocks(ablation: Ablation, heading: str) -> list[str]:
    """Return a heading, the counts, the settings and the findings in words."""
    settings = table(setting_table(ablation.combinations, ablation.metric))
    return [heading, table(tally_table(ablation.tallies)), settings, bullets(ablation.sentences)]


def _row(one: Combination, metric: str) -> Row:
    escapes = [step for step in one.escapes if step is not None]
    tests = dict.fromkeys(str(run.outcome.summary.get("data", "")) for run in one.records if run.outcome.summary)
    return {
        **one.factors,
        metric: one.score,
        "sd": one.sd,
        "mean_of_finished": one.mean,
        "scored": len(one.values),
        "finished": one.finished,
        "runs": len(one.records),
        "escape_step": statistics.fmean(escapes) if escapes else None,
        "escaped": f"{len(escapes)}/{len(one.escapes)}",
        "gap": one.gap,
        "verdict": one.verdict,
        "states": " ".join(run.state or "waiting" for run in one.records),
        "seeds": " ".join(str(run.seed) for run in one.records),
        "run_ids": " ".join(run.run_id for run in one.records),
        "data": " ".join(tests),
    }


def setting_table(combined: Sequence[Combination], metric: str) -> list[list[str]]:
    """Return the cells of a table with a row for each setting."""
    factors, whole = factor_names(one.factors for one in combined), metric == ESCAPED
    steps = [] if whole else ["steps to leave the plateau"]
    failed = ["of the finished"] if is_r2(metric) and any(one.unlearnt for one in combined) else []
    cells = [[*factors, metric, *failed, "finished", *steps, "train less val R²", "verdict", "run ids"]]
    for one in combined:
        row = _row(one, metric)
        escape = "" if row["escape_step"] is None else f"{row['escape_step']:,.0f}"
        cells.append(
            [
                *(short_value(one.factors.get(name, "-")) for name in factors),
                with_spread(one.score, None if one.unlearnt else one.sd, whole=whole),
                *(with_spread(one.mean, one.sd, whole=whole) for _ in failed),
                f"{one.finished}/{len(one.records)}",
                *(f"{escape} ({row['escaped']})".strip() if one.escapes else "" for _ in steps),
                "" if one.gap is None else f"{one.gap:+.3f}",
                one.verdict,
                row["run_ids"],
            ]
        )
    return cells


def tally_table(counts: Sequence[Tally]) -> list[list[str]]:
    """Return the cells of a table with a row for each value of a factor."""
    cells = [["factor", "value", "total", *GROUPS, "rate", "minutes", "how else"]]
    for tally in counts:
        groups = (tally.total, tally.finished, tally.unlearnt, tally.failed, tally.pruned, tally.open)
        rate = "" if tally.rate is None else f"{tally.rate:.0%}"
        minutes = "" if tally.minutes is None else f"{tally.minutes:.1f}"
        how = ", ".join(f"{count} {state or 'waiting'}" for state, count in tally.how.items())
        cells.append([tally.factor, str(tally.value), *map(str, groups), rate, minutes, how])
    return cells
