"""Files as surveys write them, made small, with the names, units and header cards of their data models.

SDSS: data.sdss.org/datamodel, spec and apStar. LAMOST: www.lamost.org, data production description of DR5 (low
resolution) and DR9 (medium resolution). DESI: desidatamodel.readthedocs.io, coadd. UVES_popler: Murphy (2016).

Shape suffixes: N stars, X points.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty
from astropy.table import Table
from convert_inputs import convert, refusal

from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra

KEEP = ["--wave", "keep", "--no-normalise"]
FILL = ["--fill", "log_g=4.4"]
UNIT = 1e-17 * units.Unit("erg / (s cm2 Angstrom)")
RNG = np.random.default_rng(3)


def star(pixels: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return flux and inverse variance, float32."""
    shape = (pixels,) if rows is None else (rows, pixels)
    return RNG.uniform(5, 9, shape).astype(np.float32), RNG.uniform(2, 4, shape).astype(np.float32)


def table(name: str, **columns: tuple[str, Any]) -> fits.BinTableHDU:
    """Return a table of columns, each a format and its values."""
    made = [fits.Column(key, kind, array=values) for key, (kind, values) in columns.items()]
    return fits.BinTableHDU.from_columns(made, name=name)


def write(path: Path, primary: dict[str, Any], *others: Any, data: np.ndarray | None = None) -> Path:
    first = fits.PrimaryHDU(data)
    first.header.update(primary)
    fits.HDUList([first, *others]).writeto(path)
    return path


def sdss_spec(path: Path) -> Path:
    flux, ivar = star(300)
    loglam = (3.87 + 1e-4 * np.arange(300)).astype(np.float32)
    zeros = np.zeros(300, np.int32)
    rest = {"wdisp": ("E", flux), "sky": ("E", flux), "model": ("E", flux)}
    masks = {"and_mask": ("J", zeros), "or_mask": ("J", zeros)}
    coadd = table("COADD", flux=("E", flux), loglam=("E", loglam), ivar=("E", ivar), **masks, **rest)
    five = np.ones((1, 5), np.float32)
    facts = table(
        "SPECOBJ", Z=("E", [0.0]), SN_MEDIAN_ALL=("E", [9.0]), SPECTROFLUX=("5E", five), SPECTROFLUX_IVAR=("5E", five)
    )
    lines = table("SPZLINE", LINENAME=("8A", ["H_alpha", "H_beta"]), LINEWAVE=("D", [6564.6, 4862.7]))
    cards = {"TELESCOP": "SDSS 2.5-M", "BUNIT": "1E-17 erg/cm^2/s/Ang", "COEFF0": 3.87, "COEFF1": 1e-4, "NEXP": 8}
    return write(path, cards, coadd, facts, lines)


def read_sdss(hdus: Any) -> tuple[Any, Any, Any]:
    data = hdus["COADD"].data
    return 10 ** data["loglam"].astype(float), data["flux"], data["ivar"]


def lamost_low(path: Path) -> Path:
    flux, ivar = star(300)
    wave = (10 ** (3.87 + 1e-4 * np.arange(300))).astype(np.float32)
    cards = {"TELESCOP": "LAMOST", "COEFF0": 3.87, "COEFF1": 1e-4, "VACUUM": True, "DC-FLAG": 1, "CRPIX1": 1}
    cards |= {"CTYPE1": "", "WFITTYPE": "LOG-LINEAR", "CRVAL1": 3.87, "CD1_1": 1e-4, "OBSID": 64049, "SNRI": 80.0}
    return write(path, cards, data=np.stack([flux, ivar, wave, np.zeros_like(flux), np.zeros_like(flux)]))


def read_lamost_low(hdus: Any) -> tuple[Any, Any, Any]:
    return hdus[0].data[2], hdus[0].data[0], hdus[0].data[1]


