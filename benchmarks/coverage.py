"""How often do the 95 % intervals hold the true score? python benchmarks/coverage.py [--repetitions 1000].

Test sets of N rows are drawn from a population whose scores are known, the intervals are made as `specvit` makes them,
and those that hold the population's score are counted. The population: labels uniform in 1 to 5, predictions
0.6 + 0.8 label + noise, so that errors depend on the label as those of a network that shrinks towards the mean; the
noise is Gaussian (sigma 0.3), or Gaussian with every twentieth row five times as noisy ("outliers"). Its scores are
integrals over the label, computed with 200 Gauss-Legendre nodes.

Also times the intervals of 10,000 rows. Writes nothing unless --json FILE is given.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from specvit.metrics.intervals import RESAMPLES, intervals
from specvit.metrics.statistics import RegressionRows

LOW, HIGH, OFFSET, SLOPE, SIGMA = 1.0, 5.0, 0.6, 0.8, 0.3
POPULATIONS = {"gaussian": ((1.0, 1.0),), "outliers": ((0.95, 1.0), (0.05, 5.0))}
"""Share of the rows and their noise in units of `SIGMA`."""
METRICS = ("r2", "mae", "rmse", "bias", "p90", "slope")
BATCH = 100


def main() -> None:
    """Print coverage for each population, number of rows and metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[50, 500, 2000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "numpy": np.__version__}
    facts |= {"resamples": RESAMPLES, "repetitions": options.repetitions, "seconds_10k_rows": round(seconds(10_000), 2)}
    print(json.dumps(facts))
    print(f"{'population':<10} {'rows':>5}  " + "  ".join(f"{name:>6}" for name in METRICS))
    table = []
    for population in POPULATIONS:
        for rows in options.rows:
            found = coverage(population, rows, options.repetitions)
            print(f"{population:<10} {rows:>5}  " + "  ".join(f"{found[name]:6.1%}" for name in METRICS), flush=True)
            table.append({"population": population, "rows": rows, **found})
    if options.json:
        options.json.write_text(json.dumps({**facts, "coverage": table}, indent=2) + "\n")


def coverage(population: str, rows: int, repetitions: int) -> dict[str, float]:
    """Return for each metric the share of test sets whose interval holds the population's score."""
    right, rng = truth(population), np.random.default_rng(rows)
    hits = dict.fromkeys(METRICS, 0)
    for first in range(0, repetitions, BATCH):
        sets = [draw(population, rows, rng) for _ in range(min(BATCH, repetitions - first))]
        for found in intervals([RegressionRows(*one) for one in sets]):
            for name in METRICS:
                low, high = found[name]
                hits[name] += low <= right[name] <= high
    return {name: count / repetitions for name, count in hits.items()}


def draw(population: str, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted labels of one test set, (rows,) each."""
    shares, factors = zip(*POPULATIONS[population], strict=True)
    true_N = rng.uniform(LOW, HIGH, rows)
    sigma_N = SIGMA * rng.choice(factors, size=rows, p=shares)
    return true_N, OFFSET + SLOPE * true_N + sigma_N * rng.standard_normal(rows)


def truth(population: str) -> dict[str, float]:
    """Return the population's scores, as defined by `metrics.scores.regression_scores` for endless rows."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    label = LOW + (HIGH - LOW) * (nodes + 1) / 2
    shift, parts = OFFSET + (SLOPE - 1) * label, POPULATIONS[population]

    def mean(values: Callable[[float], np.ndarray]) -> float:
        return sum(share * float(values(SIGMA * factor) @ weights) / 2 for share, factor in parts)

    def size(sigma: float) -> np.ndarray:  # the mean of a folded normal
        density = np.exp(-0.5 * (shift / sigma) ** 2) / np.sqrt(2 * np.pi)
        return 2 * sigma * density + shift * (1 - 2 * ndtr(-shift / sigma))

    square = mean(lambda sigma: shift**2 + sigma**2)
    return {
        "r2": 1 - square / ((HIGH - LOW) ** 2 / 12),
        "mae": mean(size),
        "rmse": square**0.5,
        "bias": brentq(lambda x: mean(lambda sigma: ndtr((x - shift) / sigma)) - 0.5, -9, 9),
        "p90": brentq(lambda x: mean(lambda s: ndtr((x - shift) / s) - ndtr((-x - shift) / s)) - 0.9, 0, 9),
        "slope": SLOPE,
    }


def seconds(rows: int) -> float:
    """Return how long the intervals of one label take."""
    one = draw("gaussian", rows, np.random.default_rng(0))
    started = time.perf_counter()
    intervals([RegressionRows(*one)])
    return time.perf_counter() - started


def commit() -> str:
    """Return the commit of the source tree, with a plus if it has changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
