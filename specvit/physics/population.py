"""The stars of the built-in data set: one row is a pure function of (seed, split, row)."""

import numpy as np
from numpy.typing import NDArray

from specvit.physics.instrument import pixel_error
from specvit.physics.synthesis import clean_flux
from specvit.seeding import numpy_rng

RANGES: dict[str, tuple[float, float]] = {
    "T_eff": (3750.0, 6000.0),
    "log_g": (1.0, 5.0),
    "M_H": (-2.5, 0.75),
    "a_M": (-0.25, 0.5),
    "C_M": (-0.75, 0.5),
    "mag": (20.5, 22.5),
}
"""Uniform ranges of the reference set, labels of the BOSZ library (Bohlin et al. 2017, AJ 153, 234)."""

THROUGHPUT = (1.13, 0.15)
"""Median and scatter (of its natural logarithm) of the light that reaches the fibre, relative to the calculator's."""


def draw_labels(seed: int, split: str, row: int) -> dict[str, float]:
    """Return the labels of one star, its magnitude and redshift, and the `throughput` of its exposure."""
    rng = numpy_rng(seed, "builtin", split, row)
    labels = {name: float(rng.uniform(low, high)) for name, (low, high) in RANGES.items()}
    median, scatter = THROUGHPUT
    return labels | {"redshift": 0.0, "throughput": float(median * np.exp(scatter * rng.standard_normal()))}


def make_row(seed: int, split: str, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, float]]:
    """Return clean flux (P,), its 1 sigma error (P,), and the label columns with `snr`, the median of flux / error."""
    labels = draw_labels(seed, split, row)
    throughput = labels.pop("throughput")
    flux_P = clean_flux(labels)
    error_P = pixel_error(flux_P, labels["mag"], throughput)
    return flux_P, error_P, labels | {"snr": float(np.median(flux_P / error_P))}