def lamost_medium(path: Path) -> Path:
    arms = []
    for name, first in (("B", 4950.0), ("R", 6300.0)):
        for unit in (f"COADD_{name}", f"{name}-84420148", f"{name}-84420167"):
            flux, ivar = star(200, 1)
            wave = first + 0.1 * np.arange(200)[None]
            masks = {"ANDMASK": ("200J", np.zeros((1, 200))), "ORMASK": ("200J", np.zeros((1, 200)))}
            columns = {"FLUX": ("200E", flux), "IVAR": ("200E", ivar), "WAVELENGTH": ("200D", wave)}
            arms.append(table(unit, **columns, **masks))
    return write(path, {"TELESCOP": "LAMOST", "OBSID": 584002003, "EXTNAME": "Information"}, *arms)


def read_lamost_medium(hdus: Any) -> tuple[Any, Any, Any]:
    data = hdus["COADD_R"].data[0]
    return data["WAVELENGTH"], data["FLUX"], data["IVAR"]


def desi_coadd(path: Path) -> Path:
    ids = 39627652591521181 + np.arange(3)
    kinds = {"TARGETID": ("K", ids), "FLUX_R": ("E", np.ones(3)), "FLUX_IVAR_R": ("E", np.ones(3))}
    hdus: list[Any] = [
        table("FIBERMAP", **kinds),
        table("EXP_FIBERMAP", TARGETID=("K", ids[::-1]), MJD=("D", ids * 1.0)),
    ]
    for arm, first in (("B", 3600.0), ("R", 5760.0), ("Z", 7520.0)):
        flux, ivar = star(250, 3)
        for name, values, unit in (
            ("WAVELENGTH", first + 0.8 * np.arange(250), "Angstrom"),
            ("FLUX", flux, "10**-17 erg/(s cm2 Angstrom)"),
            ("IVAR", ivar, "10**+34 (s2 cm4 Angstrom2) / erg2"),
            ("MASK", np.zeros((3, 250), np.int32), ""),
            ("RESOLUTION", np.ones((3, 11, 250), np.float32), ""),
        ):
            hdu = fits.ImageHDU(values, name=f"{arm}_{name}")
            hdu.header.update({"BUNIT": unit} if unit else {})
            hdus.append(hdu)
    return write(path, {"LONGSTRN": "OGIP 1.0"}, *hdus, table("SCORES", TARGETID=("K", ids)))


def read_desi(hdus: Any) -> tuple[Any, Any, Any]:
    flux = hdus["Z_FLUX"].data * units.Unit(hdus["Z_FLUX"].header["BUNIT"])
    ivar = hdus["Z_IVAR"].data * units.Unit(hdus["Z_IVAR"].header["BUNIT"])
    return hdus["Z_WAVELENGTH"].data, flux.to_value(UNIT), ivar.to_value(UNIT**-2)


def text(path: Path) -> Path:
    flux, ivar = star(300)
    names = ["wavelength", "flux", "ivar", "continuum", "sky", "mask"]
    values = [7000 + 0.5 * np.arange(300), flux, ivar, flux, flux, np.zeros(300)]
    make.text(path, dict(zip(names, values, strict=True)), header="# " + " ".join(names))
    return path


def read_text(path: Path) -> tuple[Any, Any, Any]:
    data = Table.read(path, format="ascii.commented_header")
    return data["wavelength"], data["flux"], data["ivar"]


Maker = Callable[[Path], Path]
SURVEYS: dict[str, tuple[str, Maker, Callable[[Any], tuple[Any, Any, Any]], list[str]]] = {
    "SDSS spec": ("spec-3586-55181-0001.fits", sdss_spec, read_sdss, FILL),
    "LAMOST low resolution": ("spec-56972-HD064049N515841V01_sp07-008.fits.gz", lamost_low, read_lamost_low, FILL),
    "LAMOST medium resolution": (
        "med-58025.fits",
        lamost_medium,
        read_lamost_medium,
        [*FILL, "--flux-name", "COADD_R/FLUX"],
    ),
    "DESI coadd": ("coadd-2-545-thru20210510.fits", desi_coadd, read_desi, [*FILL, "--flux-name", "Z_FLUX"]),
    "six columns": ("star.dat", text, read_text, [*FILL, "--unit", "A"]),
}
"""Name of the file, its maker, its reader by astropy, and options."""


