"""Paired differences over seeds, as benchmarks print them."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student


def interval(values: Sequence[float]) -> str:
    """Return the mean and half the width of its 95 % interval by Student's t; of one value, that value."""
    if len(values) < 2:
        return f"{np.mean(values):+.3f}"
    width = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):+.3f} ± {width:.3f}"
