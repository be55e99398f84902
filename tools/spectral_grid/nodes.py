"""The nodes of the grid and the labels for its checks, and their synthesis: in parallel, resumable.

Shape suffixes: B spectra of a piece, N nodes, M other labels, L labels, Q padded pixels.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specvit.physics import instrument
from specvit.physics.grid import carbon, carbon_to_oxygen
from specvit.physics.population import RANGES
from specvit.utils.errors import DataError
from specvit.utils.files import cache_dir, remove_leftovers, write_atomic
from specvit.utils.processes import process_pool
from specvit.utils.quantities import NUM_PIXELS

Axes = Mapping[str, Sequence[float]]

AXES: dict[str, tuple[float, ...]] = {
    "T_eff": (3750.0, 3900.0, 4100.0, 4400.0, 4750.0, 5150.0, 5600.0, 6000.0),
    "log_g": tuple(np.linspace(1, 5, 6).tolist()),
    "M_H": tuple(np.linspace(-2.5, 0.75, 7).tolist()),
    "a_M": (-0.25, 0.0, 0.25, 0.5),
    "C_O": tuple(np.linspace(carbon_to_oxygen(-0.75, 0.5), carbon_to_oxygen(0.5, -0.25), 13).tolist()),
}
"""Nodes by coordinate (see `specvit.physics.grid`). Closer in cool stars, whose TiO varies fast; the carbon axis
stretches the place where carbon begins to outnumber oxygen; spectra are smooth in log g and a_M."""

NAMES = ("T_eff", "log_g", "M_H", "a_M", "C_M")
PIECE_NODES = 32
"""Spectra per file in the work folder."""
SOURCES = Path(__file__).parent
NOT_SYNTHESIS = {"__init__.py", "__main__.py", "compression.py", "nodes.py"}
"""Sources of this package that do not affect a synthesised spectrum; any other is assumed to."""

Report = Callable[[int, int, float], None]
"""Called with (spectra finished, spectra in total, mean seconds of one process per spectrum, 0 if not yet known)."""


def node_coordinates(axes: Axes) -> NDArray[np.float64]:
    """Return the coordinates of all nodes, shape (N, L), the last axis fastest."""
    return np.array(list(product(*axes.values())), dtype=np.float64)


def random_coordinates(axes: Axes, count: int) -> NDArray[np.float64]:
    """Return coordinates of labels spread evenly over the box of the axes, shape (count, L), the same at every call."""
    low_L, high_L = _ends(axes)
    share_ML = np.random.default_rng(0).random((count, len(low_L)))
    place_ML = low_L + (high_L - low_L) * share_ML
    low_M, high_M = (np.clip(carbon(end, place_ML[:, 3]), *RANGES["C_M"]) for end in (low_L[4], high_L[4]))
    place_ML[:, 4] = carbon_to_oxygen(low_M + (high_M - low_M) * share_ML[:, 4], place_ML[:, 3])
    return place_ML


def crossing_coordinates(axes: Axes, count: int) -> NDArray[np.float64]:
    """Return coordinates of the spectra hardest to interpolate: cool stars with about as much carbon as oxygen."""
    place_ML, share_ML = random_coordinates(axes, count), np.random.default_rng(1).random((count, 3))
    low_L, high_L = _ends(axes)
    place_ML[:, 0] = np.clip(3750 + 350 * share_ML[:, 0], low_L[0], high_L[0])
    place_ML[:, 2] = np.clip(-1 + 1.75 * share_ML[:, 1], low_L[2], high_L[2])
    excess_M = 0.15 + 0.25 * share_ML[:, 2]  # [C/M] - [alpha/M]
    place_ML[:, 3] = np.clip(place_ML[:, 3], low_L[3], np.maximum(RANGES["C_M"][1] - excess_M, low_L[3]))
    place_ML[:, 4] = np.clip(carbon_to_oxygen(excess_M, 0.0), low_L[4], high_L[4])
    return place_ML


def labels_of(coordinate_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the labels `NAMES` of coordinates, shape (N, L)."""
    return np.column_stack((coordinate_NL[:, :4], carbon(coordinate_NL[:, 4], coordinate_NL[:, 3])))