def shard_of(out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Return wavelengths (P,), flux and error (N, P), and labels."""
    shard = open_shard(out / "all_0" / "dataset.h5")
    flux_NP, error_NP = (values.copy() for values in open_spectra([shard.path], -1).gather(np.arange(shard.rows)))
    return shard.wave_P, flux_NP, error_NP, read_labels(shard)


@pytest.mark.parametrize("survey", SURVEYS)
def test_a_survey_is_read_as_astropy_reads_it(survey: str, tmp_path: Path) -> None:
    name, maker, read, options = SURVEYS[survey]
    source = maker(tmp_path / name)
    assert convert(source, tmp_path / "out", *KEEP, *options) == 0
    found = shard_of(tmp_path / "out")
    if survey == "six columns":
        wave_X, flux, ivar = read(source)
    else:
        with fits.open(source) as hdus:
            wave_X, flux, ivar = (np.array(values) for values in read(hdus))
    sigma = InverseVariance(np.atleast_2d(ivar)).represent_as(StdDevUncertainty).array
    np.testing.assert_allclose(found[0], np.asarray(wave_X, float), rtol=1e-9)
    np.testing.assert_allclose(found[1], np.atleast_2d(flux), rtol=1e-6)
    np.testing.assert_allclose(found[2], sigma, rtol=1e-6)
    np.testing.assert_allclose(found[3]["snr"], np.median(np.atleast_2d(flux) / sigma, axis=1), rtol=1e-6)
    if survey == "DESI coadd":
        assert found[3]["TARGETID"].tolist() == [39627652591521181 + i for i in range(3)]
        assert "MJD" not in found[3]  # of exposures, in another order than the targets


def test_an_arm_is_asked_for_where_there_are_several(tmp_path: Path, capsys: Any) -> None:
    said = refusal(capsys, desi_coadd(tmp_path / "desi.fits"), tmp_path / "out", *KEEP, *FILL)
    assert "may have the flux in B_FLUX and R_FLUX and Z_FLUX; say which by --flux-name" in said
    said = refusal(capsys, lamost_medium(tmp_path / "mrs.fits"), tmp_path / "out", *KEEP, *FILL)
    assert "may have the flux in COADD_B/FLUX and COADD_R/FLUX; say which by --flux-name" in said


def test_inverse_variances_of_0_are_masked_pixels_or_leave_out_their_star(tmp_path: Path, capsys: Any) -> None:
    source = desi_coadd(tmp_path / "desi.fits")
    with fits.open(source, mode="update") as hdus:
        hdus["Z_IVAR"].data[1, 40:90] = 0
        flux_NX = np.array(hdus["Z_FLUX"].data)
    options = [*KEEP, *FILL, "--flux-name", "Z_FLUX"]
    assert convert(source, tmp_path / "out", *options) == 0
    assert "note: 50 masked pixels in 1 spectrum: a model sees" in capsys.readouterr().out
    _, flux_NP, error_NP, _ = shard_of(tmp_path / "out")
    flux_NX[1, 40:90] = np.nan
    np.testing.assert_array_equal(flux_NP, flux_NX)
    np.testing.assert_array_equal(np.isnan(error_NP), np.isnan(flux_NX))
    with fits.open(source, mode="update") as hdus:
        hdus["Z_IVAR"].data[1, 90] = 0
    said = refusal(capsys, source, tmp_path / "more", *options)
    what = "row 1: has 20.4 % of its pixels masked, more than 20 % (the first: inverse variance is 0 at 7552.00 Å)"
    assert what in said
    assert convert(source, tmp_path / "more", *options, "--skip-bad") == 0
    assert shard_of(tmp_path / "more")[3]["TARGETID"].tolist() == [39627652591521181, 39627652591521183]


def test_planes_of_uves_popler_and_the_sum_of_an_apstar_are_read(tmp_path: Path) -> None:
    flux, ivar = star(300)
    log = {"CRVAL1": 3.87, "CDELT1": 1e-5, "CRPIX1": 1}
    cards = {**log, "CD1_1": 1e-5, "CTYPE1": "LOGLIN", "DC-FLAG": 1, "UP_ARR01": "Normalized flux spectrum"}
    planes = [flux, ivar, ivar, flux, np.ones(300), *np.ones((4, 300))]
    popler = write(tmp_path / "popler.fits", cards, data=np.stack(planes).astype(np.float64))
    cards = {**log, "CTYPE1": "LOG-LINEAR", "BUNIT": "Flux (10^-17 erg/s/cm^2/Ang)"}
    images = [fits.ImageHDU(np.stack([plane] * 4)) for plane in (flux, ivar, np.zeros(300, np.int16))]
    images[0].data[2:] = -1
    for image in images:
        image.header.update(cards)
    apstar = write(tmp_path / "apStar-r12-2M00000002.fits", {"NVISITS": 2, "TELESCOP": "apo25m"}, *images)
    for source in (popler, apstar):
        assert convert(source, tmp_path / source.stem, *KEEP, *FILL) == 0
        wave_P, flux_NP, error_NP, _ = shard_of(tmp_path / source.stem)
        np.testing.assert_allclose(wave_P, 10 ** (3.87 + 1e-5 * np.arange(300)), rtol=1e-12)
        np.testing.assert_array_equal(flux_NP, flux[None])
        np.testing.assert_array_equal(error_NP, ivar[None])


def test_what_rows_of_an_image_are_is_asked_for_and_can_be_said(tmp_path: Path, capsys: Any) -> None:
    flux, ivar = star(300)
    wave = 7000 + np.arange(300.0)
    axis = {"CRVAL1": 7000.0, "CDELT1": 1.0, "CRPIX1": 1, "CUNIT1": "Angstrom"}
    three = write(tmp_path / "three.fits", axis, data=np.stack([flux, ivar, wave]))
    said = refusal(capsys, three, tmp_path / "out", *KEEP, *FILL)
    assert "has 3 rows, of which row 2 rises from pixel to pixel, as wavelengths do; say what each is: --planes" in said
    two = write(tmp_path / "two.fits", axis, data=np.stack([flux, flux + 1]))
    said = refusal(capsys, two, tmp_path / "out", *KEEP, *FILL, "--snr", "9")
    assert "has 2 rows, which may be planes of one star or spectra of a star each; say what each is: --planes" in said
    assert convert(three, tmp_path / "star", *KEEP, *FILL, "--planes", "flux,ivar,wavelength", "--unit", "A") == 0
    np.testing.assert_allclose(shard_of(tmp_path / "star")[2], ivar[None] ** -0.5, rtol=1e-6)
    assert convert(two, tmp_path / "stars", *KEEP, *FILL, "--snr", "9", "--planes", "spectra") == 0
    np.testing.assert_array_equal(shard_of(tmp_path / "stars")[1], np.stack([flux, flux + 1]))
    np.savez(tmp_path / "set.npz", wave=wave, flux=flux)
    said = refusal(capsys, tmp_path / "set.npz", tmp_path / "out", *KEEP, *FILL, "--planes", "flux,ivar")
    assert "--planes: is for images in FITS files; leave it out" in said


def test_tables_of_astropy_keep_their_units(tmp_path: Path, capsys: Any) -> None:
    flux, ivar = star(300)
    columns = {"wavelength": 700 + 0.05 * np.arange(300), "flux": flux, "e": np.asarray(ivar, float) * 1e-17}
    table = Table(columns, units={"wavelength": "nm", "flux": UNIT, "e": "erg / (s cm2 Angstrom)"})
    forms = {"star.ecsv": "ascii.ecsv", "star.tbl": "ascii.ipac"}
    for name, form in forms.items():
        table.write(tmp_path / name, format=form)
        assert convert(tmp_path / name, tmp_path / form, *KEEP, *FILL, "--error-name", "e") == 0
        wave_P, flux_NP, error_NP, _ = shard_of(tmp_path / form)
        np.testing.assert_allclose(wave_P, 7000 + 0.5 * np.arange(300), rtol=1e-9)
        np.testing.assert_allclose(flux_NP[0], flux, rtol=1e-6)
        np.testing.assert_allclose(error_NP[0], ivar, rtol=1e-6)
    (tmp_path / "broken.ecsv").write_text("# %ECSV 1.0\n# ---\n# datatype: [\nwave flux\n1 2\n")
    assert "broken.ecsv: cannot be read" in refusal(capsys, tmp_path / "broken.ecsv", tmp_path / "x", *KEEP, *FILL)
