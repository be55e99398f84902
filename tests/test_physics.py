"""The forward model against published numbers, and the promises of its rows."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import wofz

from specvit.physics.atmosphere import H_MINUS_FF, LOG_TAU_J, atmosphere, h_minus
from specvit.physics.instrument import pixel_error
from specvit.physics.population import RANGES, draw_labels, make_row
from specvit.physics.synthesis import clean_flux, emergent_flux, fine_wavelength, voigt, wavelength

CA_II, NA_I, K_I, MG_I = 8544.44, 8197.07, 7667.01, 8809.18  # vacuum Angstrom


def star(t_eff: float, log_g: float, m_h: float = 0.0, **other: float) -> dict[str, float]:
    """Return labels of one star."""
    return {"T_eff": t_eff, "log_g": log_g, "M_H": m_h, "a_M": 0.0, "C_M": 0.0, "redshift": 0.0} | other


def equivalent_width(flux_P: np.ndarray, centre: float, half: float = 8.0) -> float:
    """Return the width in Angstrom of an absorption line below the line through its window's edges."""
    wave_P = wavelength()
    inside = np.abs(wave_P - centre) < half
    edges = [flux_P[np.abs(wave_P - e) < 1.5].max() for e in (centre - half, centre + half)]
    level = np.interp(wave_P[inside], (centre - half, centre + half), edges)
    return float(np.sum(1 - flux_P[inside] / level) * 0.427246)


@pytest.mark.parametrize(("theta", "expected"), [(0.8, 3.95), (1.0, 9.58), (1.2, 21.2), (1.4, 44.0)])
def test_h_minus_matches_john(theta: float, expected: float) -> None:
    """Bound-free plus free-free against values worked out from John (1988), in cm^4/dyn."""
    assert h_minus(8000.0, 5040 / theta) == pytest.approx(expected * 1e-26, rel=0.003)


@pytest.mark.parametrize(
    ("wave", "theta", "expected"), [(9113, 1.0, 0.576), (9113, 1.4, 0.777), (7595, 1.0, 0.409), (6510, 0.8, 0.249)]
)
def test_h_minus_free_free_matches_bell_and_berrington(wave: float, theta: float, expected: float) -> None:
    """The free-free table against Bell & Berrington (1987), table 1."""
    temperature, micron = 5040 / theta, wave * 1e-4
    powers = [micron**2, 1.0, *(micron**-k for k in range(1, 5))]
    total = sum(theta ** ((n + 3) / 2) * np.dot(row, powers) for n, row in enumerate(H_MINUS_FF)) * 1e-29
    assert total == pytest.approx(expected * 1e-26, rel=0.006)
    assert h_minus(wave, temperature) > total


@pytest.mark.parametrize(
    ("t_eff", "log_g", "gas", "electron"),
    [(5777, 4.44, 1.44e5, 43.0), (4000, 1.5, 5.6e3, 0.35), (4000, 4.7, 5.6e5, 8.3)],
)
def test_pressures_at_unit_optical_depth(t_eff: float, log_g: float, gas: float, electron: float) -> None:
    """Sun, red giant and red dwarf against a finer grey model."""
    model = atmosphere(star(t_eff, log_g))
    for pressure_J, expected in ((model.gas_pressure_J, gas), (model.electron_pressure_J, electron)):
        assert np.exp(np.interp(0.0, LOG_TAU_J, np.log(pressure_J))) == pytest.approx(expected, rel=0.15)


def test_voigt_matches_the_faddeeva_function() -> None:
    """Interpolation errs by less than 0.3 % at every offset."""
    offset = np.linspace(0, 7.9, 500, dtype=np.float32)
    for damping in (2e-3, 0.05, 0.7):
        found = voigt(np.array([[damping]]), offset[None], np.zeros(500, dtype=int))[0]
        np.testing.assert_allclose(found, wofz(offset + 1j * damping).real, rtol=3e-3, atol=0)


def test_signal_to_noise_by_magnitude() -> None:
    """The median pixel of a flat spectrum, as the exposure time calculator has it."""
    flat_P = (wavelength() ** -2.0).astype(np.float32)  # constant F_nu, the spectrum of the AB system
    for mag, expected in ((18, 87), (20, 24), (21.5, 7.1), (22, 4.6), (22.5, 3.0), (23, 1.9)):
        assert np.median(flat_P / pixel_error(flat_P, mag, 1.0)) == pytest.approx(expected, rel=0.02)


def test_error_ignores_the_scale_of_the_flux_and_falls_with_throughput() -> None:
    """The magnitude, not the flux, sets the electrons."""
    flux_P = clean_flux(star(5000, 3))
    error_P = pixel_error(flux_P, 21.0, 1.0)
    np.testing.assert_allclose(pixel_error(7 * flux_P, 21.0, 1.0), 7 * error_P, rtol=1e-5)
    assert np.all(pixel_error(flux_P, 21.0, 1.2) < error_P)


