"""Strong lines and TiO bands of the synthesis beside other people's spectra of cool stars.

    python benchmarks/line_profiles.py --templates FILE [--figure PNG] [--json FILE]

FILE is a shard in specvit's layout on its pixels, such as the BT-Settl templates of the Subaru PFS exposure time
calculator's web application. Each star is synthesised at its labels twice, with a grey atmosphere and with its surface
cooled; the Sun, for which such a file has no spectrum, is held against what is observed (see `OBSERVED`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from machine import facts

from specvit.physics.instrument import PAD, STEP, wavelength
from specvit.utils.quantities import FLUX
from tools.spectral_grid.synthesis import padded_flux

mpl.use("Agg")
import matplotlib.pyplot as plt

LINES = {
    "Ca II 8500": (8500.36, 12.0),
    "Ca II 8544": (8544.44, 16.0),
    "Ca II 8665": (8664.52, 16.0),
    "Na I 8197": (8197.08, 5.0),
    "Mg I 8809": (8809.18, 4.0),
    "K I 7701": (7701.09, 5.0),
}
"""Vacuum wavelength and half width of the window, Angstrom."""
BANDS = {
    "TiO 7130-7160": ((7130, 7160), (7550, 7580)),
    "TiO 7670-7695": ((7670, 7695), (7550, 7580)),
    "TiO 8440-8470": ((8440, 8470), (8400, 8428)),
    "CN 7940-8000": ((7940, 8000), (7850, 7880)),
}
"""Band and the continuum beside it, Angstrom: the ratio of the mean fluxes."""
SUN = {"T_eff": 5777.0, "log_g": 4.44, "M_H": 0.0, "a_M": 0.0, "C_M": 0.0}
OBSERVED = "Sun observed: Ca II 8544 (8542 in air) core .40-.45 of the continuum at R = 5000"
WINDOWS = ((7100, 7300), (8170, 8210), (8480, 8580), (8790, 8830))
GREY = 0.0


def line(flux_P: np.ndarray, centre: float, half: float) -> tuple[float, float]:
    """Return the lowest flux over the continuum beside the window, and the equivalent width in Angstrom."""
    wave_P = wavelength()
    inside = np.abs(wave_P - centre) < half
    ends = (centre - half - 4, centre + half + 4)
    level = np.interp(wave_P[inside], ends, [np.quantile(flux_P[np.abs(wave_P - end) < 4], 0.9) for end in ends])
    ratio = flux_P[inside] / level
    return float(ratio.min()), float((1 - ratio).sum() * STEP)


def band(flux_P: np.ndarray, inside: tuple[float, float], beside: tuple[float, float]) -> float:
    """Return the mean flux of a band over that of the continuum beside it."""
    low, high = (flux_P[(wavelength() > a) & (wavelength() < b)].mean() for a, b in (inside, beside))
    return float(low / high)


def measure(flux_P: np.ndarray) -> dict[str, Any]:
    """Return core and width of every line and the ratio of every band."""
    found: dict[str, Any] = {name: [round(x, 3) for x in line(flux_P, *where)] for name, where in LINES.items()}
    return found | {name: round(band(flux_P, *where), 3) for name, where in BANDS.items()}


def stars(templates: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return for each star its spectra (P,): other people's, grey and cooled."""
    wave_P, table = wavelength(), pd.read_hdf(templates)
    with h5py.File(templates) as file:
        assert np.allclose(file["spectrumdataset/wave"][()], wave_P, atol=0.01), "other pixels than specvit's"
        flux_NP = file[FLUX][()]
    found = {"Sun": synthesised(SUN)}
    for flux_P, row in zip(flux_NP, table.to_dict("records"), strict=True):
        labels = {name: row[name] for name in SUN}
        name = f"{row.get('star', 'star')} {labels['T_eff']:.0f}/{labels['log_g']:.1f}"
        found[name] = {"template": flux_P, **synthesised(labels)}
    return found


def synthesised(labels: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the spectrum of a grey atmosphere and that of the model."""
    return {"grey": padded_flux(labels, cooling=GREY)[PAD:-PAD], "cooled": padded_flux(labels)[PAD:-PAD]}


def draw(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw every star in the windows of the strongest features."""
    figure, axes = plt.subplots(len(found), len(WINDOWS), figsize=(15, 2.3 * len(found)), squeeze=False)
    styles = {"template": ("0.55", 2.2), "grey": ("C0", 0.9), "cooled": ("C3", 1.1)}
    for row, (name, spectra) in zip(axes, found.items(), strict=True):
        for axis, (low, high) in zip(row, WINDOWS, strict=True):
            inside = (wavelength() > low) & (wavelength() < high)
            for kind, flux_P in spectra.items():
                colour, width = styles[kind]
                level = np.quantile(flux_P[inside], 0.97)
                axis.plot(wavelength()[inside], flux_P[inside] / level, color=colour, lw=width, label=kind)
            axis.set_xlim(low, high)
            axis.set_ylim(0.25, 1.08)
        row[0].set_ylabel(name, fontsize=9)
    axes[-1][0].legend(fontsize=8, loc="lower right")
    figure.supxlabel("vacuum wavelength [Å]")
    axes[0][0].set_title("flux over the window's 97 % quantile, R = 5000", fontsize=9, loc="left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, required=True, help="spectra of others, in specvit's layout")
    parser.add_argument("--figure", type=Path, default=None, help="PNG to draw")
    parser.add_argument("--json", type=Path, default=None, help="where to write the numbers")
    options = parser.parse_args()
    found = stars(options.templates)
    numbers = {name: {kind: measure(flux_P) for kind, flux_P in spectra.items()} for name, spectra in found.items()}
    for name, kinds in numbers.items():
        print(f"{name}: {', '.join(kinds)} (core / width in Å; ratio)")
        for feature in (*LINES, *BANDS):
            print(f"  {feature:14s}", "   ".join(_show(kind[feature]) for kind in kinds.values()))
    print(OBSERVED)
    if options.figure:
        draw(found, options.figure)
    if options.json:
        found_on = facts(torch.device("cpu"), ("numpy", "scipy"))
        options.json.write_text(json.dumps({**found_on, "stars": numbers}, indent=1) + "\n")


def _show(value: Any) -> str:
    return f"{value[0]:.2f} / {value[1]:5.2f}" if isinstance(value, list) else f"{value:.3f}       "


if __name__ == "__main__":
    main()
