"""Wavelengths and pixels of other formats: air and vacuum, smoothing, flux conserved, errors as they scatter."""

import itertools
from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specvit.convert.choose import Choice
from specvit.convert.contents import Array, Contents
from specvit.convert.noise import exposures, instrument_error
from specvit.convert.resample import FWHM, Target, edges, is_same, smoothing, weights
from specvit.convert.spectrum import Recipe, check_flux, on_pixels
from specvit.convert.wavelengths import air_to_vacuum, guess, medium_of, read_unit, to_vacuum_angstrom
from specvit.physics.instrument import STEP, wavelength
from specvit.physics.simulator import PixelNoise
from specvit.utils.errors import DataError

PIXELS = wavelength()
LOW, HIGH = Target(PIXELS).needed


def recipe(target: Target, **given: Any) -> Recipe:
    return Recipe(Choice("flux"), target, "A", False, **{"normalise": False, **given})


# wavelengths


def test_lines_of_the_tables_land_in_vacuum() -> None:
    """A krypton line of IDL's AIRTOVAC, and H alpha, K I, Ca II and Na I as NIST has them."""
    in_air = np.array([6056.125, 6562.79, 7698.96, 8542.09, 8194.82])
    np.testing.assert_allclose(air_to_vacuum(in_air), [6057.8019, 6564.60, 7701.08, 8544.44, 8197.08], atol=0.012)


def test_two_formulas_for_air_agree() -> None:
    vacuum_X = np.linspace(2100, 30_000, 5000)
    assert np.abs(air_to_vacuum(make.air(vacuum_X)) - vacuum_X).max() < 2e-3
    red_X = np.linspace(7000, 9000, 1000)
    assert np.abs(air_to_vacuum(make.air(red_X)) - red_X).max() < 2e-4


def test_below_2000_angstrom_wavelengths_are_of_vacuum_anyway() -> None:
    np.testing.assert_array_equal(air_to_vacuum(np.array([500.0, 1999.0])), [500.0, 1999.0])


def test_units_as_headers_spell_them() -> None:
    units = {"A": ("Angstrom", "ANGSTROMS", "0.1 nm", "Å", "AA"), "um": ("um", "Micron", "µm"), "nm": ("nm",)}
    units |= {"m": ("m",), None: ("Hz", "", "cm-1")}
    expected = {text: unit for unit, texts in units.items() for text in texts}
    assert {text: read_unit(text) for text in expected} == expected


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(("unit", "ends"), [("A", (7000, 9000)), ("nm", (700, 900)), ("um", (0.7, 0.9))])
def test_a_unit_is_guessed_only_where_one_fits(unit: str, ends: tuple[float, float], logarithm: bool) -> None:
    wave_X = np.linspace(*ends, 100)
    given = np.log10(wave_X) if logarithm else wave_X
    assert guess(given, LOW, HIGH, log10=False, path="file") == (unit, logarithm)
    np.testing.assert_allclose(
        to_vacuum_angstrom(given, unit, log10=logarithm, air=False), np.linspace(7000, 9000, 100), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((500, 320_000), "says no unit of its wavelengths, 500 to 320000, which cover 7100-8850 Å as A or nm"),
        (
            (3000, 7000),
            "cover 7100.0-8850.0 Å in none of A, nm and um; give --unit A, nm or um (and --log10), and --wave keep",
        ),
    ],
)
def test_a_unit_is_not_guessed_where_none_or_two_fit(ends: tuple[float, float], said: str) -> None:
    with pytest.raises(DataError) as caught:
        guess(np.linspace(*ends, 100), LOW, HIGH, log10=False, path="file")
    assert said in str(caught.value)


# pixels


