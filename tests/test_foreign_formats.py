"""Spectra of others: whatever form they come in, the same spectrum lands on the same pixels with the same labels."""

import bz2
import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import foreign_files as make
import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from foreign_files import FINE, FINE_LOG, STARS

from specvit.data import __main__ as data_cli
from specvit.data.foreign.resample import edges
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.physics.instrument import STEP, wavelength

pytestmark = pytest.mark.slow

PATTERN = ["--names", "{T_eff}_{log_g}_{M_H}"]
SNR = ["--snr", "50"]
ONE = ["--workers", "1"]
Writer = Callable[[Path], list[str]]
"""Writes spectra into a folder and returns the options that go with it."""


def converted(folder: Path, *options: str) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Convert a folder, or what a first option without dashes names, and return flux, error and labels."""
    out = folder.parent / "out"
    assert data_cli.main(["convert", str(folder), str(out), *ONE, *options]) == 0
    path = out / "all_0" / "dataset.h5"
    flux_NP, error_NP = (values.copy() for values in open_spectra([path], -1).gather(np.arange(open_shard(path).rows)))
    np.testing.assert_allclose(open_shard(path).wave_P, wavelength(), atol=1e-9)
    return flux_NP, error_NP, read_labels(open_shard(path))


def each(suffix: str, write: Callable[[Path, tuple[float, float, float]], None], *options: str) -> Writer:
    """Return a writer of one file a star, named by its labels."""

    def writer(folder: Path) -> list[str]:
        for star in STARS:
            write(folder / f"{make.name_of(star)}{suffix}", star)
        return [*PATTERN, *SNR, *options]

    return writer


def plain(**given: str) -> Callable[[Path, tuple[float, float, float]], None]:
    return lambda path, star: make.text(path, {"1": FINE, "2": make.flux_of(star, FINE)}, **given)


def many(write: Callable[[Path], None], *options: str) -> Writer:
    """Return a writer of one file with all stars."""

    def writer(folder: Path) -> list[str]:
        write(folder)
        return [*SNR, *options]

    return writer


STAR_TYPE = [(name, "f8") for name in ("T_eff", "log_g", "M_H")]
LABELS = {name: make.table_of(STARS)[name].to_numpy() for name in ("T_eff", "log_g", "M_H")}
FLUX_NX = np.stack([make.flux_of(star, FINE) for star in STARS])
LINEAR = {"CRVAL1": 7000.0, "CDELT1": 0.05, "CRPIX1": 1.0}
SDSS = {"COEFF0": np.log10(7000.0), "COEFF1": 3e-6}
LOG_CARDS, LOG_WAVE = make.log_axis(80_000, 7000.0, 0.025)
AIR_X = 7000.0 + 0.05 * np.arange(38_500)


def vacuum_of(air_X: np.ndarray) -> np.ndarray:
    """Return vacuum wavelengths by solving Ciddor's formula."""
    vacuum_X = air_X.copy()
    for _ in range(5):
        vacuum_X += air_X - make.air(vacuum_X)
    return vacuum_X


def pandas_table(folder: Path) -> None:
    make.hdf5(folder / "set.h5", {"grid/lambda": FINE, "grid/spectra": FLUX_NX}, {"grid/lambda": "angstrom"})
    make.table_of(STARS).to_hdf(folder / "set.h5", key="stars", mode="r+", format="table")


def compound(folder: Path) -> None:
    make.hdf5(folder / "set.h5", {"wave": FINE, "flux": FLUX_NX}, chunks=(2, 500), compression="gzip")
    with h5py.File(folder / "set.h5", "r+") as file:
        file["params"] = make.table_of(STARS).to_records(index=False)


def records(folder: Path) -> None:
    stars = np.array(list(zip(*LABELS.values(), FLUX_NX, strict=True)), [*STAR_TYPE, ("flux", "f8", len(FINE))])
    np.savez(folder / "set.npz", wave=FINE, stars=stars, names=np.array(["a", None], object))


def one_row(path: Path, star: tuple[float, float, float]) -> None:
    """Write a table of one row whose cells are arrays, as ESO does."""
    make.fits_table(path, {"WAVE": FINE[None], "FLUX": make.flux_of(star, FINE)[None]})


