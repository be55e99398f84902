"""The synthesis against published numbers, conservation laws, and what is known of stars."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expn, wofz

from specvit.physics.grid import carbon_to_oxygen
from specvit.physics.instrument import PAD, STEP, wavelength
from specvit.physics.population import RANGES
from tools.spectral_grid.atmosphere import LOG_TAU_J, atmosphere, hydrogen_balance
from tools.spectral_grid.chemistry import elements, equilibrium_constant, molecules
from tools.spectral_grid.constants import ATOMIC_MASS
from tools.spectral_grid.continuum import ROSSELAND_WAVE, h_minus, h_minus_free_free, planck, rosseland_mean
from tools.spectral_grid.fine_grid import fine_wavelength, instrument_profile
from tools.spectral_grid.lines import voigt
from tools.spectral_grid.synthesis import directions, emergent_flux, padded_flux
from tools.spectral_grid.titanium_oxide import franck_condon

CA_II, NA_I, K_I, MG_I = 8544.44, 8197.07, 7667.01, 8809.18  # vacuum Angstrom


def star(t_eff: float, log_g: float, m_h: float = 0.0, **other: float) -> dict[str, float]:
    """Return labels of one star."""
    return {"T_eff": t_eff, "log_g": log_g, "M_H": m_h, "a_M": 0.0, "C_M": 0.0} | other


def clean_flux(labels: dict[str, float], **options: float | None) -> np.ndarray:
    """Return the synthesised flux on the pixels of the instrument, (P,)."""
    return padded_flux(labels, **options)[PAD:-PAD]


def equivalent_width(flux_P: np.ndarray, centre: float, half: float = 8.0) -> float:
    """Return the width in Angstrom of an absorption line below the line through its window's edges."""
    wave_P = wavelength()
    inside = np.abs(wave_P - centre) < half
    edges = [flux_P[np.abs(wave_P - e) < 1.5].max() for e in (centre - half, centre + half)]
    level = np.interp(wave_P[inside], (centre - half, centre + half), edges)
    return float(np.sum(1 - flux_P[inside] / level) * STEP)


def test_h_minus_matches_published_tables() -> None:
    """Bound-free plus free-free from John (1988), free-free from Bell & Berrington (1987, table 1), in cm^4/dyn."""
    for theta, expected in ((0.8, 3.95), (1.0, 9.58), (1.2, 21.2), (1.4, 44.0)):
        assert h_minus(8000.0, 5040 / theta) == pytest.approx(expected * 1e-26, rel=0.003), theta
    for wave, theta, expected in ((9113, 1.0, 0.576), (9113, 1.4, 0.777), (7595, 1.0, 0.409), (6510, 0.8, 0.249)):
        free_free = h_minus_free_free(wave, 5040 / theta)
        assert free_free == pytest.approx(expected * 1e-26, rel=0.006), (wave, theta)
        assert h_minus(wave, 5040 / theta) > free_free


