"""Test rows of finished runs with their error bars, from the tables in their folders.

Error bars are made as by `specvit predict`: a run's validation rows calibrate the rows that it tests. Of a
cross-validation each fold's own validation rows do, and the rows of all folds of a seed are one set. Bins are by the
column `snr`, which both tables have; those of `specvit predict` are by `flux_snr`, which the table of the test lacks.

Legend: N test rows, n calibration rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from specvit.analysis.records import Run, read_table
from specvit.metrics.conformal import LEVELS, calibrated, residuals
from specvit.metrics.distributions import BY_LOSS, Distribution, Uncertainty
from specvit.metrics.intervals import SEED
from specvit.metrics.statistics import LabelErrors
from specvit.run_folder.folder import TABLES
from specvit.run_folder.identity import num_rows
from specvit.utils.errors import FolderError
from specvit.utils.quantities import STAR_ID
from specvit.utils.seeding import numpy_rng

Array = np.ndarray


@dataclass(frozen=True)
class TestedRows:
    """One seed's N test rows that have the label.

    Columns of `table`: `file`, `row`, `star` if there are ids, `snr`, `true`, `predicted`; `std` of the distribution,
    `half_68` and `half_95` of calibrated intervals, `predicted_std` of a run that predicts one, label units; `pit`, the
    probability of labels below the true one; `part`, `group` and `group_rows`: from which group of how many calibration
    rows the half-width is.
    """

    __test__ = False  # pytest must not collect it

    table: Any
    distribution: Distribution

    def __getitem__(self, name: str) -> Array:
        """Return a column, (N,)."""
        return self.table[name].to_numpy()

    @property
    def predicts_std(self) -> bool:
        """Whether the run predicts a distribution."""
        return "predicted_std" in self.table

    @cached_property
    def errors(self) -> LabelErrors:
        """The errors, with the uncertainty of each row."""
        uncertainty = Uncertainty(self["std"], self.distribution, self["half_68"], self["half_95"])
        return LabelErrors(self["true"], self["predicted"], 1.0, uncertainty)

    def calibration_rows(self, inside_N: Array) -> float:
        """Return n of the variance p (1 - p) / n that calibration gives the coverage of some rows.

        Groups are independent, so 1 / n is the sum of share² / rows over them.
        """
        groups = self.table[inside_N].groupby(["part", "group"])["group_rows"].agg(["size", "first"])
        return float(1 / ((groups["size"] / inside_N.sum()) ** 2 / groups["first"]).sum())


def tested_rows(run: Run, label: str) -> TestedRows:
    """Return the test rows of a run, or of a pooled one; raises `FolderError` if a table is missing or damaged."""
    parts = [_of_run(part, label) for part in run.parts or (run,)]
    numbered = [table.assign(part=number) for number, (table, _) in enumerate(parts)]
    return TestedRows(pd.concat(numbered, ignore_index=True), parts[0][1])


def _of_run(run: Run, label: str) -> tuple[Any, Distribution]:
    """Return the columns of a run, and the distribution that its `std` is of."""
    test, val = (_read(run, split, label) for split in ("test", "val"))
    family = BY_LOSS.get(run.config.loss.name) if "predicted_std" in test and "predicted_std" in val else None
    std_n = None if family is None else val["predicted_std"].to_numpy()
    predicted = None if family is None else Uncertainty(test[["predicted_std"]].to_numpy(), family)
    found = residuals(val["true"].to_numpy(), val["predicted"].to_numpy(), val["snr"].to_numpy(), std_n)
    bars = calibrated(predicted, [found], test["snr"].to_numpy())[:, 0]
    edges = found.at(LEVELS["coverage_68"]).edges
    group_N, members = _groups(edges, test["snr"].to_numpy(), val["snr"].to_numpy())
    error_N, error_n = ((one["true"] - one["predicted"]).to_numpy() for one in (test, val))
    if family is None:
        pit_N = _ranks(error_N, group_N, [error_n[rows] for rows in members])
    else:
        pit_N = family.cdf(error_N / bars.std * family.std)
    halves = {"std": bars.std, "half_68": bars.half_68, "half_95": bars.half_95}
    group_rows = np.array([len(rows) for rows in members])[group_N]
    return test.assign(**halves, pit=pit_N, group=group_N, group_rows=group_rows), bars.distribution


def _read(run: Run, split: str, label: str) -> Any:
    """Return the rows of a run's table that have the label."""
    names = {f"true_{label}": "true", f"pred_{label}": "predicted", f"std_{label}": "predicted_std", STAR_ID: "star"}
    try:
        table = read_table(run.folder / TABLES[split]).rename(columns=names)
        numbers = ["snr", "true", "predicted", *({"predicted_std"} & {*table})]
        table = table[["file", "row", *({"star"} & {*table}), *numbers]].astype(dict.fromkeys(numbers, float))
        whole = len(table) == num_rows(run.identity["data"][split])
        fits = whole and bool(np.isfinite(table[numbers[2:]]).all(axis=None))
        table = table[table["true"].notna()]
    except (OSError, ValueError, KeyError, TypeError):
        fits, table = False, None
    if not fits or table is None or table.empty:
        remedy = f"`specvit evaluate {run.folder} --split val` writes it" if split == "val" else "train it again"
        raise FolderError(
            f"has no {TABLES[split]} with {label}, or a damaged one", where=str(run.folder), remedy=remedy
        )
    return table


def _groups(edges: Array, snr_N: Array, snr_n: Array) -> tuple[Array, list[Array]]:
    """Return the group (N,) that each row's half-width is from, and the numbers of the calibration rows of each group.

    Groups are the bins of `metrics.conformal.HalfWidths`; the last one is all rows, for a row without S/N.
    """
    bin_N, bin_n = (np.searchsorted(edges, snr, side="right") for snr in (snr_N, snr_n))
    bins = [np.flatnonzero((bin_n == number) & ~np.isnan(snr_n)) for number in range(len(edges) + 1)]
    every = np.arange(len(snr_n))
    members = [*(bins if len(edges) else [every]), every]
    return np.where(np.isnan(snr_N), len(bins), bin_N), members


def _ranks(error_N: Array, group_N: Array, errors: Sequence[Array]) -> Array:
    """Return the rank of each error among the validation errors of its group, (N,), 0 to 1.

    The place between two ranks is drawn at random, so that rows like the validation rows are uniform.
    """
    rows = len(error_N)
    drawn_N, rank_N = numpy_rng(SEED, "bootstrap", "ranks", rows).uniform(size=rows), np.empty(rows)
    for number, error_n in enumerate(errors):
        here, sorted_n = group_N == number, np.sort(error_n)
        below, upto = (np.searchsorted(sorted_n, error_N[here], side=side) for side in ("left", "right"))
        rank_N[here] = (below + drawn_N[here] * (upto - below + 1)) / (len(sorted_n) + 1)
    return rank_N
