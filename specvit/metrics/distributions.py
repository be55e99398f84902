"""Distributions of a label about its prediction: those that losses assume, and what scores of them are computed from.

Both are families of a location and a scale; z is (label - location) / scale. Scores: Gneiting & Raftery 2007, "Strictly
proper scoring rules, prediction, and estimation", J. Am. Stat. Assoc. 102, 359. The configuration reads this module, so
it does not import NumPy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Distribution:
    """A family of a location and a scale. The functions take z and are those of scale 1."""

    std: float
    """Standard deviation at scale 1."""
    minus_log_density: Callable[[Any], Any]
    """-log p(z), natural logarithm; of NumPy arrays and of tensors. At scale b, add log b."""
    crps: Callable[[Any], Any]
    """Continuous ranked probability score, of NumPy arrays; at scale b, b times that."""
    cdf: Callable[[Any], Any]
    """Probability of values below z, of NumPy arrays; the same at every scale."""


@dataclass(frozen=True)
class Uncertainty:
    """The predicted standard deviation of each label, label units, and the distribution that it is of."""

    std: Any
    """(N, K), or (N,) of one label; a NumPy array, float64."""
    distribution: Distribution
    half_68: Any = None
    """Half-widths of calibrated intervals (`metrics.conformal`) of level 0.68, as `std`; None without calibration."""
    half_95: Any = None
    """Those of level 0.95."""

    @property
    def has(self) -> tuple[str, ...]:
        """What it has, of that which metrics need."""
        return ("std",) if self.half_68 is None else ("std", "intervals")

    def __getitem__(self, index: Any) -> "Uncertainty":
        """Return that of some rows, or of one label, as the arrays are indexed."""
        halves = (None if half is None else half[index] for half in (self.half_68, self.half_95))
        return Uncertainty(self.std[index], self.distribution, *halves)


def _normal_crps(z: Any) -> Any:
    """Return z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi): Gneiting & Raftery 2007, section 4.2, of the other sign."""
    import numpy as np
    from scipy.special import erf

    return z * erf(z / math.sqrt(2)) + math.sqrt(2 / math.pi) * np.exp(-0.5 * z * z) - 1 / math.sqrt(math.pi)


def _laplace_crps(z: Any) -> Any:
    """Return |z| + exp(-|z|) - 3/4; Jordan, Krueger & Lerch 2019, J. Stat. Softw. 90(12), appendix A."""
    import numpy as np

    return abs(z) + np.exp(-abs(z)) - 0.75


def _normal_cdf(z: Any) -> Any:
    from scipy.special import ndtr

    return ndtr(z)


def _laplace_cdf(z: Any) -> Any:
    import numpy as np

    return 0.5 - 0.5 * np.sign(z) * np.expm1(-abs(z))


NORMAL = Distribution(1.0, lambda z: 0.5 * z * z + 0.5 * math.log(2 * math.pi), _normal_crps, _normal_cdf)
LAPLACE = Distribution(math.sqrt(2), lambda z: abs(z) + math.log(2), _laplace_crps, _laplace_cdf)
BY_LOSS = {"gaussian": NORMAL, "laplace": LAPLACE}
"""By `loss.name`: the losses of which a network predicts a location and a log scale for each label."""