def test_pressures_at_unit_optical_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sun, red giant and red dwarf against a finer grey model, which has no molecules in its opacity."""
    for molecule in ("TIO_MEAN", "WATER_MEAN"):
        monkeypatch.setattr(f"tools.spectral_grid.atmosphere.{molecule}", np.zeros(6))
    for t_eff, log_g, *expected in ((5777, 4.44, 1.44e5, 43.0), (4000, 1.5, 5.6e3, 0.35), (4000, 4.7, 5.6e5, 8.3)):
        model = atmosphere(star(t_eff, log_g), cooling=0.0)
        log_pressures = [np.log(pressure_J) for pressure_J in (model.gas_pressure_J, model.electron_pressure_J)]
        pressures = [float(np.exp(np.interp(0.0, LOG_TAU_J, log_J))) for log_J in log_pressures]
        assert pressures == pytest.approx(expected, rel=0.15), (t_eff, log_g)


def test_molecules_thin_the_atmospheres_of_cool_dwarfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """TiO and H2O block the light, so an optical depth of 0.3 is reached with less gas; the Sun has none of either."""

    def pressures() -> list[float]:
        models = (atmosphere(star(3800, 4.5)), atmosphere(star(5777, 4.44)))
        return [float(np.interp(-0.5, LOG_TAU_J, model.gas_pressure_J)) for model in models]

    with_molecules = pressures()
    for molecule in ("TIO_MEAN", "WATER_MEAN"):
        monkeypatch.setattr(f"tools.spectral_grid.atmosphere.{molecule}", np.zeros(6))
    without = pressures()
    assert with_molecules[0] < 0.4 * without[0]
    assert with_molecules[1] == pytest.approx(without[1], rel=1e-3)


CONSTANTS = {
    "H2": (2.804, 4.392, 5.536, 6.394, 7.063, 7.598, 8.402),
    "CO": (-9.471, -5.661, -2.926, -0.875, 0.729, 2.012, 3.948),
    "CN": (-3.353, -0.686, 1.227, 2.662, 3.781, 4.677, 6.026),
    "N2": (-7.054, -3.705, -1.300, 0.504, 1.916, 3.045, 4.755),
    "TiO": (-1.747, 0.634, 2.365, 3.664, 4.698, 5.525, 6.796),
    "OH": (2.560, 4.130, 5.263, 6.113, 6.780, 7.313, 8.117),
}
"""log10 of the equilibrium constants at 2500 ... 5000, 6000 K, Barklem & Collet (2016)."""


def test_molecular_constants_match_the_tables() -> None:
    """The polynomials, over the whole range."""
    temperature_J = np.array([2500.0, 3000, 3500, 4000, 4500, 5000, 6000])
    for molecule, log_constants in CONSTANTS.items():
        log_J = np.log10(equilibrium_constant(molecule, temperature_J))
        np.testing.assert_allclose(log_J, log_constants, atol=0.007, err_msg=molecule)


def test_the_carbon_coordinate_is_zero_where_there_is_as_much_carbon_as_oxygen() -> None:
    log_eps = dict(zip(elements().names, elements().log_eps_E, strict=True))
    assert carbon_to_oxygen(log_eps["O"] - log_eps["C"], 0.0) == pytest.approx(0, abs=1e-9)


def test_water_is_the_sum_of_its_bonds() -> None:
    """H2O -> OH + H must take about as much energy as OH -> O + H; otherwise one of the two constants is wrong."""
    for temperature, bond in ((3000.0, 3.93), (4000.0, 6.19)):  # H-OH of the JANAF tables, 5.1 eV
        k = {m: np.log10(equilibrium_constant(m, np.array([temperature])))[0] for m in ("H2O", "OH")}
        assert k["H2O"] - k["OH"] == pytest.approx(bond, abs=0.15)


def test_atoms_are_conserved_and_in_equilibrium() -> None:
    """Atoms and molecules together hold all nuclei, whether oxygen or carbon is the rarer."""
    temperature_J, hydrogen_J = np.array([2800.0, 3500.0, 5500.0]), np.array([1e4, 3e4, 1e5])
    k = {name: equilibrium_constant(name, temperature_J) for name in ("CO", "OH", "H2O", "N2", "CN", "TiO")}
    for carbon in (1.0, 3.0):
        nuclei = {"C": carbon * np.ones(3), "O": 1.8 * np.ones(3), "N": 0.5 * np.ones(3), "Ti": 1e-3 * np.ones(3)}
        gas = molecules(temperature_J, hydrogen_J, nuclei, np.array([0.1, 1.0, 10.0]))
        co_J = gas.carbon_J * gas.oxygen_J / k["CO"]
        with_h_J = gas.oxygen_J * (hydrogen_J / k["OH"] + hydrogen_J**2 / k["H2O"])
        np.testing.assert_allclose(gas.carbon_J + co_J, nuclei["C"], rtol=1e-9)
        np.testing.assert_allclose(gas.oxygen_J + co_J + with_h_J, nuclei["O"], rtol=1e-9)
        np.testing.assert_allclose(gas.nitrogen_J + 2 * gas.nitrogen_J**2 / k["N2"], nuclei["N"], rtol=1e-9)
        np.testing.assert_allclose(gas.cn_J, gas.carbon_J * gas.nitrogen_J / k["CN"], rtol=1e-9)
        atom_J = nuclei["Ti"] * gas.titanium_share_J / (1 + np.array([0.1, 1.0, 10.0]))
        np.testing.assert_allclose(gas.tio_J, atom_J * gas.oxygen_J / k["TiO"], rtol=1e-6)


def test_hydrogen_is_conserved() -> None:
    """Atoms, ions, molecules and all other atoms make up the pressure, from molecular to ionised."""
    pressure_J, ions_J, k_J = np.array([1e5, 1e5, 1e4]), np.array([0.0, 1e-3, 4.0]), np.array([1e4, 1e7, 1e12])
    atom_J, nuclei_J = hydrogen_balance(pressure_J, ions_J, k_J, 0.1)
    h2_J = atom_J**2 / k_J
    np.testing.assert_allclose(nuclei_J, atom_J * (1 + ions_J) + 2 * h2_J)
    np.testing.assert_allclose(atom_J * (1 + ions_J) + h2_J + 0.1 * nuclei_J, pressure_J)


def test_hydrostatic_equilibrium_holds() -> None:
    """The weight of the gas above a layer is its pressure: dP/dtau = g rho / alpha, by differences."""
    model = atmosphere(star(5000, 3, -2.0))  # whose surface holds no TiO or H2O, which are not in the continuum
    alpha_J = rosseland_mean(model.continuum(ROSSELAND_WAVE))
    helium = 10 ** (10.93 - 12)
    density_J = (model.hydrogen_J + 2 * model.h2_J) * ATOMIC_MASS * (1.008 + 4.0026 * helium)
    middle = slice(1, 29)
    tau_J = 10**model.log_tau_J
    slope_J = np.gradient(np.log(model.gas_pressure_J), np.log(tau_J)) * model.gas_pressure_J / tau_J
    np.testing.assert_allclose(slope_J[middle], (1e3 * density_J / alpha_J)[middle], rtol=0.05)


def test_franck_condon_factors_add_up() -> None:
    """Transitions from and to each level sum to one; known values at a small shift."""
    for level in range(4):
        assert sum(franck_condon(level, other, 0.326) for other in range(40)) == pytest.approx(1)
        assert sum(franck_condon(other, level, 0.326) for other in range(40)) == pytest.approx(1)
    assert franck_condon(0, 0, 0.326) == pytest.approx(0.72, abs=0.005)
    assert franck_condon(0, 1, 0.326) == pytest.approx(0.24, abs=0.005)


def test_the_flux_of_an_opaque_isothermal_star_is_planck() -> None:
    """With no gradient in temperature, what leaves is the Planck function: no line can be seen."""
    model = atmosphere(star(5000, 3))
    flat = replace(model, temperature_J=np.full_like(model.temperature_J, 5000.0))
    wave_X = fine_wavelength()
    expected_X = planck(wave_X, np.array([5000.0]))[0]
    np.testing.assert_allclose(emergent_flux(flat), expected_X, rtol=2e-3)


def test_directions_integrate_the_escape() -> None:
    """Gauss's rule against the exponential integral."""
    depth = np.logspace(-4, 1.3, 50)
    secant_A, weight_A = directions(3)
    np.testing.assert_allclose(np.exp(-secant_A * depth[:, None]) @ weight_A, 2 * expn(3, depth), atol=2.5e-3)
    assert weight_A @ (1 / secant_A) == pytest.approx(2 / 3)  # the mean of a Planck function linear in depth


