"""Small inputs in every form that can be converted, and what today's conversion makes of each, bit for bit.

    python tests/convert_corpus.py     # writes convert_corpus.json anew, where other spectra are meant to come out

A case writes its input and returns the options. Sources lie in `source`, their companions beside it.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import convert_inputs as make
import h5py
import numpy as np
import pandas as pd
from astropy.io import fits
from convert_inputs import AIR_X, COARSE, FINE, FINE_LOG, FLUX_NX, LABELS, PATTERN, SNR, STARS, Star, flux_of
from golden.make import canary as golden_canary
from scipy import sparse
from scipy.special import ndtr

from specvit.data.shards import write_shard
from specvit.utils.quantities import ERROR, FLUX, PARAMS, WAVE

EXPECTED = Path(__file__).with_name("convert_corpus.json")
Case = Callable[[Path], list[str]]
"""Writes spectra into a folder and returns the options that go with it."""
LINEAR = {"CRVAL1": 7000.0, "CDELT1": 0.25, "CRPIX1": 1.0}
ANGSTROM = {"CUNIT1": "Angstrom"}
LOG_CARDS, LOG_WAVE = make.log_axis(10_000, 7000.0, 0.2)
SIGMA_X = 3000 * (1 + (FINE - 7000) / 1000)
AIR_FLUX = {star: flux_of(star, make.vacuum_of(AIR_X)) for star in STARS}
DAMAGED_NX = FLUX_NX.copy()
DAMAGED_NX[1, 3000] = np.nan
BROKEN_NX = FLUX_NX.copy()
BROKEN_NX[1, 3000:5000] = np.nan


def each(suffix: str, write: Callable[[Path, Star], object], *options: str) -> Case:
    """Return a case of one file a star, named by its labels."""

    def case(folder: Path) -> list[str]:
        for star in STARS:
            write(folder / f"{make.name_of(star)}{suffix}", star)
        return [*PATTERN, *SNR, *options]

    return case


def one(write: Callable[[Path], object], *options: str) -> Case:
    """Return a case of one thing that is written into the folder."""

    def case(folder: Path) -> list[str]:
        write(folder)
        return list(options)

    return case


def table(*options: str, **arrays: Any) -> Case:
    """Return a case of a table of stars, NPZ; arrays replace those that it has, None leaves one out."""
    held = {"wave": FINE, "flux": FLUX_NX, **LABELS, **arrays}
    held = {name: values for name, values in held.items() if values is not None}
    return one(lambda folder: np.savez(folder / "set.npz", **held), *options)


def columns(wave_X: np.ndarray = FINE, at_X: np.ndarray | None = None, **layout: str) -> Callable[[Path, Star], None]:
    """Return a writer of two columns, wavelengths as written and flux at `at_X`, vacuum Angstrom."""
    return lambda path, star: make.text(
        path, {"1": wave_X, "2": flux_of(star, wave_X if at_X is None else at_X)}, **layout
    )


def image(cards: dict[str, Any], at_X: np.ndarray = FINE) -> Case:
    return each(".fits", lambda path, star: make.fits_image(path, flux_of(star, at_X), cards))


def fits_columns(wave: str, wave_X: np.ndarray, flux: str, at_X: np.ndarray, **units: str) -> Callable[..., None]:
    return lambda path, star: make.fits_table(path, {wave: wave_X, flux: flux_of(star, at_X)}, units)


def with_error(name: str, values_X: np.ndarray, *options: str, form: str = "text") -> Case:
    """Return a case of one star with errors of some kind."""
    star = STARS[2]

    def case(folder: Path) -> list[str]:
        path = folder / f"{make.name_of(star)}.{'txt' if form == 'text' else 'fits'}"
        if form == "text":
            header = f"wave flux {name}" if name else ""
            make.text(path, {"1": FINE, "2": flux_of(star, FINE), "3": values_X}, header=header)
        else:
            make.fits_image(path, flux_of(star, FINE), LINEAR, **{name.upper(): values_X})
        return [*PATTERN, *options]

    return case


def set_of_stars(folder: Path) -> None:
    held = {**LABELS, "FLUX": FLUX_NX, "WAVE": np.tile(FINE, (len(STARS), 1))}
    make.fits_table(folder / "set.fits", held)


def packed_fits(folder: Path) -> None:
    set_of_stars(folder)
    (folder / "set.fits.gz").write_bytes(gzip.compress((folder / "set.fits").read_bytes(), 1))
    (folder / "set.fits").unlink()


def pandas_table(folder: Path) -> None:
    make.hdf5(folder / "set.h5", {"grid/lambda": FINE, "grid/spectra": FLUX_NX}, {"grid/lambda": "angstrom"})
    make.table_of(STARS).to_hdf(folder / "set.h5", key="stars", mode="r+", format="table")


def compound(folder: Path) -> None:
    make.hdf5(folder / "set.h5", {"wave": FINE, "flux": FLUX_NX}, chunks=(2, 500), compression="gzip")
    with h5py.File(folder / "set.h5", "r+") as file:
        file["params"] = make.table_of(STARS).to_records(index=False)


def records(folder: Path) -> None:
    kinds = [*((name, "f8") for name in LABELS), ("flux", "f8", len(FINE))]
    stars = np.array(list(zip(*LABELS.values(), FLUX_NX, strict=True)), kinds)
    np.savez(folder / "set.npz", wave=FINE, stars=stars, names=np.array(["a", None], object))


def flux_and_error(path: Path, star: Star) -> None:
    """Write flux and error as images that both have the axis."""
    flux, cards = flux_of(star, FINE), fits.Header({**LINEAR, "CTYPE1": "WAVE", **ANGSTROM})
    fits.HDUList([fits.PrimaryHDU(flux, cards), fits.ImageHDU(flux / 9, cards, name="ERROR")]).writeto(path)


def fortran(path: Path, star: Star) -> None:
    make.text(path, {"1": FINE, "2": flux_of(star, FINE)}, number="%.9e")
    path.write_bytes(bz2.compress(bz2.decompress(path.read_bytes()).replace(b"e+", b"D+")))


def wide(name: str) -> Callable[[Path], None]:
    """Return a writer of a table with a spectrum a line."""
    flux = pd.DataFrame(FLUX_NX, columns=[f"flux_{w:.2f}" for w in FINE])
    return lambda folder: pd.concat([make.table_of(STARS), flux], axis=1).to_csv(folder / name, index=False)


FORMS: dict[str, Case] = {
    "txt": each(".txt", columns()),
    "txt.gz": each(".txt.gz", columns()),
    "txt.xz": each(".txt.xz", columns()),
    "dat.bz2, Fortran's exponents": each(".dat.bz2", fortran),
    "csv with names": each(".csv", columns(separator=",", header="Wavelength,Flux")),
    "tabs, names in a comment": each(".dat", columns(separator="\t", header="# wave\tflux")),
    "csv, unit in the name": each(".csv", columns(FINE / 10, FINE, separator=",", header="wave [nm],flux")),
    "falling micrometers": each(".txt", columns(FINE[::-1] / 1e4, FINE[::-1], number="%.12g")),
    "logarithms": each(".txt", columns(np.log10(FINE_LOG), FINE_LOG, number="%.12g")),
    "air": each(".txt", lambda p, s: make.text(p, {"w": AIR_X, "f": AIR_FLUX[s]}), "--air"),
    "npz": each(".npz", lambda p, s: np.savez_compressed(p, wavelength=FINE, flux=flux_of(s, FINE))),
    "FITS table": each(".fits", fits_columns("Wavelength", FINE / 10, "SpecificIntensity", FINE, Wavelength="nm")),
    "FITS table, packed": each(".fits.gz", fits_columns("loglam", np.log10(FINE_LOG), "flux", FINE_LOG)),
    "FITS table, AWAV": each(".fits", lambda p, s: make.fits_table(p, {"AWAV": AIR_X, "FLUX": AIR_FLUX[s]})),
    "FITS table of one row": each(
        ".fits", lambda p, s: make.fits_table(p, {"WAVE": FINE[None], "FLUX": flux_of(s, FINE)[None]})
    ),
    "FITS image": image(LINEAR),
    "FITS image of single precision": each(
        ".fits", lambda p, s: make.fits_image(p, flux_of(s, FINE).astype(np.float32), LINEAR)
    ),
    "FITS image, air": image({**LINEAR, "CTYPE1": "AWAV", **ANGSTROM}, make.vacuum_of(AIR_X)),
    "FITS image, nanometers": image({"CRVAL1": 700.0, "CD1_1": 0.025, "CTYPE1": "WAVE", "CUNIT1": "nm"}),
    "FITS image, CD1_1 beside CDELT1": image({**LINEAR, "CDELT1": 1.0, "CD1_1": 0.25}),
    "FITS image, CDELT1 times PC1_1": image({**LINEAR, "CDELT1": 1.0, "PC1_1": 0.25}),
    "FITS image, logarithmic": image(LOG_CARDS, LOG_WAVE),
    "FITS image of IRAF, log10": image(
        {"CRVAL1": np.log10(7000.0), "CDELT1": 13e-6, "CTYPE1": "LINEAR", "DC-FLAG": 1}, FINE_LOG
    ),
    "FITS image of SDSS": image({"COEFF0": np.log10(7000.0), "COEFF1": 13e-6}, FINE_LOG),
    "FITS image, wavelengths apart": each(
        ".fits", lambda p, s: make.fits_image(p, flux_of(s, FINE), {}), "--source-wave", "wave.txt"
    ),
    "FITS images of flux and error": each(".fits", flux_and_error),
    "csv, air in the name": each(
        ".csv",
        lambda p, s: make.text(p, {"w": AIR_X, "f": AIR_FLUX[s]}, separator=",", header="wave_air,flux"),
    ),
    "csv, vacuum and air": each(
        ".csv",
        lambda p, s: make.text(
            p,
            {"a": make.air(FINE), "v": FINE, "f": flux_of(s, FINE)},
            separator=",",
            header="wave_air,wave_vac,flux",
        ),
    ),
    "table of stars: NPZ": table(*SNR),
    "table of stars: NPZ, packed, other names": one(
        lambda f: np.savez_compressed(
            f / "set.npz",
            l=FINE / 10,
            s=FLUX_NX.astype(np.float32),
            t=LABELS["T_eff"],
            logg=LABELS["log_g"],
            z=LABELS["M_H"],
        ),
        *("--wave-name", "l", "--flux-name", "s", "--columns", "T_eff=t,M_H=z", *SNR),
    ),
    "table of stars: NPZ, records and Python objects": one(records, *SNR),
    "table of stars: HDF5": one(
        lambda f: make.hdf5(f / "set.h5", {"a/wave": FINE, "a/flux/value": FLUX_NX, **LABELS}), *SNR
    ),
    "table of stars: HDF5 with a table of pandas": one(pandas_table, *SNR),
    "table of stars: HDF5, chunked, with records": one(compound, *SNR),
    "table of stars: FITS": one(set_of_stars, *SNR),
    "table of stars: FITS, packed": one(packed_fits, *SNR),
    "table of stars: CSV": one(wide("set.csv"), *SNR),
    "table of stars: CSV, packed": one(wide("set.csv.gz"), *SNR),
}
"""Of all of them the same spectra come, with the labels of `STARS` and S/N 50."""
ERRORS: dict[str, Case] = {
    "sigma in a text": with_error("error", SIGMA_X),
    "variance in a text": with_error("variance", SIGMA_X**2),
    "inverse variance in a text": with_error("ivar", SIGMA_X**-2.0),
    "a third column": with_error("", SIGMA_X, "--error-name", "3", "--error-kind", "sigma"),
    "sigma in an image": with_error("error", SIGMA_X, form="image"),
    "variance in an image": with_error("variance", SIGMA_X**2, form="image"),
    "inverse variance in an image": with_error("ivar", SIGMA_X**-2.0, form="image"),
}
"""Of all of them the same errors come, those of `SIGMA_X` for the third star."""


# libraries


def bosz_2017(star: Star) -> str:
    metals = f"{'mp'[star[2] >= 0]}{round(abs(star[2]) * 10 + 1e-9):02d}"
    return f"am{metals}cp00op00t{star[0]:.0f}g{star[1] * 10:02.0f}v20modrt0b5000rs"


def bosz_2024(star: Star, end: str) -> str:
    return "bosz2024_mp_t{:.0f}_g{:+.1f}_m{:+.2f}_a+0.00_c+0.00_v2_r5000_".format(*star) + end


def resampled_2024(folder: Path) -> None:
    """Write texts of flux alone, one deeper in the folder than their wavelengths."""
    for star in STARS[:3]:
        inner = folder / f"m{star[2]:+.2f}"
        inner.mkdir()
        content = {"1": AIR_FLUX[star], "2": np.ones(len(AIR_X))}
        make.text(inner / bosz_2024(star, "resam.txt.gz"), content)
    np.savetxt(folder / "bosz2024_wave_r5000.txt", AIR_X)


def library(write: Callable[[Path, Star], None]) -> Case:
    def case(folder: Path) -> list[str]:
        for star in STARS[:3]:
            write(folder, star)
        return SNR

    return case


UNIT_X, UNIT_AIR_X = np.ones(len(FINE)), np.ones(len(AIR_X))
LIBRARIES: dict[str, Case] = {
    "BOSZ 2017, FITS": library(
        lambda f, s: make.fits_table(
            f / f"{bosz_2017(s)}.fits",
            {"Wavelength": FINE, "SpecificIntensity": flux_of(s, FINE), "Continuum": UNIT_X},
        )
    ),
    "BOSZ 2017, ASCII": library(
        lambda f, s: make.text(f / f"{bosz_2017(s)}.asc.bz2", {"1": FINE, "2": flux_of(s, FINE), "3": UNIT_X})
    ),
    "BOSZ 2024": library(
        lambda f, s: make.text(f / bosz_2024(s, "noresam.txt.gz"), {"1": AIR_X, "2": AIR_FLUX[s], "3": UNIT_AIR_X})
    ),
    "BOSZ 2024, resampled": one(resampled_2024, *SNR),
}
"""Of all of them the first three spectra come, with redshift 0 and v_micro 2."""


# what else may be asked for


def labelled(content: str, *options: str) -> Case:
    """Return a case of a table without labels, or of files, with a table of labels beside it."""

    def case(folder: Path) -> list[str]:
        (folder.parent / "labels.csv").write_text(content)
        if "file" not in content:
            np.savez(folder / "set.npz", wave=COARSE, flux=FLUX_NX[:, ::2])
        for number, star in enumerate(STARS if "file" in content else []):
            make.text(folder / f"s{number}.txt", {"1": COARSE, "2": flux_of(star, COARSE)})
        return ["--labels", "labels.csv", *SNR, *options]

    return case


def shards(*options: str) -> Case:
    """Return a case of two files that are shards already, one of them in chunks of float64."""

    def case(folder: Path) -> list[str]:
        rng = np.random.default_rng(1)
        for name, rows in (("a", 12), ("b", 9)):
            flux_NP = rng.uniform(0.2, 1.0, (rows, 64))
            labels = pd.DataFrame({"log_g": rng.uniform(1, 5, rows), "kind": np.arange(rows)})
            write_shard(
                folder / f"{name}.h5",
                wave_P=7100 + np.arange(64) / 2,
                flux_NP=flux_NP,
                error_NP=flux_NP / 9,
                labels=labels,
            )
        with h5py.File(folder / "b.h5", "r+") as file:
            del file[FLUX]
            file.create_dataset(FLUX, data=flux_NP, chunks=(4, 64), compression="gzip")
        return list(options)

    return case


def many_stars(*options: str) -> Case:
    """Return a case of 40 spectra of 20 stars, each twice."""
    t_eff = np.repeat(4000.0 + 50 * np.arange(20), 2)
    flux_NX = 1 + t_eff[:, None] / 1e4 * np.sin(COARSE / 100)
    held = {"wave": COARSE, "flux": flux_NX, "T_eff": t_eff, "log_g": np.repeat(np.arange(20) / 5, 2)}
    return one(lambda folder: np.savez(folder / "set.npz", **held), *options)


def sharp_line(folder: Path) -> None:
    """Write a line of R = 50,000 into a file whose name says so."""
    wave_X = 7080.0 + 0.04 * np.arange(44_750)
    depth_X = np.exp(-0.5 * ((wave_X - 8000.0) / (8000.0 / 50_000 / 2.3548)) ** 2)
    content = {"1": wave_X, "2": 1 - 0.5 * depth_X}
    make.text(folder / "amp00cp00op00t4000g40v20modrt0b50000rs.asc.bz2", content)


OWN_PIXELS = ["--wave", "pixels.txt"]
MASKED_NX = np.where((np.arange(5)[:, None] < 2) & (np.arange(len(FINE)) == 3000), 0.0, 1 / FLUX_NX)
DARK_NX = np.where((np.arange(5)[:, None] < 2) & (np.arange(len(FINE)) >= 3000), 0.0, 1 / FLUX_NX)
OTHERS: dict[str, Case] = {
    "resolution in the name": one(sharp_line, *SNR),
    "own pixels, smoothed": table(
        *SNR, *OWN_PIXELS, "--resolution", "inf", "--to-resolution", "3000", "--no-normalise"
    ),
    "own pixels, coarser": table(*SNR, *OWN_PIXELS),
    "smoothed to the instrument": table(*SNR, "--resolution", "20000"),
    "pixels kept": table(*SNR, "--wave", "keep", "--unit", "A", "--no-normalise"),
    "pixels kept, with errors": table(
        "--wave", "keep", "--unit", "A", "--error-name", "sd", "--error-kind", "variance", sd=FLUX_NX / 90
    ),
    "unit of the errors": one(
        lambda f: make.fits_table(
            f / "set.fits",
            {"wave": np.tile(FINE, (5, 1)), "flux": FLUX_NX, "q": FLUX_NX / 90, **LABELS},
            {"wave": "Angstrom", "flux": "erg / (s cm2 Angstrom)", "q": "erg2 / (s2 cm4 Angstrom2)"},
        ),
        *("--error-name", "q"),
    ),
    "errors of the instrument": table("--magnitudes", "20.5", "22.5", "--seed", "7"),
    "magnitudes instead of those of the source": table(
        "--magnitudes",
        "20",
        "21",
        "--columns",
        "snr_source=snr",
        mag=np.full(5, 7.0),
        error=FLUX_NX / 9,
        snr=np.full(5, 9.0),
    ),
    "split, copies of a star together": many_stars(*SNR, "--split", "0.6,0.2,0.2", "--seed", "3"),
    "split, drawn magnitudes, several shards": many_stars(
        "--magnitudes", "18", "21", "--split", "0.5,0.25,0.25", "--shard", "8"
    ),
    "labels by file": labelled(
        "file,Teff,logg,feh,who\n" + "".join(f"s{i}.txt,{4000 + i},{i},-{i},x\n" for i in reversed(range(5))),
        *("--columns", "M_H=feh", "--fill", "redshift=0,C_M=0.1"),
    ),
    "labels by row": labelled("log_g;T_eff\n" + "".join(f"{i};{5000 + i}\n" for i in range(5))),
    "labels by row, numbers to identify": table(
        *SNR, "--columns", "mass=height", source_id=2**60 + np.arange(5), height=np.arange(5)
    ),
    "a pixel that is not a number": table(*SNR, flux=DAMAGED_NX),
    "a pixel that is not a number, errors of the instrument": table("--magnitudes", "20", "21", flux=DAMAGED_NX),
    "many pixels that are not numbers, left out": table(*SNR, "--skip-bad", flux=BROKEN_NX),
    "a label that is not a number": table(*SNR, T_eff=np.array([4000, np.nan, 5000, 5500, 6000])),
    "a label that is not a number, left out": table(
        *SNR, "--skip-bad", "--shard", "2", T_eff=np.array([4000, np.nan, 5000, -9999, 6000])
    ),
    "masked pixels": table(ivar=MASKED_NX),
    "many masked pixels, left out": table("--skip-bad", ivar=DARK_NX),
    "shards, cut": shards("--shard", "8"),
    "shards, split": shards("--split", "0.6,0.2,0.2"),
    "shards, another label": shards("--fill", "redshift=0"),
    "refused: no errors": table(),
    "refused: no labels": table(*SNR, T_eff=None, log_g=None, M_H=None),
    "refused: not a number": table(*SNR, flux=BROKEN_NX),
    "refused: masked": table(ivar=DARK_NX),
    "refused: flux per frequency": one(
        lambda f: make.fits_table(f / "a.fits", {"wave": FINE, "flux": FLUX_NX[0]}, {"flux": "erg/s/cm2/Hz"}),
        *(*SNR, "--fill", "log_g=4"),
    ),
    "refused: a hole": table(
        *SNR, wave=np.delete(FINE, np.s_[4000:4020]), flux=np.delete(FLUX_NX, np.s_[4000:4020], axis=1)
    ),
    "refused: uncovered": table(*SNR, "--unit", "A", wave=FINE[:6000], flux=FLUX_NX[:, :6000]),
    "refused: errors of an unknown kind": table("--error-name", "q", q=FLUX_NX),
}
CASES: dict[str, Case] = {**FORMS, **ERRORS, **LIBRARIES, **OTHERS}


def convert_in(place: Path, case: str) -> int:
    """Write a case's input into a new folder, convert it there from `source` to `out`, and return the exit code."""
    (place / "source").mkdir(parents=True)
    np.savetxt(place / "wave.txt", FINE)
    np.savetxt(place / "pixels.txt", 7200.0 + 0.8 * np.arange(2000))
    options = CASES[case](place / "source")
    with contextlib.chdir(place):
        return make.convert("source", "out", *options)


