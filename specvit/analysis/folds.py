"""Scores of a cross-validation: those of the predictions of all folds together (`pooled_folds`), star by star.

The interval of a score is over stars: 1,000 resamples of them, the same for all settings, each scored for every seed
and averaged over seeds. It says nothing of other seeds or training stars; ± is the standard deviation over seeds.

Shape suffixes: R resamples of the stars.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specvit.analysis.pooled_folds import pool_folds, pool_key
from specvit.analysis.records import Run, Runs, rows_of, with_predictions
from specvit.analysis.report import Row, bullets, table, write_report
from specvit.metrics.intervals import Interval, percentile_interval, resampled
from specvit.metrics.metrics import REGRESSION
from specvit.metrics.statistics import RegressionRows
from specvit.run_folder.identity import without_repeated
from specvit.study.table import factor_names, setting_text
from specvit.utils.errors import FolderError
from specvit.utils.quantities import STAR_ID, unit_of
from specvit.utils.text import short_value

Array = np.ndarray
SCORES = ("r2", "mae", "rmse", "bias", "slope")
WORST = 10
"""Stars that a report lists, by the size of their error."""
DEFINITIONS = {
    "scores": "of the predictions of all folds together, mean over seeds; ±: standard deviation over seeds",
    "[ ]": "95 % of 1,000 resamples of the stars, the same for all settings, of the mean over seeds",
    "difference": "in R², between settings that differ in one factor, on the same resamples of the same stars",
    "error": "of a star: predicted less true label, mean over seeds",
}


@dataclass(frozen=True)
class Score:
    """A score of one setting: mean and standard deviation over seeds, and the interval of the mean over stars."""

    mean: float
    sd: float | None
    interval: Interval
    mean_R: Array

    def text(self, name: str) -> str:
        """Return it with the digits of its metric."""
        digits, ends = REGRESSION[name].formats
        low, high = self.interval
        spread = "" if self.sd is None else f" ± {self.sd:{ends}}"
        return f"{self.mean:{digits}}{spread} [{low:{ends}}, {high:{ends}}]"


@dataclass(frozen=True)
class Setting:
    """The pooled predictions of runs that differ in seed and fold alone."""

    label: str
    factors: dict[str, Any]
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    stars: Any
    """DataFrame of S stars, by id: `true`, and `predicted`, the mean over seeds."""
    scores: dict[str, Score]


def settings_of(runs: Runs, label: str) -> tuple[list[Setting], list[str]]:
    """Return the settings of cross-validated runs that predict a label, and a note on each seed without all folds.

    Raises `FolderError` if no seed of any setting has all folds.
    """
    tested, notes = with_predictions(runs, label, noiseless=True)
    pooled, more = pool_folds(tested, label)
    groups = [rows_of(group) for _, group in pooled.groupby(list(map(pool_key, rows_of(pooled))), sort=False)]
    factors = _distinct([group[0] for group in groups])
    return [_setting(label, *both) for both in zip(groups, factors, strict=True)], [*notes, *more]


def _setting(label: str, seeds: Sequence[Run], factors: dict[str, Any]) -> Setting:
    seeds = sorted(seeds, key=lambda run: run.seed)
    by_seed = {run.seed: pd.DataFrame({"true": run.true_N, "predicted": run.predicted_N}, run.star_N) for run in seeds}
    mean = pd.concat(list(by_seed.values())).groupby(level=0).mean()
    return Setting(
        label, factors, tuple(part for run in seeds for part in run.parts), tuple(by_seed), mean, _scores(by_seed)
    )


def _distinct(firsts: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the factors of settings, each given by a run of it.

    Where several have the same ones, as those of two studies may, all get the keys in which these differ.
    """
    places = [
        {
            **without_repeated(run.identity["config"]),
            **{f"data.{name}": getattr(run.config.data, name) for name in ("num_samples", "root", "file_path")},
        }
        for run in firsts
    ]
    same = [[other for other, run in zip(places, firsts, strict=True) if run.setting == one.setting] for one in firsts]
    differing = {
        key: None
        for others, own in zip(same, places, strict=True)
        for key in own
        if any(other.get(key) != own[key] for other in others)
    }
    return [
        {**run.factors, **{key: own.get(key) for key in differing}} for run, own in zip(firsts, places, strict=True)
    ]


def _scores(pooled: dict[int, Any]) -> dict[str, Score]:
    """Return the scores of one setting from its stars by seed."""
    sets = [RegressionRows(stars.true.to_numpy(), stars.predicted.to_numpy()) for stars in pooled.values()]
    resamples = resampled(sets, SCORES)
    scores = {}
    for name in SCORES:
        values = [float(REGRESSION[name].function(of_seed)) for of_seed in sets]
        mean_R = np.mean([of_seed[name] for of_seed in resamples], axis=0)
        spread = statistics.stdev(values) if len(values) > 1 else None
        scores[name] = Score(statistics.fmean(values), spread, percentile_interval(mean_R), mean_R)
    return scores