def _ends(axes: Axes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low_L, high_L = np.array([(min(nodes), max(nodes)) for nodes in axes.values()]).T
    return low_L, high_L


def fingerprint(axes: Axes) -> str:
    """Return a digest of all sources and tables that the synthesis may use, a hyphen, and one of the axes."""
    digest = hashlib.blake2b(str(NUM_PIXELS).encode(), digest_size=6)
    for source in sorted([*SOURCES.glob("*.py"), *SOURCES.glob("*.csv"), Path(instrument.__file__)]):
        if source.name not in NOT_SYNTHESIS:
            digest.update(f"\0{source.name}\0".encode() + source.read_bytes())
    nodes = json.dumps({name: list(nodes) for name, nodes in axes.items()})
    return f"{digest.hexdigest()}-{hashlib.blake2b(nodes.encode(), digest_size=4).hexdigest()}"


def work_folder(fingerprint: str) -> Path:
    """Return the folder of the spectra synthesised so far for a grid with this fingerprint."""
    return cache_dir() / f"grid-{fingerprint}"


def synthesise(labels_NL: NDArray, folder: Path, *, workers: int, report: Report) -> NDArray:
    """Return the flux of all labels, shape (N, Q), float32; pieces already in `folder` are read, not synthesised.

    The caller holds the lock of `folder`; raises `DataError` if a worker dies. The name of a piece is its number and
    the digest of its labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    parts = np.split(labels_NL, range(PIECE_NODES, len(labels_NL), PIECE_NODES))
    paths = [folder / f"{number:05d}-{_digest(part)}.npy" for number, part in enumerate(parts)]
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    finished, new, seconds = len(labels_NL) - sum(len(part) for _, part in missing), 0, 0.0
    report(finished, len(labels_NL), 0.0)
    if missing:
        try:
            with process_pool(min(workers, len(missing))) as pool:
                jobs = {pool.submit(synthesise_piece, path, part): len(part) for path, part in missing}
                for job in as_completed(jobs):
                    seconds, new = seconds + job.result(), new + jobs[job]
                    report(finished + new, len(labels_NL), seconds / new)
        except BrokenProcessPool as problem:
            remedy = "run the same command again to resume; --workers 1 needs the least memory"
            raise DataError("a worker process died, perhaps for lack of memory", remedy=remedy) from problem
    flux_NQ = np.empty((len(labels_NL), len(instrument.padded_wavelength())), dtype=np.float32)
    for number, path in enumerate(paths):
        flux_NQ[number * PIECE_NODES : (number + 1) * PIECE_NODES] = np.load(path)
    return flux_NQ


def synthesise_piece(path: Path, labels_BL: NDArray) -> float:
    """Synthesise some spectra into one file, atomically; return the seconds it took; raises `DataError`."""
    from tools.spectral_grid.synthesis import padded_flux  # only workers need its tables

    started = time.perf_counter()
    flux_BQ = np.stack([padded_flux(dict(zip(NAMES, row, strict=True))) for row in labels_BL.tolist()])
    if not (np.isfinite(flux_BQ).all() and (flux_BQ > 0).all()):
        bad = labels_BL[~(np.isfinite(flux_BQ) & (flux_BQ > 0)).all(axis=1)][0]
        where = ", ".join(f"{name} {value:g}" for name, value in zip(NAMES, bad.tolist(), strict=True))
        raise DataError(
            "the synthesised flux is not positive", where=where, remedy="keep the axes nearer to cool stars"
        )
    write_atomic(path, lambda stream: np.save(stream, flux_BQ))
    return time.perf_counter() - started


def _digest(labels_BL: NDArray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(labels_BL).tobytes(), digest_size=6).hexdigest()