@given(st.integers(0, 2**32 - 1), st.integers(8, 400))
def test_flux_is_conserved_whatever_the_points(seed: int, points: int) -> None:
    """What all pixels hold together is what the points hold between the first and the last edge."""
    rng = np.random.default_rng(seed)
    bins = np.sort(np.concatenate(([0.0, 100.0], rng.uniform(0, 100, points))))
    wave_X = 0.5 * (bins[1:] + bins[:-1])
    flux_X = rng.uniform(0, 1, len(wave_X))
    own = edges(wave_X)
    inner = own[(own > own[0] + 10) & (own < own[-1] - 10)]
    if len(inner) < 3:
        return
    pixels = Target(np.linspace(inner[0], inner[-1], 21)[1:-1])
    ends = edges(pixels.wave_P)
    flux_P = weights(wave_X, pixels) @ flux_X
    overlap_X = np.clip(np.minimum(own[1:], ends[-1]) - np.maximum(own[:-1], ends[0]), 0, None)
    assert flux_P @ np.diff(ends) == pytest.approx(flux_X @ overlap_X, rel=1e-9)


def test_a_constant_stays_what_it_is() -> None:
    pairs = itertools.product([0.3, 0.5, 1.7], [None, 50_000.0, 5500.0, np.inf])
    for step, resolution in (*pairs, (0.02, None), (0.05, 5500.0)):
        wave_X = np.arange(7050, 8900, step)
        target = Target(PIXELS, smoothing(PIXELS, resolution, 5000.0) if resolution else None)
        made_P = weights(wave_X, target) @ np.full(len(wave_X), 7.0)
        np.testing.assert_allclose(made_P, 7.0, rtol=1e-12, err_msg=f"{step} {resolution}")


@pytest.mark.parametrize("resolution", [20_000.0, 50_000.0, np.inf])
def test_a_line_is_smoothed_to_the_instruments_resolution(resolution: float) -> None:
    """Its area and centre stay; widths add in quadrature: its own, the source's, the Gaussian's and the pixel's."""
    wave_X = np.arange(7080, 8870, 0.02)
    matrix = weights(wave_X, Target(PIXELS, smoothing(PIXELS, resolution, 5000.0)))
    for centre in (7200.0, 8000.2, 8700.0):
        own = centre / resolution / FWHM if np.isfinite(resolution) else 0.08
        depth_P = matrix @ np.exp(-0.5 * ((wave_X - centre) / own) ** 2)
        area = depth_P.sum() * STEP
        assert area == pytest.approx(own * np.sqrt(2 * np.pi), rel=2e-4)
        mean = (depth_P * PIXELS).sum() / depth_P.sum()
        assert mean == pytest.approx(centre, abs=2e-3)
        spread = (depth_P * (PIXELS - mean) ** 2).sum() / depth_P.sum()
        goal = (centre / 5000 / FWHM) ** 2 + STEP**2 / 12 + (own**2 if not np.isfinite(resolution) else 0.0)
        assert spread == pytest.approx(goal, rel=0.004)  # the Gaussian ends at 4 sigma


def test_pixels_that_are_the_targets_keep_every_bit() -> None:
    rng = np.random.default_rng(1)
    flux_P = rng.uniform(0.1, 1, len(PIXELS)).astype(np.float32).astype(np.float64)
    assert is_same(PIXELS + 1e-7, Target(PIXELS))
    assert not is_same(PIXELS + 1e-3, Target(PIXELS))
    made_P, _ = on_pixels("file", PIXELS + 1e-7, flux_P, None, recipe(Target(PIXELS)))
    np.testing.assert_array_equal(made_P, flux_P)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "resolution"), [(0.1, None), (0.3, 20_000.0), (0.427246, None), (0.9, None)])
def test_errors_are_those_of_many_noisy_spectra(step: float, resolution: float | None) -> None:
    """Monte Carlo: noise added to the points, then brought to the pixels, scatters as the errors say.

    The mean over many pixels does, as if they were independent; a single pixel scatters no more than they say.
    """
    rng = np.random.default_rng(5)
    wave_X = np.arange(7080.0, 7200.0, step)
    pixels = PIXELS[40:180]
    target = Target(pixels, smoothing(pixels, resolution, 5000.0) if resolution else None)
    flux_X, error_X = 10 + np.sin(wave_X), 0.5 + 0.1 * np.cos(wave_X / 7)
    clean_P, error_P = on_pixels("file", wave_X, flux_X, error_X, recipe(target))
    assert error_P is not None
    draws = 4000
    noisy_NX = flux_X + error_X * rng.standard_normal((draws, len(wave_X)))
    noisy_NP = np.stack([on_pixels("file", wave_X, noisy_X, None, recipe(target))[0] for noisy_X in noisy_NX])
    np.testing.assert_allclose(noisy_NP.mean(axis=0), clean_P, atol=5 * error_P.max() / np.sqrt(draws))
    assert (noisy_NP.std(axis=0) <= error_P * (1 + 6 / np.sqrt(2 * draws))).all()
    expected = np.sqrt((error_P.astype(np.float64) ** 2).sum()) / len(error_P)
    assert noisy_NP.mean(axis=1).std() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("step", "before"), [(0.2, 1.0), (0.427, 1.02), (0.8, 1.05), (1.2, 1.1)])
