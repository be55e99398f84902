"""Cramér-Rao and van Trees bounds of a test set's stars, as R² by S/N, by magnitude and over all stars.

Shape suffixes: N stars, L labels.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from specvit.analysis.bounds.inputs import Stars
from specvit.analysis.bounds.van_trees import Field, Window, faded, field, gradients, inward_steps, whole_window
from specvit.physics.fisher import Information, cramer_rao, information
from specvit.utils.errors import DataError
from specvit.utils.quantities import MAG_BIN_EDGES, SNR_BIN_EDGES

Array = np.ndarray
Row = dict[str, Any]

FIXED_MAGNITUDES = (20.0, 21.5, 22.0, 22.5)
FIXED_STARS = 1000
"""Most stars that are placed at those magnitudes."""
STILL = ("C_M",)
"""Labels along which the field of the van Trees bound does not move, unless they are the estimated one. Where carbon
begins to outweigh oxygen, spectra change within hundredths of a dex, and a field that moves across weakens the bound;
carbon says little about the other labels, so revealing it to the estimator costs some .001 in R²."""
LEAST = 30
"""Fewest rows of a bin with a van Trees bound, which is a ratio of two means."""
NO_VAN_TREES = {
    "file": "a file does not say how its stars were drawn, nor how their noise follows the labels",
    "nodes": "it needs labels with a density, and of data.label_prior=published most are at nodes",
}


@dataclass(frozen=True)
class Bounds:
    """The rows of the tables: `by` (snr, mag, all), a bin's ends, and each bound there."""

    rows: list[Row]
    fixed: list[Row]
    """At fixed magnitudes; none for a file's stars, whose errors hold at their own magnitude only."""
    no_van_trees: str
    """The reason why the van Trees bound was left out, or ""."""
    without_bound: int
    """Stars whose Fisher matrix is singular: their Cramér-Rao variance is infinite."""
    seconds: float


def r2_bounds(stars: Stars, label: str, snr_N: Array, say: Callable[[str], None]) -> Bounds:
    """Return all bounds for `label`; `snr_N` is the stars' S/N in the runs' tables."""
    started = time.perf_counter()
    column = stars.names.index(label)
    say(f"information in {len(stars):,} spectra")
    here = information(stars.observe, stars.place_NL)
    span = float(stars.span_L[column])
    variance_N = cramer_rao(here.free_amplitude(), column) * span**2
    van_trees = _van_trees(stars, here, column, say) if stars.uniform else None
    snr_N = snr_N if van_trees is None else van_trees.snr_N
    label_N, rows = stars.labels_of(label), []
    for place, window in _bins(stars.mag_N, snr_N, len(stars.names), van_trees):
        inside_N = window.inside_N
        row = {**place, "snr": float(np.median(snr_N[inside_N]))}
        row |= cramer_rao_row(variance_N[inside_N], float(label_N[inside_N].var()))
        rows.append(row | _van_trees_row(van_trees, window, row["label_variance"], span))
    fixed = _fixed(stars.first(FIXED_STARS), column, span, say) if stars.drawn is not None else []
    why = "" if stars.uniform else NO_VAN_TREES["file" if stars.drawn is None else "nodes"]
    return Bounds(rows, fixed, why, int(np.isinf(variance_N).sum()), time.perf_counter() - started)


def cramer_rao_row(variance_n: Array, label_variance: float) -> Row:
    """Return R² by the mean and by the median of the variance bounds of some stars, and these, in label units."""
    mean, median = float(np.mean(variance_n)), float(np.median(variance_n))
    bounds = {"crlb_mean": mean, "crlb_median": median}
    scores = {f"{name}_r2": r2_of(value, label_variance) for name, value in bounds.items()}
    return {"rows": len(variance_n), "label_variance": label_variance, **bounds, **scores}


def r2_of(variance: float, label_variance: float) -> float:
    """Return 1 - variance / label_variance, NaN for a label that is the same in every row."""
    return 1 - variance / label_variance if label_variance > 0 else float("nan")


