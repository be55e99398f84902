"""The built-in forward model fitted to clean spectra of a reference set: how the built-in physics differs from it.

    python benchmarks/reference_fit.py --spectra FILE [--json FILE] [--residuals NPZ] [--before NPZ --figure PNG]

FILE is JSON: `wavelengths`, specvit's pixels in vacuum Angstrom, and `spectra`, a list of `idx` and `flux`. Labels, a
redshift and a cubic continuum are fitted to each spectrum by least squares from several starts. Printed and saved: the
labels found, and the residual in per cent of the continuum: root mean square, 99 % quantile and greatest value.
`--residuals` keeps the residuals themselves, which a later run with another grid draws beside its own (`--before`).
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from machine import facts
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.optimize import least_squares

from specvit.data.synthetic import GENERATOR_VERSION
from specvit.physics.forward import LABEL_COLUMNS, ForwardModel
from specvit.physics.instrument import wavelength

mpl.use("Agg")
import matplotlib.pyplot as plt

Array = NDArray[np.float64]

STARTS = tuple(product((4200.0, 4800.0, 5500.0), (2.0, 4.0), (-1.5, 0.0)))
"""T_eff, log g and [M/H] from which the fits begin; the other labels begin in the middle of their range."""
POLYNOMIAL_PN = chebyshev.chebvander(np.linspace(-1, 1, len(wavelength())), 3)
"""A cubic over the pixels."""
WINDOWS, CONTINUUM_QUANTILE = 25, 0.97
"""The continuum is a cubic through this quantile of the flux in so many windows."""
COLUMNS = "{T_eff:6.0f} {log_g:5.2f} {M_H:5.2f} {a_M:5.2f} {C_M:5.2f} | {rms:5.2f} {99 %:5.2f} {worst:6.2f} {worst at}"


class Fit:
    """Least squares of one spectrum; labels and redshift are scaled to 0 at the lower and 1 at the upper bound."""

    def __init__(self, model: ForwardModel, flux_P: Array) -> None:
        """Take the double-precision model and a spectrum."""
        self.model, self.flux_P = model, flux_P
        self.low_L, self.high_L = np.array([model.bounds[name] for name in LABEL_COLUMNS]).T
        parts = np.array_split(np.arange(len(flux_P)), WINDOWS)
        middle = [part[len(part) // 2] for part in parts]
        level = [np.quantile(flux_P[part], CONTINUUM_QUANTILE) for part in parts]
        self.continuum_P = POLYNOMIAL_PN @ np.linalg.lstsq(POLYNOMIAL_PN[middle], level, rcond=None)[0]

    def labels(self, place_L: Array) -> Array:
        """Return labels and redshift of a scaled place."""
        return self.low_L + (self.high_L - self.low_L) * place_L

    def residual(self, place_L: Array) -> Array:
        """Return spectrum less model over the continuum, the model times the best cubic, shape (P,)."""
        with torch.no_grad():
            model_P = self.model(torch.from_numpy(self.labels(place_L)[None]))[0].numpy()
        design_PN = POLYNOMIAL_PN * (model_P / self.continuum_P)[:, None]
        data_P = self.flux_P / self.continuum_P
        return data_P - design_PN @ np.linalg.lstsq(design_PN, data_P, rcond=None)[0]

    def best(self) -> tuple[Array, Array]:
        """Return the labels and the residual of the best fit of all starts."""
        found = []
        for t_eff, log_g, m_h in STARTS:
            place_L = np.full(len(self.low_L), 0.5)
            place_L[:3] = (np.array([t_eff, log_g, m_h]) - self.low_L[:3]) / (self.high_L - self.low_L)[:3]
            found.append(least_squares(self.residual, place_L, bounds=(0, 1), diff_step=1e-4, max_nfev=60))
        place_L = min(found, key=lambda fit: fit.cost).x
        return self.labels(place_L), self.residual(place_L)


def measure(labels_L: Array, residual_P: Array) -> dict[str, Any]:
    """Return labels and the size of the residual in per cent of the continuum."""
    percent_P = 100 * np.abs(residual_P)
    worst = int(percent_P.argmax())
    rounded = {name: round(float(x), 4) for name, x in zip(LABEL_COLUMNS[:-1], labels_L[:-1], strict=True)}
    return {
        **rounded,
        "redshift": float(f"{labels_L[-1]:.1e}"),
        "rms": round(float(np.sqrt(np.mean(percent_P**2))), 3),
        "99 %": round(float(np.quantile(percent_P, 0.99)), 2),
        "worst": round(float(percent_P[worst]), 2),
        "worst at": round(float(wavelength()[worst]), 1),
    }


def draw(residual: dict[str, Array], before: dict[str, Array], found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw every spectrum's residual, over the one before."""
    figure, axes = plt.subplots(len(residual), 1, figsize=(13, 1.5 * len(residual)), sharex=True, squeeze=False)
    for (axis,), (name, residual_P) in zip(axes, residual.items(), strict=True):
        if name in before:
            axis.plot(wavelength(), 100 * before[name], color="0.65", lw=0.9, label="before")
        axis.plot(wavelength(), 100 * residual_P, color="C3", lw=0.7, label=f"generator version {GENERATOR_VERSION}")
        axis.axhline(0, color="black", lw=0.4)
        axis.set_ylim(-10, 10)
        labels = found[name]
        text = f"row {name}: {labels['T_eff']:.0f} K, log g {labels['log_g']:.1f}, [M/H] {labels['M_H']:.1f}"
        axis.set_title(f"{text}, rms {labels['rms']:.2f} %", fontsize=8, loc="left", pad=2)
    axes[0][0].legend(fontsize=8, loc="upper right", ncols=2)
    axes[-1][0].set_xlim(wavelength()[[0, -1]])
    figure.supxlabel("vacuum wavelength [Å]", fontsize=9)
    figure.supylabel("reference less built-in model, % of the continuum", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Fit, print, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", type=Path, required=True, metavar="FILE", help="JSON of the reference spectra")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where to write the numbers")
    parser.add_argument("--residuals", type=Path, default=None, metavar="NPZ", help="where to keep the residuals")
    parser.add_argument("--before", type=Path, default=None, metavar="NPZ", help="residuals to draw beside these")
    parser.add_argument("--figure", type=Path, default=None, metavar="PNG", help="where to draw the residuals")
    options = parser.parse_args()
    reference = json.loads(options.spectra.read_text())
    assert np.allclose(reference["wavelengths"], wavelength(), atol=0.01), "other pixels than specvit's"
    model, found, residual = ForwardModel().double(), {}, {}
    print("row    T_eff log_g   M_H   a_M   C_M |   rms  99 %  worst at Angstrom")
    for row in reference["spectra"]:
        name = str(row["idx"])
        labels_L, residual[name] = Fit(model, np.array(row["flux"], dtype=np.float64)).best()
        found[name] = measure(labels_L, residual[name])
        print(f"{name:5s}", COLUMNS.format(**found[name]), flush=True)
    mean = float(np.mean([row["rms"] for row in found.values()]))
    print(f"mean rms {mean:.3f} %")
    if options.json:
        on = facts(torch.device("cpu"), ("torch", "numpy", "scipy"))
        numbers = {**on, "generator version": GENERATOR_VERSION, "mean rms": round(mean, 3), "rows": found}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if options.residuals:
        np.savez(options.residuals, **residual)
    if options.figure:
        draw(residual, dict(np.load(options.before)) if options.before else {}, found, options.figure)


if __name__ == "__main__":
    main()
