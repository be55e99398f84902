"""Error bars of finished runs held against their errors: scores by subset of the test rows, and the worst rows.

Legend: N test rows, n rows of a subset, S seeds, M scores, R resamples.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specvit.analysis.grouping import Setting, TestSet
from specvit.analysis.records import Run
from specvit.analysis.report import Row, bullets, table, write_report
from specvit.analysis.scaling_law import mean_over_seeds
from specvit.analysis.tested_rows import TestedRows, tested_rows
from specvit.metrics.conformal import LEVELS, errors
from specvit.metrics.format import bin_name, with_interval
from specvit.metrics.intervals import SEED, count_matrices, percentile_interval
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.scores import INTERVAL_ROWS
from specvit.metrics.statistics import LabelErrors
from specvit.utils.errors import FolderError
from specvit.utils.quantities import SNR_BIN_EDGES, unit_of
from specvit.utils.seeding import numpy_rng

Array = np.ndarray
TYPES = {"giants": (-np.inf, 2.5), "subgiants": (2.5, 3.5), "dwarfs": (3.5, np.inf)}
"""By log g, dex; the upper end is exclusive."""
LABEL_BINS, LABEL_ROWS = 8, 20
"""Most bins by the true label, of as many rows each, and the fewest rows of one."""
WORST = 10
SCORES = ("rmse", "bias", "mae", *LEVELS, "width", "nll", "crps")
DEFINITIONS = {
    "scores": "as in docs/scores.md, mean over seeds; mean error (`bias`): of predicted less true label",
    "[ ]": f"95 % of 1,000 resamples of the test rows and of seeds; not below {INTERVAL_ROWS} rows",
    "coverage, width": "of error bars calibrated by the validation rows, in bins of the column `snr` (flux / error); "
    "`specvit predict` and summaries take bins of `flux_snr`",
    "by chance": "2 √(p (1 - p) (1/n + 1/N)) at level p, N test rows and n calibration rows, of one seed; "
    "an upper limit for means over seeds and for folds that calibrate one another",
    "NLL, CRPS": "of the predicted distribution; if a run predicts none, of a normal one as wide as the error bar",
    "half-width": "of the error bar of level 0.68, root mean square; what `specvit predict` gives as std",
}


@dataclass(frozen=True)
class ErrorBars:
    """A setting's seeds, and its scores in each subset of the test rows, all of them first."""

    setting: Setting
    seeds: list[TestedRows]
    rows: list[Row]

    @property
    def name(self) -> str:
        """The setting's name."""
        return self.setting.name

    def of(self, by: str) -> list[Row]:
        """Return the rows of `all`, or by `snr`, by `true` label or by `type`."""
        return [row for row in self.rows if row["by"] == by]


@dataclass(frozen=True)
class ErrorReport:
    """The settings of a test set, that of the least RMSE first, and its bounds by bin, if they are known."""

    label: str
    test_set: TestSet
    settings: list[ErrorBars]
    bounds: list[Row]


def error_report(test_set: TestSet, label: str, bounds: list[Row]) -> tuple[ErrorReport, list[str]]:
    """Return the report, and a note on each setting with seeds that nothing calibrates.

    Raises `FolderError` if nothing calibrates any run.
    """
    settings, notes, refused = [], list[str](), list[FolderError]()
    for setting in test_set.settings:
        kept, seeds, problems = list[Run](), list[TestedRows](), list[FolderError]()
        for run in setting.runs:
            try:
                seeds.append(tested_rows(run, label))
                kept.append(run)
            except FolderError as problem:
                problems.append(problem)
        if problems:
            notes.append(
                f"note: {len(problems)} of {len(setting.runs)} seeds of {setting.name} left out: {problems[0]}"
            )
        if seeds:
            settings.append(ErrorBars(Setting(setting.name, tuple(kept)), seeds, list(_scored(seeds, label))))
        refused += problems
    if not settings:
        raise refused[0]
    return ErrorReport(label, test_set, sorted(settings, key=lambda one: one.rows[0]["rmse"]), bounds), notes