@dataclass(frozen=True)
class _VanTrees:
    """Input of the van Trees bound: the field, and S/N with its derivatives by the labels."""

    field: Field
    snr_N: Array
    slope_NL: Array


def _van_trees(stars: Stars, here: Information, column: int, say: Callable[[str], None]) -> _VanTrees:
    """Return the field of drawn stars and their S/N, in coordinates of the box."""
    axes = [axis for axis, name in enumerate(stars.names) if name not in STILL or axis == column]
    say(f"how it changes with {', '.join(stars.names[axis] for axis in axes)}")
    gradient_MNLL = gradients(stars.observe, stars.place_NL, here, axes)
    snr_N, slope_NL = stars.signal_to_noise(), np.zeros(stars.place_NL.shape)
    for axis in axes:
        moved_NL = inward_steps(stars.place_NL, axis)
        step_N = (moved_NL - stars.place_NL)[:, axis].numpy()
        slope_NL[:, axis] = (stars.signal_to_noise(moved_NL) - snr_N) / step_N
    return _VanTrees(field(here, gradient_MNLL, stars.place_NL.numpy(), column, axes), snr_N, slope_NL)


def _bins(mag_N: Array, snr_N: Array, labels: int, van_trees: _VanTrees | None) -> list[tuple[Row, Window]]:
    """Return the whole set and the bins with two or more stars, each with its window."""
    bins: list[tuple[Row, Window]] = [
        ({"by": "all", "low": None, "high": None}, whole_window(np.isfinite(snr_N), labels))
    ]
    for by, value_N, edges in (("snr", snr_N, SNR_BIN_EDGES), ("mag", mag_N, MAG_BIN_EDGES)):
        for low, high in itertools.pairwise(edges):
            window = whole_window((value_N >= low) & (value_N < high), labels)
            if by == "snr" and van_trees is not None:
                window = faded(snr_N, van_trees.slope_NL, low, high)
            if window.inside_N.sum() >= 2:
                bins.append(({"by": by, "low": low, "high": high}, window))
    return bins


def _van_trees_row(van_trees: _VanTrees | None, window: Window, label_variance: float, span: float) -> Row:
    """Return the bound for any estimator in label units and as R² with its sampling error, None where there is none."""
    if van_trees is None or window.inside_N.sum() < LEAST:
        return dict.fromkeys(("van_trees", "van_trees_r2", "van_trees_r2_se"))
    bound, error = (span**2 * value for value in van_trees.field.bound(window))
    r2, r2_error = r2_of(bound, label_variance), 1 - r2_of(error, label_variance)
    return {"van_trees": bound, "van_trees_r2": r2, "van_trees_r2_se": r2_error}


def _fixed(stars: Stars, column: int, span: float, say: Callable[[str], None]) -> list[Row]:
    """Return the Cramér-Rao bounds of the stars at fixed magnitudes, against the variance of their population."""
    say(f"{len(stars):,} of the stars at magnitudes {', '.join(f'{mag:g}' for mag in FIXED_MAGNITUDES)}")
    rows, label_variance = [], stars.population_variance(stars.names[column])
    for mag in FIXED_MAGNITUDES:
        placed = stars.at_magnitude(mag)
        matrix_NLL = information(placed.observe, placed.place_NL).free_amplitude()
        row = cramer_rao_row(cramer_rao(matrix_NLL, column) * span**2, label_variance)
        snr = float(np.median(placed.signal_to_noise()))
        rows.append({"by": "fixed mag", "low": mag, "high": mag, "snr": snr, **row})
    return rows


def check_labels_agree(stars: Stars, label: str, true_N: Array, where: str) -> None:
    """Raise `DataError` unless a run was tested on these stars, row by row."""
    slack, true_N = 1e-6 * float(stars.span_L[stars.names.index(label)]), true_N[: len(stars)]
    if len(true_N) < len(stars) or not np.allclose(stars.labels_of(label), true_N, rtol=1e-6, atol=slack):
        what = f"true {label} is not that of the test set, which has changed since"
        raise DataError(what, where=where, remedy="train the run again, with train.rerun=true")