def test_a_line_keeps_its_width_however_coarse_its_points(step: float, before: float) -> None:
    """As means over the points' own bins it would be `before` times as wide."""
    centre = 8000.13
    sigma = centre / 5000 / FWHM
    wave_X = np.arange(7080, 8870, step)
    line_X = np.exp(-0.5 * ((wave_X - centre) / sigma) ** 2)
    line_P, _ = on_pixels("file", wave_X, line_X + 1e-6, None, recipe(Target(PIXELS)))
    line_P = line_P.astype(np.float64) - 1e-6
    ideal = np.sqrt(sigma**2 + STEP**2 / 12)

    def width(profile_P: np.ndarray) -> float:
        return float(np.sqrt((profile_P * (PIXELS - centre) ** 2).sum() / profile_P.sum()))

    assert width(line_P) == pytest.approx(ideal, rel=5e-3)
    assert line_P.sum() * STEP == pytest.approx(sigma * np.sqrt(2 * np.pi), rel=1e-3)
    assert width(weights(wave_X, Target(PIXELS)) @ line_X) == pytest.approx(ideal * before, rel=0.015)


def test_names_of_wavelengths_say_their_medium() -> None:
    media = dict.fromkeys(("awav", "waveair", "airwave", "lambdaair"), "air")
    media |= {"wavevac": "vacuum", "vacuumwavelength": "vacuum", "wave": ""}
    assert {name: medium_of(name) for name in media} == media


@pytest.mark.parametrize(("width", "refused"), [(1.2, True), (0.3, False)])
def test_a_hole_is_wider_than_a_pixel_and_than_the_usual_step(width: float, refused: bool) -> None:
    wave_X = np.arange(7050, 8900, 0.02)
    wave_X = wave_X[(wave_X <= 8000) | (wave_X >= 8000 + width)]
    if not refused:
        on_pixels("file", wave_X, np.ones(len(wave_X)), None, recipe(Target(PIXELS)))
        return
    with pytest.raises(DataError, match=r"file: has a hole of 1\.2\d Å after \d+\.\d\d Å"):
        on_pixels("file", wave_X, np.ones(len(wave_X)), None, recipe(Target(PIXELS)))


def test_a_flux_in_another_unit_is_refused() -> None:
    refused = {
        "is in magnitudes": ("mag", "mag/arcsec2"),
        "is in photons": ("ph/s/cm2/A", "photon s-1 cm-2 nm-1"),
        "is per frequency": ("erg/s/cm2/Hz", "mJy"),
    }
    for words, units in refused.items():
        for unit in units:
            with pytest.raises(DataError, match=f"file:flux: {words}"):
                check_flux(Contents(Path("file")), Array.held("flux", np.ones(3), unit=unit))
    for name in ("flux_nu", "Fnu", "spectra/f_nu"):
        with pytest.raises(DataError, match=rf"file:{name}: is per frequency \(Hz, by its name\); make it energy"):
            check_flux(Contents(Path("file")), Array.held(name, np.ones(3)))
    check_flux(Contents(Path("file")), Array.held("flux_nu", np.ones(3), unit="erg/s/cm2/Angstrom"))
    for unit in ("", "erg/s/cm2/Angstrom", "W m-2 um-1", "1e-17 erg/cm^2/s/Ang", "phi"):
        check_flux(Contents(Path("file")), Array.held("flux", np.ones(3), unit=unit))