def _subsets(label: str, true_N: Array, snr_N: Array) -> Iterator[tuple[str, str, float, float]]:
    """Yield by what, name and ends of each subset but that of all rows."""
    yield from (("snr", bin_name(*ends), *ends) for ends in itertools.pairwise(SNR_BIN_EDGES))
    if (bins := min(LABEL_BINS, len(true_N) // LABEL_ROWS)) > 1:
        rounded = [float(f"{edge:.3g}") for edge in np.quantile(true_N, np.arange(1, bins) / bins)]
        edges = (-np.inf, *np.unique(rounded).tolist(), np.inf)
        yield from (("true", bin_name(*ends), *ends) for ends in itertools.pairwise(edges))
    if label == "log_g":
        yield from (("type", name, *ends) for name, ends in TYPES.items())


def _scored(seeds: Sequence[TestedRows], label: str) -> Iterator[Row]:
    """Yield the scores of a setting in each subset with two test rows or more."""
    true_N, snr_N = (seeds[0][name] for name in ("true", "snr"))
    terms_SNM = np.stack([_terms(one.errors) for one in seeds])
    yield {"by": "all", "subset": "all", "low": None, "high": None} | _row(seeds, terms_SNM, np.full(len(true_N), True))
    for by, name, low, high in _subsets(label, true_N, snr_N):
        value_N = snr_N if by == "snr" else true_N
        inside_N = (value_N >= low) & ((value_N < high) | (high == np.inf))
        if inside_N.sum() >= 2:
            yield {"by": by, "subset": name, "low": low, "high": high} | _row(seeds, terms_SNM, inside_N)


def _row(seeds: Sequence[TestedRows], terms_SNM: Array, inside_N: Array) -> Row:
    """Return what is measured on some of the test rows."""
    first, rows = seeds[0], int(inside_N.sum())
    row: Row = {"rows": rows, **_scores(terms_SNM[:, inside_N])}
    row |= {"snr": float(np.median(first["snr"][inside_N])), "true": float(first["true"][inside_N].mean())}
    for name, column in (("half_width", "half_68"), ("predicted_std", "predicted_std")):
        known = [one[column][inside_N] for one in seeds if column in one.table]
        row[name] = float(np.sqrt(np.mean(np.square(known)))) if known else None
    calibration = first.calibration_rows(inside_N)
    row["calibration_rows"] = round(calibration, 1)
    for name, level in LEVELS.items():
        chance = 2 * float(np.sqrt(level * (1 - level) * (1 / calibration + 1 / rows)))
        within = None if np.isnan(row[name]) else abs(row[name] - level) <= chance
        row |= {f"{name}_chance": chance, f"{name}_within": within}
    return row


def _terms(of_rows: LabelErrors) -> Array:
    """Return the terms (N, M) of which the scores are means; of rmse its square."""
    inside, of_std = (of_rows.inside_68_N, of_rows.inside_95_N), (of_rows.minus_log_density_N, of_rows.crps_N)
    terms = (of_rows.squared_N, of_rows.signed_N, of_rows.absolute_N, *inside, of_rows.width_N, *of_std)
    return np.stack(terms, axis=1)


def _scores(terms_SnM: Array) -> dict[str, float]:
    """Return each score, the mean over seeds, and the ends of its interval over rows and seeds."""
    seeds, rows, scores = terms_SnM.shape
    found_M, ends_M2 = _of_means(terms_SnM.mean(1)).mean(0), np.full((scores, 2), np.nan)
    if rows >= INTERVAL_ROWS:
        sums = [np.einsum("rn,snm->srm", counts_Rn, terms_SnM) for counts_Rn in count_matrices(rows)]
        score_SRM = _of_means(np.concatenate(sums, axis=1) / rows)
        for number in range(scores):
            drawn = numpy_rng(SEED, "bootstrap", "seeds", seeds)
            ends_M2[number] = percentile_interval(mean_over_seeds(list(score_SRM[..., number]), drawn))
    columns = np.column_stack([found_M, ends_M2]).tolist()
    names = ([name, f"{name}_low", f"{name}_high"] for name in SCORES)
    return dict(zip(itertools.chain(*names), itertools.chain(*columns), strict=True))


def _of_means(mean: Array) -> Array:
    """Return scores (..., M) from the means of their terms."""
    return np.concatenate([np.sqrt(mean[..., :1]), mean[..., 1:]], axis=-1)


def worst_rows(one: ErrorBars) -> list[Row]:
    """Return the test rows with the largest errors in units of their half-width, means over seeds."""
    ratios = [errors(seed["true"], seed["predicted"], seed["half_68"]) for seed in one.seeds]
    means = {
        name: np.mean([seed[column] for seed in one.seeds], axis=0)
        for name, column in (("predicted", "predicted"), ("std", "half_68"))
    }
    listed = one.seeds[0].table.assign(**means, ratio=np.mean(ratios, axis=0))
    listed = listed.sort_values("ratio", ascending=False, kind="stable")[:WORST]
    names = [name for name in ("file", "row", "star", "snr", "true", "predicted", "std", "ratio") if name in listed]
    return listed[names].to_dict("records")


def sentence(one: ErrorBars, label: str) -> str:
    """Return how a setting's error bars hold."""
    row, unit = one.rows[0], f" {unit_of(label)}".rstrip()
    shares = [
        f"error bars of {level:g} are infinite"
        if np.isnan(row[name])
        else f"{row[name]:.3f} inside error bars of {level:g} (±{row[f'{name}_chance']:.3f} by chance)"
        for name, level in LEVELS.items()
    ]
    return f"{one.name}: {', '.join(shares)}; RMSE {row['rmse']:.3g}, half-width {row['half_width']:.3g}{unit}"


def write_errors(report: ErrorReport, out: Path) -> None:
    """Write errors.csv, errors.md and errors.json into `out`; open ends of bins are null in JSON."""
    facts = {**report.test_set.facts(report.label), "unit": unit_of(report.label)}
    rows = []
    for one in report.settings:
        about = {**facts, **one.setting.seeds_and_ids}
        rows += [{"setting": one.name, **row, **about} for row in one.rows]
    worst = {one.name: worst_rows(one) for one in report.settings}
    written = {**facts, "definitions": DEFINITIONS, "settings": rows, "worst": worst, "bounds": report.bounds}
    write_report(out, "errors", rows=rows, facts=written, blocks=_blocks(report, worst))


def _blocks(report: ErrorReport, worst: dict[str, list[Row]]) -> Iterator[str]:
    """Yield the markdown."""
    unit = f", {unit_of(report.label)}" if unit_of(report.label) else ""
    yield f"# Error bars of {report.label}{unit}"
    yield f"{report.test_set.description}."
    yield table([_header("setting"), *(_cells(one.name, one.rows[0]) for one in report.settings)])
    for one in report.settings:
        yield f"## {one.name}"
        for by, title in (("snr", "S/N"), ("true", f"true {report.label}"), ("type", "type")):
            if one.of(by):
                yield table([_header(title), *(_cells(row["subset"], row) for row in one.of(by))])
        yield "Largest errors in units of the half-width (`std`):"
        cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in worst[one.name]]
        yield table([[*worst[one.name][0]], *cells])
    yield bullets(f"{name}: {meaning}" for name, meaning in DEFINITIONS.items())


def _header(first: str) -> list[str]:
    chances = [f"{100 * level:g} % by chance" for level in LEVELS.values()]
    titles = ["mean error" if name == "bias" else REGRESSION[name].title for name in SCORES]
    return [first, "rows", *titles, "half-width", *chances]


def _cells(first: str, row: Row) -> list[str]:
    scores = [with_interval(row, name, *REGRESSION[name].formats) for name in SCORES]
    within = {True: ", within", False: ", **beyond**", None: ""}
    chances = [f"±{row[f'{name}_chance']:.3f}{within[row[f'{name}_within']]}" for name in LEVELS]
    return [first, f"{row['rows']:,}", *scores, f"{row['half_width']:.4g}", *chances]