def two_images(path: Path, star: tuple[float, float, float]) -> None:
    """Write flux and error as images that both have the axis."""
    flux, cards = make.flux_of(star, FINE), fits.Header({**LINEAR, "CTYPE1": "WAVE", "CUNIT1": "Angstrom"})
    images = [fits.PrimaryHDU(flux, cards), fits.ImageHDU(flux / 9, cards, name="ERROR")]
    fits.HDUList(images).writeto(path)


def packed(folder: Path) -> None:
    make.fits_table(folder / "set.fits", {**LABELS, "FLUX": FLUX_NX, "WAVE": np.tile(FINE, (len(STARS), 1))})
    (folder / "set.fits.gz").write_bytes(gzip.compress((folder / "set.fits").read_bytes(), 1))
    (folder / "set.fits").unlink()


def fortran(path: Path, star: tuple[float, float, float]) -> None:
    make.text(path, {"1": FINE, "2": make.flux_of(star, FINE)}, number="%.9e")
    path.write_bytes(bz2.compress(bz2.decompress(path.read_bytes()).replace(b"e+", b"D+")))


def wide(folder: Path) -> None:
    flux = pd.DataFrame(FLUX_NX, columns=[f"flux_{w:.2f}" for w in FINE])
    pd.concat([make.table_of(STARS), flux], axis=1).to_csv(folder / "set.csv", index=False)


