"""What the synthesis' own steps cost in accuracy: python benchmarks/convergence.py [--json FILE].

Four stars, from metal-rich giant to metal-poor one, are synthesised as the grid is, and again with twice and four
times the layers, with an atmosphere that begins higher, with twelve directions of light in place of three, with lines
followed further into their wings, and with four times finer steps in wavelength. Printed for each: root mean square and
greatest difference over the pixels, at 4096 pixels and R = 5000. A minute or two of one core.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts

from tools.spectral_grid import fine_grid, lines, synthesis, titanium_oxide
from tools.spectral_grid.atmosphere import LOG_TAU_J, atmosphere

STARS = {
    "Sun": {"T_eff": 5777, "log_g": 4.44, "M_H": 0.0, "a_M": 0.0, "C_M": 0.0},
    "giant, rich in carbon": {"T_eff": 4500, "log_g": 1.5, "M_H": 0.5, "a_M": 0.2, "C_M": 0.2},
    "cool dwarf": {"T_eff": 3800, "log_g": 4.5, "M_H": 0.0, "a_M": 0.0, "C_M": 0.0},
    "giant, poor in metals": {"T_eff": 5500, "log_g": 2.0, "M_H": -2.0, "a_M": 0.4, "C_M": 0.0},
}
CACHES = (
    fine_grid.fine_wavelength,
    fine_grid.instrument_profile,
    lines.lines,
    titanium_oxide.rotational_lines,
    synthesis.node_weights,
)


def main() -> None:
    """Synthesise, compare, print and perhaps save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="save the result there, too")
    options = parser.parse_args()
    usual = fluxes()
    found: dict[str, Any] = {**facts(torch.device("cpu")), "stars": list(STARS), "differences": {}}
    for name, made in VARIANTS.items():
        relative = [new_P / usual_P - 1 for new_P, usual_P in zip(made(), usual, strict=True)]
        rms = [round(float(np.sqrt(np.mean(one_P**2))), 6) for one_P in relative]
        greatest = [round(float(np.abs(one_P).max()), 6) for one_P in relative]
        found["differences"][name] = {"rms": rms, "greatest": greatest}
        print(f"{name}: rms {rms}, greatest {greatest}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def fluxes(log_tau_J: np.ndarray = LOG_TAU_J) -> list[np.ndarray]:
    """Return each star's flux at the instrument's resolution over its median, shape (P,)."""
    made = []
    for labels in STARS.values():
        flux_P = fine_grid.instrument_profile() @ synthesis.emergent_flux(atmosphere(labels, log_tau_J=log_tau_J))
        made.append(flux_P / np.median(flux_P))
    return made


def with_layers(count: int, top: float = LOG_TAU_J[0]) -> Callable[[], list[np.ndarray]]:
    """Return what synthesises with another atmosphere."""
    return lambda: fluxes(np.linspace(top, LOG_TAU_J[-1], count))


def with_constants(*changes: tuple[Any, str, float]) -> Callable[[], list[np.ndarray]]:
    """Return what synthesises with other constants of modules."""

    def made() -> list[np.ndarray]:
        with changed(*changes):
            return fluxes()

    return made


@contextlib.contextmanager
def changed(*changes: tuple[Any, str, float]) -> Iterator[None]:
    """Set constants of modules for a while; what was computed from them is forgotten before and after."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        forget()
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        forget()


def forget() -> None:
    """Empty the caches of the synthesis."""
    for cache in CACHES:
        cache.cache_clear()


LAYERS = len(LOG_TAU_J)
FINE = tuple((module, "FINE_STEP", fine_grid.FINE_STEP / 4) for module in (fine_grid, lines, titanium_oxide))
VARIANTS = {
    "layers, twice": with_layers(2 * LAYERS - 1),
    "layers, four times": with_layers(4 * LAYERS - 3),
    "top of the atmosphere, log tau -7": with_layers(LAYERS + 5, top=-7.0),
    "directions, twelve": with_constants((synthesis, "DIRECTIONS", 12)),
    "wings, to a tenth of the opacity": with_constants(
        (lines, "WING_OPACITY", lines.WING_OPACITY / 10), (lines, "MAX_WING", 6000)
    ),
    "steps in wavelength, a quarter": with_constants(
        *FINE, (titanium_oxide, "PROFILE_HALF", 4 * titanium_oxide.PROFILE_HALF)
    ),
}


if __name__ == "__main__":
    main()