def result_in(place: Path, code: int) -> dict[str, Any]:
    """Return what a conversion left in `out`, as JSON has it: facts of the manifest, and each array of each shard."""
    if code:
        return {"exit code": code}
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    rows = {output["file"]: output["rows"] for output in manifest["outputs"]}
    left_out = [[spectrum["file"], spectrum["row"]] for spectrum in manifest["left_out"]]
    sources = [source["file"] for source in manifest["sources"]]
    facts = {"options": manifest["options"], "inputs": sorted(manifest["inputs"]), "sources": sources}
    shards = {file: _arrays(place / "out" / file) for file in rows}
    return {**facts, "rows": rows, "left_out": left_out, "shards": shards}


def _arrays(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        arrays = {name: file[name][()] for name in (WAVE, FLUX, ERROR)}
    labels: Any = pd.read_hdf(path, key=PARAMS)
    columns = {f"label {name}": labels[name].to_numpy() for name in labels}
    return {name.rpartition("/")[2] if " " in name else name: _facts(x) for name, x in (arrays | columns).items()}


def _facts(values: np.ndarray) -> list[Any]:
    """Return type, shape, a few values and the digest of an array."""
    flat = values[~np.isnan(values)]
    sample = [flat.astype(np.float64).mean(), *flat[:: max(1, len(flat) // 4)][:4]]
    sample = [float(f"{value:.8g}") for value in sample]
    return [values.dtype.str, list(values.shape), sample, sha256(values.tobytes())[:16]]


def sha256(content: bytes) -> str:
    """Return a digest as the manifest has it."""
    return hashlib.sha256(content).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute or read numbers."""
    return {name: metadata.version(name) for name in ("numpy", "scipy", "torch", "pandas", "astropy")}


def canary() -> str:
    """Return a digest of fixed arithmetic; where it differs, so may the last bits of a conversion."""
    values = np.random.default_rng(0).uniform(0.1, 3.0, (97, 53))
    matrix = sparse.csr_array(np.where(values > 2, values, 0))
    results = [np.exp(values), np.log10(values), 10**values, np.sqrt(values), np.sin(values), ndtr(values)]
    results += [matrix @ values.T, values.mean(axis=1), np.hypot(values, values[::-1])]
    found = b"".join(np.ascontiguousarray(result).tobytes() for result in results)
    return sha256(golden_canary().encode() + found)[:16]


def main() -> None:
    """Convert all cases and write what came."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            place = Path(folder, str(number))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                code = convert_in(place, case)
            results[case] = result_in(place, code)
            print(case, said.getvalue().strip(), sep=": ")
    head = {"versions": versions(), "canary": canary()}
    lines = [f"{json.dumps(case)}: {json.dumps(result)}" for case, result in results.items()]
    EXPECTED.write_text(f'{json.dumps(head)[:-1]}, "cases": {{\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