def test_the_sun_has_its_calcium_lines() -> None:
    """Core at R = 5000 (.40-.45 of the continuum) and width of Ca II 8542; a grey surface is too hot.

    Between the edges of this window, which weaker lines lower, the width of 3.7 Angstrom is 3.5.
    """
    sun_P, grey_P = (clean_flux(star(5777, 4.44), cooling=c) for c in (None, 0.0))
    near = np.abs(wavelength() - CA_II) < 60
    core = [f[near].min() / np.quantile(f[near], 0.95) for f in (sun_P, grey_P)]
    assert 0.40 < core[0] < 0.46 and 0.60 < core[1] < 0.64
    assert equivalent_width(sun_P, CA_II, 16) == pytest.approx(3.5, abs=0.2)


def test_titanium_oxide_forms_in_cool_stars_with_more_oxygen_than_carbon() -> None:
    """The band at 7126 Angstrom is deep in an M star, not in a K star; carbon can bind all oxygen."""

    def depth(**labels: float) -> float:
        flux_P = clean_flux(star(log_g=4.5, **labels))
        inside, beside = ((wavelength() > low) & (wavelength() < low + 30) for low in (7130, 7550))
        return float(1 - flux_P[inside].mean() / flux_P[beside].mean())

    assert depth(t_eff=3800) > 0.25
    assert depth(t_eff=4800) < 0.02
    assert depth(t_eff=3800, a_M=0.4) > depth(t_eff=3800) + 0.05
    poor_J, rich_J = (atmosphere(star(3800, 4.5, C_M=c)).populations["TiO", 1] for c in (0.0, 0.5))
    assert np.all(rich_J[:25] < 1e-2 * poor_J[:25])  # deeper layers hold none in either