def test_a_row_depends_on_its_seed_split_and_number_only() -> None:
    """Equal arguments give equal bits, whatever was made between."""
    flux_P, error_P, labels = make_row(0, "train", 7)
    make_row(0, "train", 8)
    again = make_row(0, "train", 7)
    assert np.array_equal(flux_P, again[0])
    assert np.array_equal(error_P, again[1])
    assert labels == again[2]
    for other in ((1, "train", 7), (0, "test", 7), (0, "train", 8)):
        assert draw_labels(*other)["T_eff"] != labels["T_eff"]


def test_rows_look_like_the_reference_set() -> None:
    """Shapes, types, bounds, and the S/N quantiles of the reference test set."""
    rows = [make_row(0, "train", row) for row in range(300)]
    for flux_P, error_P, labels in rows:
        assert flux_P.shape == error_P.shape == (4096,)
        assert flux_P.dtype == error_P.dtype == np.float32
        assert np.all(np.isfinite(flux_P)) and flux_P.min() > 0.02 and flux_P.max() < 1.5
        assert np.all(np.isfinite(error_P)) and error_P.min() > 0
        assert np.median(flux_P) == pytest.approx(0.5, abs=1e-4)
        assert all(low <= labels[name] <= high for name, (low, high) in RANGES.items())
    snr = np.array([labels["snr"] for _, _, labels in rows])
    quantiles = np.quantile(snr, (0.05, 0.25, 0.5, 0.75, 0.95))
    np.testing.assert_allclose(quantiles, (3.7, 5.3, 8.2, 12.5, 17.2), rtol=0.1)
    assert snr.min() > 1.8 and snr.max() < 32


def test_corners_of_the_label_box_are_finite() -> None:
    """The hardest stars for the fixed points and the tables."""
    for t_eff in RANGES["T_eff"]:
        for log_g in RANGES["log_g"]:
            for m_h in RANGES["M_H"]:
                flux_P = clean_flux(star(t_eff, log_g, m_h, a_M=0.5, C_M=0.5))
                assert np.all(np.isfinite(flux_P)) and flux_P.min() > 0


@pytest.mark.parametrize("redshift", [0.0, 0.001, -0.001])
def test_lines_lie_at_vacuum_wavelengths(redshift: float) -> None:
    """Line centres fall within a pixel, shifted by the redshift."""
    wave_P, flux_P = wavelength(), clean_flux(star(5500, 4, redshift=redshift))
    for centre in (CA_II, K_I):
        observed = centre * (1 + redshift)
        near = np.flatnonzero(np.abs(wave_P - observed) < 4)
        assert abs(wave_P[near[np.argmin(flux_P[near])]] - observed) < 0.43


def test_gravity_moves_lines_the_way_stars_do() -> None:
    """Na I, K I and Mg I say dwarf, the Ca II triplet says giant."""
    giant_P, dwarf_P = clean_flux(star(4200, 1.5)), clean_flux(star(4200, 4.7))
    # Neutral resonance and alkali lines broaden with pressure in dwarfs; the Ca II triplet, of an ion whose
    # continuum competes with fewer electrons, is strong in giants (Cenarro et al. 2002, MNRAS 329, 863).
    for line, ratio in ((NA_I, 1.5), (K_I, 1.5), (MG_I, 1.05)):
        assert equivalent_width(dwarf_P, line) > ratio * equivalent_width(giant_P, line)
    giant_P, dwarf_P = clean_flux(star(5000, 1.0)), clean_flux(star(5000, 4.5))
    assert equivalent_width(giant_P, CA_II, 20) > 1.3 * equivalent_width(dwarf_P, CA_II, 20)


def test_wings_of_the_calcium_triplet_widen_with_pressure() -> None:
    """Van der Waals broadening reaches the wings."""
    model = atmosphere(star(5000, 4.5))
    squeezed = replace(model, helium_J=30 * model.helium_J)  # more perturbers, nothing else
    far = np.abs(fine_wavelength() - CA_II - 4) < 0.5
    assert emergent_flux(squeezed)[far].mean() < 0.97 * emergent_flux(model)[far].mean()


def test_abundances_strengthen_their_lines() -> None:
    """[M/H] and [alpha/M] deepen Ca II, carbon deepens CN."""
    widths = [equivalent_width(clean_flux(star(5000, 3, m_h)), CA_II, 20) for m_h in (-2.5, -1.5, -0.5, 0.5)]
    assert np.all(np.diff(widths) > 0.2)
    alpha = [equivalent_width(clean_flux(star(5000, 3, -1.0, a_M=a)), CA_II, 20) for a in (-0.25, 0.5)]
    assert alpha[1] > 1.05 * alpha[0]
    poor_P, rich_P = (clean_flux(star(4200, 2, C_M=c)) for c in (-0.75, 0.4))
    cn_band = (wavelength() > 7900) & (wavelength() < 8100)
    assert rich_P[cn_band].mean() < 0.99 * poor_P[cn_band].mean()


def test_cooler_stars_are_redder() -> None:
    """The slope over the band follows the temperature."""
    spectra = [clean_flux(star(t_eff, 3, -2.0)) for t_eff in (3800, 4800, 5800)]
    assert np.all(np.diff([flux_P[50:150].mean() / flux_P[-150:-50].mean() for flux_P in spectra]) > 0)
