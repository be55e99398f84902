"""Steps to leave the plateau with runs that never left it: these are censored at their last step, never dropped."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from specvit.analysis.records import Run

Pair = tuple[Run, Run]
PERMUTATIONS = 9_999
"""Most permutations of a test; with up to seven seeds there are fewer, and the test is exact."""


def time_of(record: Run) -> tuple[float, bool]:
    """Return the first step off the plateau and True, or the last step and False."""
    step = record.escape_step
    return (step, True) if step is not None else (float(record.outcome.rows[-1]["step"]), False)


def resolution(record: Run) -> float:
    """Return the fewest steps between two validations."""
    steps = [0.0, *(float(row["step"]) for row in record.outcome.rows)]
    return min(after - before for before, after in itertools.pairwise(steps))


def restricted_difference(pairs_of: Mapping[int, Mapping[str, Pair]]) -> tuple[float, float]:
    """Return the difference of mean steps within a horizon, and the horizon: the first censored step."""
    pairs = [pair for by_rest in pairs_of.values() for pair in by_rest.values()]
    horizon = min(step for pair in pairs for step, left in map(time_of, pair) if not left)
    by_seed = [
        [min(time_of(own)[0], horizon) - min(time_of(other)[0], horizon) for own, other in by_rest.values()]
        for by_rest in pairs_of.values()
    ]
    return float(np.mean([np.mean(values) for values in by_seed])), horizon


def least_p(seeds: int) -> float:
    """Return the least p that an exact test of so many seeds on either side can have: .1 with three, .008 with five."""
    return 2 / math.comb(2 * seeds, seeds)


def logrank_p(pairs_of: Mapping[int, Mapping[str, Pair]]) -> float:
    """Return the two-sided p of a log-rank test, stratified by all other factors and exact over seeds.

    The runs of one seed and side are permuted together, since they share initial weights and rows. The usual normal
    approximation would call one in ten null studies of three seeds better or worse.
    """
    from scipy import stats  # 0.7 s, which only few studies need

    strata: dict[str, list[tuple[int, int, Run]]] = {}
    for seed, by_rest in pairs_of.items():
        for rest, pair in by_rest.items():
            strata.setdefault(rest, []).extend((side, seed, record) for side, record in enumerate(pair))
    units: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for members in strata.values():
        scores = _scores([time_of(record) for _, _, record in members])
        for (side, seed, _), score in zip(members, scores, strict=True):
            units[side][seed] = units[side].get(seed, 0.0) + float(score)
    sides = [np.array(list(side.values())) for side in units]
    return float(
        stats.permutation_test(
            sides,
            lambda one, other, axis: one.sum(axis) - other.sum(axis),
            permutation_type="independent",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            rng=np.random.default_rng(0),
        ).pvalue
    )


def _scores(times: Sequence[tuple[float, bool]]) -> np.ndarray:
    """Return the log-rank scores: 1 if a run left, less the cumulative hazard (Nelson and Aalen) at its time."""
    time_N = np.array([time for time, _ in times])
    left_N = np.array([left for _, left in times])
    hazard_N = left_N / (time_N[None, :] >= time_N[:, None]).sum(1)  # each event over those still at risk then
    return left_N - np.where(time_N[None, :] <= time_N[:, None], hazard_N[None, :], 0.0).sum(1)