@pytest.mark.slow
def test_the_numbers_of_layers_and_points_are_enough() -> None:
    """Twice as many layers change no pixel by half a per cent."""
    for labels in (star(5777, 4.44), star(4500, 1.5, 0.5)):
        flux_X = emergent_flux(atmosphere(labels))
        fine_X = emergent_flux(atmosphere(labels, log_tau_J=np.linspace(LOG_TAU_J[0], LOG_TAU_J[-1], 75)))
        coarse_Q, fine_Q = (instrument_profile() @ x for x in (flux_X, fine_X))
        np.testing.assert_allclose(coarse_Q / np.median(coarse_Q), fine_Q / np.median(fine_Q), rtol=5e-3)


def test_voigt_matches_the_faddeeva_function() -> None:
    """Interpolation is accurate to 0.3 % at every offset."""
    offset = np.linspace(0, 7.9, 500, dtype=np.float32)
    for damping in (2e-3, 0.05, 0.7):
        profile = voigt(np.array([[damping]]), offset[None], np.zeros(500, dtype=int))[0]
        np.testing.assert_allclose(profile, wofz(offset + 1j * damping).real, rtol=3e-3, atol=0)


@pytest.mark.slow
def test_corners_of_the_label_box_are_finite() -> None:
    """The hardest stars for the fixed points and the tables."""
    for t_eff in RANGES["T_eff"]:
        for log_g in RANGES["log_g"]:
            for m_h in RANGES["M_H"]:
                flux_P = clean_flux(star(t_eff, log_g, m_h, a_M=0.5, C_M=0.5))
                assert np.all(np.isfinite(flux_P)) and flux_P.min() > 0


def test_lines_lie_at_vacuum_wavelengths() -> None:
    """Line centres fall within a pixel."""
    wave_P, flux_P = wavelength(), clean_flux(star(5500, 4))
    for centre in (CA_II, K_I):
        near = np.flatnonzero(np.abs(wave_P - centre) < 4)
        assert abs(wave_P[near[np.argmin(flux_P[near])]] - centre) < 0.43


def test_gravity_moves_lines_the_way_stars_do() -> None:
    """Na I, K I and Mg I strengthen with gravity, the Ca II triplet weakens."""
    giant_P, dwarf_P = clean_flux(star(4200, 1.5)), clean_flux(star(4200, 4.7))
    # Neutral resonance and alkali lines broaden with pressure in dwarfs; the Ca II triplet, of an ion whose
    # continuum competes with fewer electrons, is strong in giants (Cenarro et al. 2002, MNRAS 329, 863).
    for line in (NA_I, K_I):
        assert equivalent_width(dwarf_P, line) > 1.5 * equivalent_width(giant_P, line)
    giant_P, dwarf_P = clean_flux(star(5000, 1.0)), clean_flux(star(5000, 4.5))
    assert equivalent_width(giant_P, CA_II, 20) > 1.3 * equivalent_width(dwarf_P, CA_II, 20)
    assert equivalent_width(dwarf_P, MG_I) > 1.05 * equivalent_width(giant_P, MG_I)


def test_wings_of_the_calcium_triplet_widen_with_pressure() -> None:
    """Van der Waals broadening reaches the wings."""
    model = atmosphere(star(5000, 4.5))
    squeezed = replace(model, helium_J=30 * model.helium_J)  # more perturbers, nothing else
    far = np.abs(fine_wavelength() - CA_II - 4) < 0.5
    assert emergent_flux(squeezed)[far].mean() < 0.97 * emergent_flux(model)[far].mean()


@pytest.mark.slow
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