def difference_sentences(settings: Sequence[Setting]) -> Iterator[str]:
    """Yield the difference in R² of each setting from the first one that differs from it in one factor alone."""
    for factor in factor_names(one.factors for one in settings):
        firsts: dict[str, Setting] = {}
        for one in settings:
            others = {key: value for key, value in one.factors.items() if key != factor}
            first = firsts.setdefault(repr(sorted(others.items(), key=str)), one)
            if first is one:
                continue
            values = (short_value(setting.factors.get(factor)) for setting in (one, first))
            what = f"{one.label}, {factor}={' against '.join(values)}"
            what += f" ({setting_text(others)})" if others else ""
            if not first.stars.true.equals(one.stars.true):
                yield f"{what}: not compared, since their stars or labels differ"
                continue
            low, high = percentile_interval(one.scores["r2"].mean_R - first.scores["r2"].mean_R)
            size = one.scores["r2"].mean - first.scores["r2"].mean
            seeds = " against ".join(" ".join(map(str, setting.seeds)) for setting in (one, first))
            unequal = f"; seeds {seeds}" if one.seeds != first.seeds else ""
            yield f"{what}: R² {size:+.3f} [{low:+.3f}, {high:+.3f}], {len(one.stars)} stars{unequal}"


def write_folds(settings: Sequence[Setting], where: str, out: Path) -> list[str]:
    """Write folds.csv, .md and .json into `out`; return the sentences on differences."""
    by_label = {label: [one for one in settings if one.label == label] for label in _labels(settings)}
    sentences = [sentence for of_label in by_label.values() for sentence in difference_sentences(of_label)]
    blocks, worst = [f"# {where}"], {}
    for label, of_label in by_label.items():
        worst[label] = _worst(of_label)
        unit = f", {unit_of(label)}" if unit_of(label) else ""
        blocks += [
            f"## {label}{unit}",
            table(_cells(of_label)),
            _worst_title(of_label),
            table(_star_cells(worst[label])),
        ]
    blocks += [bullets(sentences), bullets(f"{name}: {meaning}" for name, meaning in DEFINITIONS.items())]
    rows = [_row(one) for one in settings]
    facts = {"definitions": DEFINITIONS, "settings": rows, "differences": sentences, "worst": worst, "from": where}
    write_report(out, "folds", rows=rows, facts=facts, blocks=blocks)
    return sentences


def cross_validated(runs: Runs) -> Runs:
    """Return the runs with folds; raises `FolderError` if there is none."""
    inside = [config.data.folds > 0 for config in runs.config]
    if not any(inside):
        where = ", ".join(dict.fromkeys(str(folder.parent) for folder in runs.folder))
        raise FolderError("holds no run of a cross-validation", where=where, remedy="train with data.folds=5")
    return runs[inside]


def labels_of(runs: Runs) -> list[str]:
    """Return the labels that runs predict, in order of first appearance."""
    return list(dict.fromkeys(label for config in runs.config for label in config.data.param))


def _labels(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(one.label for one in settings))


def _row(one: Setting) -> Row:
    row: Row = {**one.factors, "label": one.label, "unit": unit_of(one.label), "stars": len(one.stars)}
    for name, score in one.scores.items():
        low, high = score.interval
        row |= {name: score.mean, f"{name}_sd": score.sd, f"{name}_low": low, f"{name}_high": high}
    ids = " ".join(run.run_id for run in one.runs)
    return row | {"seeds": " ".join(map(str, one.seeds)), "run_ids": ids}


def _cells(settings: Sequence[Setting]) -> list[list[str]]:
    factors = factor_names(one.factors for one in settings)
    cells = [[*factors, *(REGRESSION[name].title for name in SCORES), "stars", "seeds"]]
    for one in settings:
        values = [short_value(one.factors.get(name, "-")) for name in factors]
        scores = [one.scores[name].text(name) for name in SCORES]
        cells.append([*values, *scores, str(len(one.stars)), str(len(one.seeds))])
    return cells


def _best(settings: Sequence[Setting]) -> Setting:
    return max(settings, key=lambda one: one.scores["r2"].mean)


def _worst(settings: Sequence[Setting]) -> list[Row]:
    """Return the stars with the largest errors in the best setting, each with its mean error in all settings."""
    stars = _best(settings).stars
    errors: Any = pd.concat([one.stars.predicted - one.stars.true for one in settings]).groupby(level=0).mean()
    error_S = stars.predicted - stars.true
    order = error_S.abs().sort_values(ascending=False).index[:WORST]
    return [
        {STAR_ID: star, "true": stars.true[star], "predicted": stars.predicted[star], "error": error_S[star]}
        | {"error_in_all": errors[star]}
        for star in order
    ]


def _worst_title(settings: Sequence[Setting]) -> str:
    best = _best(settings)
    return f"Largest errors of the setting with the highest R² ({setting_text(best.factors) or 'all'}):"


def _star_cells(worst: Sequence[Row]) -> list[list[str]]:
    numbers = ("true", "predicted", "error", "error_in_all")
    body = [[str(row[STAR_ID]), *(f"{row[name]:.4g}" for name in numbers)] for row in worst]
    return [[STAR_ID, "true", "predicted", "error", "mean error of all settings"], *body]
