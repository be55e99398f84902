"""Lines and bands of cool stars in the instrument's range, to mark on figures and to sum over.

Vacuum Angstrom. Atomic lines: VALD3, as in `tools/spectral_grid/lines.csv`. TiO heads: Huber & Herzberg 1979 and
Ram et al. 1999, within 1 Angstrom of those in `tools/spectral_grid/titanium_oxide.py`.
"""

from dataclasses import dataclass

import numpy as np

WING, STRONG_WING = 4.0, 12.0
"""Half width of a line's window, Angstrom: some instrumental widths, or the wings of the Ca II triplet."""


@dataclass(frozen=True)
class Feature:
    """Stretches of the spectrum that belong to one line, multiplet or band."""

    name: str
    windows: tuple[tuple[float, float], ...]
    """First and last vacuum Angstrom of each stretch."""
    places: tuple[float, ...]
    """Line centres and band heads; figures put the name at the first."""

    def inside(self, wave_P: np.ndarray) -> np.ndarray:
        """Return a mask (P,) of its pixels."""
        return np.any([(wave_P >= low) & (wave_P <= high) for low, high in self.windows], axis=0)


def _lines(name: str, *places: float, wing: float = WING) -> Feature:
    return Feature(name, tuple((place - wing, place + wing) for place in places), places)


def _band(name: str, heads: tuple[float, ...], end: float) -> Feature:
    """Return a band, which is degraded to the red: from its first head to `end`."""
    return Feature(name, ((heads[0] - 1.0, end),), heads)


FEATURES = (
    _lines("Ca II triplet", 8544.438, 8500.358, 8664.521, wing=STRONG_WING),
    _lines("Na I", 8197.073, 8185.506),
    _lines("K I", 7667.009, 7701.083),
    _lines("Mg I", 8809.176),
    _lines("Fe I", 8691.010, 8329.344, 8390.076, 8470.733, 8516.411, 8826.643),
    _lines("Ti I", 8437.272, 8366.536, 8380.164, 8384.834, 8399.205, 8414.669, 8428.823),
    _lines("Ca I", 7150.121, 7204.185, 7328.164),
    _lines("Si I", 7425.541, 7407.812, 7411.123, 7417.991),
    _lines("Paschen", 8752.875, 8600.754),
    _band("TiO gamma 0-0", (7127.9,), 7330.0),
    _band("TiO gamma 0-1", (7591.6, 7631.0), 7860.0),
    _band("TiO gamma 0-2", (8209.2,), 8300.0),
    _band("TiO epsilon 0-0", (8434.3, 8444.3, 8454.3), 8480.0),
)
"""They may overlap, so that a pixel can count for two of them."""