def test_flux_and_error_are_normalised_together() -> None:
    wave_X = np.arange(7050, 8900, 0.2)
    flux_X, error_X = 3e-17 * (2 + np.sin(wave_X / 50)), 1e-18 * np.ones(len(wave_X))
    raw_P, raw_error_P = on_pixels("file", wave_X, flux_X, error_X, recipe(Target(PIXELS)))
    flux_P, error_P = on_pixels("file", wave_X, flux_X, error_X, recipe(Target(PIXELS), normalise=True))
    assert np.median(flux_P) == pytest.approx(0.5, rel=1e-6)
    assert error_P is not None and raw_error_P is not None
    np.testing.assert_allclose(flux_P / error_P, raw_P / raw_error_P, rtol=1e-5)


@pytest.mark.parametrize("first", [7095.0, 7099.9, 7100.4, 7110.0])
def test_a_spectrum_that_begins_too_late_is_refused(first: float) -> None:
    wave_X = np.arange(first, 8899.95, 0.1)
    if first < 7100:
        on_pixels("file", wave_X, np.ones(len(wave_X)), None, recipe(Target(PIXELS)))
        return
    with pytest.raises(DataError, match=r"file: covers 71\d\d\.\d-8899\.\d Å but 7100\.0-8850\.0 Å are needed"):
        on_pixels("file", wave_X, np.ones(len(wave_X)), None, recipe(Target(PIXELS)))


def test_smoothing_needs_more_of_a_spectrum() -> None:
    target = Target(PIXELS, smoothing(PIXELS, 50_000.0, 5000.0))
    assert target.needed == pytest.approx((7100 - 2.4, 8850 + 3.0), abs=0.05)
    wave_X = np.arange(7099, 8900, 0.1)
    with pytest.raises(DataError, match=r"but 7097\.6-8853\.0 Å are needed"):
        on_pixels("file", wave_X, np.ones(len(wave_X)), None, recipe(target))


# noise


def test_magnitudes_are_functions_of_seed_and_row() -> None:
    mag_N, throughput_N = exposures(4, np.arange(1000), (18.0, 21.0))
    assert 18 <= mag_N.min() < 18.05 and 20.95 < mag_N.max() <= 21
    assert np.median(throughput_N) == pytest.approx(1.13, rel=0.02)
    some = np.array([700, 3])
    np.testing.assert_array_equal(exposures(4, some, (18.0, 21.0))[0], mag_N[some])
    assert not np.isclose(exposures(5, some, (18.0, 21.0))[0], mag_N[some]).any()


def test_a_flux_below_0_has_the_noise_of_the_sky() -> None:
    flux_BP = np.full((2, len(PIXELS)), 0.5, np.float32)
    flux_BP[1, 1000:1010] = -1e-3
    error_BP = instrument_error(flux_BP, np.array([15.0, 15.0]), np.array([1.0, 1.0]))
    assert np.isfinite(error_BP).all() and (error_BP[1, 1000:1010] < error_BP[0, 1000:1010]).all()
    np.testing.assert_allclose(
        np.delete(error_BP[1], np.s_[1000:1010]), np.delete(error_BP[0], np.s_[1000:1010]), rtol=3e-3
    )


def test_made_errors_are_the_instruments(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", wave=make.FINE, flux=make.FLUX_NX, **make.LABELS)
    flux_NP, error_NP, labels = make.converted(tmp_path / "set.npz", "--magnitudes", "20.5", "22.5", "--seed", "7")
    mag_N, throughput_N = exposures(7, np.arange(len(flux_NP)), (20.5, 22.5))
    np.testing.assert_array_equal(labels["mag"], mag_N)
    star = (torch.tensor(values, dtype=torch.float32) for values in (mag_N, throughput_N))
    np.testing.assert_allclose(error_NP, PixelNoise()(torch.from_numpy(flux_NP), *star).numpy(), rtol=1e-5)
    np.testing.assert_allclose(labels["snr"], np.median(flux_NP / error_NP, axis=1), rtol=1e-6)
    assert list(labels.columns) == ["T_eff", "log_g", "M_H", "mag", "snr"]