FORMS: dict[str, Writer] = {
    "txt": each(".txt", plain()),
    "txt.gz": each(".txt.gz", plain()),
    "dat.bz2, Fortran's exponents": each(".dat.bz2", fortran),
    "csv with names": each(".csv", plain(separator=",", header="Wavelength,Flux")),
    "tabs, names in a comment": each(".dat", plain(separator="\t", header="# wave\tflux")),
    "csv, unit in the name": each(
        ".csv",
        lambda p, s: make.text(p, {"w": FINE / 10, "f": make.flux_of(s, FINE)}, separator=",", header="wave [nm],flux"),
    ),
    "falling micrometers": each(
        ".txt", lambda p, s: make.text(p, {"w": FINE[::-1] / 1e4, "f": make.flux_of(s, FINE[::-1])}, number="%.12g")
    ),
    "logarithms": each(
        ".txt",
        lambda p, s: make.text(p, {"w": np.log10(FINE_LOG), "f": make.flux_of(s, FINE_LOG)}, number="%.12g"),
    ),
    "air": each(".txt", lambda p, s: make.text(p, {"w": AIR_X, "f": make.flux_of(s, vacuum_of(AIR_X))}), "--air"),
    "npz": each(".npz", lambda p, s: np.savez_compressed(p, wavelength=FINE, flux=make.flux_of(s, FINE))),
    "FITS table": each(
        ".fits",
        lambda p, s: make.fits_table(
            p, {"Wavelength": FINE / 10, "SpecificIntensity": make.flux_of(s, FINE)}, {"Wavelength": "nm"}
        ),
    ),
    "FITS table, packed": each(
        ".fits.gz", lambda p, s: make.fits_table(p, {"loglam": np.log10(FINE_LOG), "flux": make.flux_of(s, FINE_LOG)})
    ),
    "FITS image": each(".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE), LINEAR)),
    "FITS image of single precision": each(
        ".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE).astype(np.float32), LINEAR)
    ),
    "FITS image, air": each(
        ".fits",
        lambda p, s: make.fits_image(
            p, make.flux_of(s, vacuum_of(AIR_X)), {**LINEAR, "CTYPE1": "AWAV", "CUNIT1": "Angstrom"}
        ),
    ),
    "FITS image, nanometers": each(
        ".fits",
        lambda p, s: make.fits_image(
            p, make.flux_of(s, FINE), {"CRVAL1": 700.0, "CD1_1": 0.005, "CTYPE1": "WAVE", "CUNIT1": "nm"}
        ),
    ),
    "FITS image, CD1_1 beside CDELT1": each(
        ".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE), {**LINEAR, "CDELT1": 1.0, "CD1_1": 0.05})
    ),
    "FITS image, CDELT1 times PC1_1": each(
        ".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE), {**LINEAR, "CDELT1": 1.0, "PC1_1": 0.05})
    ),
    "FITS images of flux and error": each(".fits", two_images),
    "FITS table of one row": each(".fits", one_row),
    "csv, air in the name": each(
        ".csv",
        lambda p, s: make.text(
            p, {"w": AIR_X, "f": make.flux_of(s, vacuum_of(AIR_X))}, separator=",", header="wave_air,flux"
        ),
    ),
    "csv, vacuum and air": each(
        ".csv",
        lambda p, s: make.text(
            p,
            {"a": make.air(FINE), "v": FINE, "f": make.flux_of(s, FINE)},
            separator=",",
            header="wave_air,wave_vac,flux",
        ),
    ),
    "FITS table, AWAV": each(
        ".fits", lambda p, s: make.fits_table(p, {"AWAV": AIR_X, "FLUX": make.flux_of(s, vacuum_of(AIR_X))})
    ),
    "FITS image, logarithmic": each(".fits", lambda p, s: make.fits_image(p, make.flux_of(s, LOG_WAVE), LOG_CARDS)),
    "FITS image of IRAF, log10": each(
        ".fits",
        lambda p, s: make.fits_image(
            p,
            make.flux_of(s, FINE_LOG),
            {"CRVAL1": np.log10(7000.0), "CDELT1": 3e-6, "CTYPE1": "LINEAR", "DC-FLAG": 1},
        ),
    ),
    "FITS image of SDSS": each(".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE_LOG), SDSS)),
    "FITS image, wavelengths apart": each(
        ".fits", lambda p, s: make.fits_image(p, make.flux_of(s, FINE), {}), "--source-wave", "{folder}/../wave.txt"
    ),
    "table of stars: NPZ": many(lambda f: np.savez(f / "set.npz", wave=FINE, flux=FLUX_NX, **LABELS)),
    "table of stars: NPZ, packed, other names": many(
        lambda f: np.savez_compressed(
            f / "set.npz",
            l=FINE / 10,
            s=FLUX_NX.astype(np.float32),
            t=LABELS["T_eff"],
            logg=LABELS["log_g"],
            z=LABELS["M_H"],
        ),
        *("--wave-name", "l", "--flux-name", "s", "--columns", "T_eff=t,M_H=z"),
    ),
    "table of stars: NPZ, records and Python objects": many(records),
    "table of stars: HDF5": many(
        lambda f: make.hdf5(f / "set.h5", {"a/wave": FINE, "a/flux/value": FLUX_NX, **LABELS})
    ),
    "table of stars: HDF5 with a table of pandas": many(pandas_table),
    "table of stars: HDF5, chunked, with records": many(compound),
    "table of stars: FITS": many(
        lambda f: make.fits_table(f / "set.fits", {**LABELS, "FLUX": FLUX_NX, "WAVE": np.tile(FINE, (len(STARS), 1))})
    ),
    "table of stars: FITS, packed": many(packed),
    "table of stars: CSV": many(wide),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_spectrum_becomes_the_same_pixels(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    np.savetxt(tmp_path / "wave.txt", FINE)
    options = [option.format(folder=folder) if "{folder}" in option else option for option in FORMS[form](folder)]
    flux_NP, error_NP, labels = converted(folder, *options)
    order = np.argsort(labels["T_eff"].to_numpy())
    np.testing.assert_array_equal(labels[["T_eff", "log_g", "M_H"]].to_numpy()[order], np.array(STARS))
    for row, star in zip(order, STARS, strict=True):
        np.testing.assert_allclose(flux_NP[row], make.expected(star), atol=2e-4)
    np.testing.assert_allclose(error_NP, flux_NP / 50, rtol=1e-6)
    np.testing.assert_allclose(labels["snr"], 50, rtol=1e-5)


def raw_median(star: tuple[float, float, float]) -> float:
    """Return the median pixel before it is brought to 0.5."""
    inner = (np.arange(64) + 0.5) / 64 - 0.5
    return float(np.median(make.flux_of(star, wavelength()[:, None] + STEP * inner).mean(axis=1)))


KINDS = {
    "sigma": ("error", lambda error: error),
    "variance": ("variance", lambda error: error**2),
    "inverse variance": ("ivar", lambda error: error**-2.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["text", "image"])
def test_errors_of_any_kind_come_along(kind: str, form: str, tmp_path: Path) -> None:
    name, spoil = KINDS[kind]
    star, error_X = STARS[2], 3000 * (1 + (FINE - 7000) / 1000)
    folder = tmp_path / "source"
    folder.mkdir()
    columns = {"wave": FINE, "flux": make.flux_of(star, FINE), name: spoil(error_X)}
    if form == "text":
        make.text(folder / "5000_4.5_0.25.txt", columns, header=f"wave flux {name}")
    else:
        make.fits_image(folder / "5000_4.5_0.25.fits", columns["flux"], LINEAR, **{name.upper(): columns[name]})
    flux_NP, error_NP, labels = converted(folder, *PATTERN)
    bins, pixels = edges(FINE), edges(wavelength())
    variance_P = np.empty(len(wavelength()))
    for p, (left, right) in enumerate(itertools.pairwise(pixels)):
        inside_X = np.clip(np.minimum(bins[1:], right) - np.maximum(bins[:-1], left), 0, None)
        variance_P[p] = inside_X @ (error_X**2 * np.diff(bins)) / (right - left) ** 2
    np.testing.assert_allclose(error_NP[0], np.sqrt(variance_P) * 0.5 / raw_median(star), rtol=1e-4)
    assert labels["snr"][0] == pytest.approx(np.median(flux_NP[0] / error_NP[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "unit", "kind"),
    [
        ("Z_IVAR", "", "inverse"),
        ("flux_invvar_coadd", "", "inverse"),
        ("B_WEIGHT", "", "inverse"),
        ("varflux", "", "variance"),
        ("FLUX_ERROR_2", "", "sigma"),
        ("q", "erg / (s cm2 Angstrom)", "sigma"),
        ("q", "erg2 / (s2 cm4 Angstrom2)", "variance"),
        ("q", "s2 cm4 Angstrom2 / erg2", "inverse"),
        ("ivar", "erg / (s cm2 Angstrom)", None),
        ("q", "", None),
    ],
)
def test_what_errors_are_is_read_from_name_and_unit_or_asked_for(
    name: str, unit: str, kind: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wave_X = np.linspace(8400, 8800, 1000)
    columns = {"wave": wave_X[None], "flux": np.ones((1, 1000)), name: np.full((1, 1000), 100.0), "log_g": np.ones(1)}
    units = {"wave": "Angstrom", "flux": "erg / (s cm2 Angstrom)", name: unit}
    make.fits_table(tmp_path / "set.fits", columns, units)
    words = ["convert", str(tmp_path / "set.fits"), "OUT", "--error-name", name, "--wave", "keep", "--no-normalise"]
    right = {"sigma": 100.0, "variance": 10.0, "inverse": 0.1}
    for asked in (kind,) if kind else right:
        words[2] = str(tmp_path / str(asked))
        if kind is None:
            assert data_cli.main(words) == 2
            assert "; say which by --error-kind sigma|variance|inverse." in capsys.readouterr().err
        assert data_cli.main([*words, *(() if kind else ("--error-kind", asked))]) == 0
        (file,) = (tmp_path / str(asked)).glob("*/dataset.h5")
        assert np.unique(open_shard(file).error.open()[:]) == pytest.approx([right[asked]])


@pytest.mark.parametrize(
    ("cards", "planes", "words"),
    [
        ({}, 3, "row 2 rises from pixel to pixel, as wavelengths do"),
        ({"TELESCOP": "LAMOST"}, 5, "as LAMOST writes them"),
        ({"HISTORY": "made by UVES_popler"}, 5, "as UVES_popler writes them"),
        ({"NVISITS": 2}, 4, "as apStar has them"),
    ],
)
def test_planes_of_one_star_are_not_taken_as_spectra(
    cards: dict[str, object], planes: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flux_RX = np.random.default_rng(0).uniform(0.5, 1.0, (planes, 1000))
    if not cards:
        flux_RX[2] = np.linspace(8400, 8800, 1000)
    make.fits_image(tmp_path / "star.fits", flux_RX, {"CRVAL1": 8400.0, "CDELT1": 0.4, "CUNIT1": "Angstrom", **cards})
    given = ("--fill", "log_g=4.4", "--snr", "50", "--wave", "keep")
    assert data_cli.main(["convert", str(tmp_path / "star.fits"), str(tmp_path / "out"), *given]) == 2
    refusal = capsys.readouterr().err
    assert words in refusal and f"has {planes} rows that are not a spectrum each" in refusal
