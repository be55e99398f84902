"""Every stored quantity: its name, shape, unit and meaning. The one place to look up what a column holds.

Shape legend, used as suffixes in the whole project:
    B batch   N rows or tokens (said where it matters)   P pixels   K labels or classes   D model width
    H heads   L blocks   S sequence length with prefix tokens
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WAVE = "spectrumdataset/wave"
FLUX = "dataset/arrays/flux/value"
ERROR = "dataset/arrays/error/value"
OBSERVED = "observed"
"""Attribute of the flux: true where it has the noise of its errors already."""
MASKED = "dataset/masked_pixels"
"""How many pixels of each row are masked (N,); without it none is."""
PARAMS = "dataset/params"
STAR_ID = "star_id"
"""Column of the label table, beside the labels: which star a spectrum is of, a number or a name."""

NUM_PIXELS = 4096
"""Pixels of the reference instrument (Subaru PFS, medium-resolution arm); files may have another number."""


@dataclass(frozen=True)
class Quantity:
    """One column of the label table."""

    name: str
    unit: str
    meaning: str
    low: float
    high: float
    """Bounds outside which `data inspect` calls the value out of range: physical limits, not a grid's."""

    @property
    def axis_label(self) -> str:
        """Return the name with its unit, for figures."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


LABELS: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity("T_eff", "K", "effective temperature", 1000.0, 100_000.0),
        Quantity("log_g", "dex", "log10 of the surface gravity in cm s^-2", -2.0, 10.0),
        Quantity("M_H", "dex", "metallicity [M/H] relative to the Sun", -10.0, 3.0),
        Quantity("a_M", "dex", "alpha-element enhancement [alpha/M]", -3.0, 3.0),
        Quantity("C_M", "dex", "carbon enhancement [C/M]", -5.0, 5.0),
        Quantity("mag", "mag", "apparent AB magnitude in HSC i", -30.0, 40.0),
        Quantity("redshift", "", "redshift z = v/c of the star", -0.1, 10.0),
        Quantity("snr", "", "median signal-to-noise ratio per pixel", 0.0, 1e6),
    )
}


def unit_of(label: str) -> str:
    """Return the unit of `label`, or an empty string for a column that specvit does not know."""
    return LABELS[label].unit if label in LABELS else ""


SNR_BIN_EDGES = (0.0, 4.0, 6.0, 8.0, 10.0, 14.0, 18.0, float("inf"))
"""Edges of the bins in S/N = median(flux / error) / noise_level; one constant for every table."""

MAG_BIN_EDGES = (float("-inf"), 20.5, 21.0, 21.5, 22.0, 22.5, float("inf"))
"""Edges of the bins in `mag`; the reference set is uniform in 20.5 to 22.5."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes: network input (B, P) and targets, (B, K) normalised labels or (B,) class numbers."""

    flux_BP: "Tensor"
    target: "Tensor"
