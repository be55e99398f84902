"""Synthesises the nodes of the grid, in processes and resumably. For developers: users get the result in the package.

Shape suffixes: B rows of a piece, N nodes, L labels, Q padded pixels.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specvit.errors import DataError
from specvit.files import cache_dir, remove_leftovers, write_atomic
from specvit.physics.coordinates import carbon, carbon_place
from specvit.physics.pixels import padded_wavelength
from specvit.physics.population import RANGES
from specvit.pool import process_pool
from specvit.quantities import NUM_PIXELS

Axes = Mapping[str, Sequence[float]]

AXES: dict[str, tuple[float, ...]] = {
    "T_eff": (3750.0, 3900.0, 4100.0, 4400.0, 4750.0, 5150.0, 5600.0, 6000.0),
    "log_g": tuple(np.linspace(1, 5, 6).tolist()),
    "M_H": tuple(np.linspace(-2.5, 0.75, 7).tolist()),
    "a_M": (-0.25, 0.0, 0.25, 0.5),
    "C_O": tuple(np.linspace(carbon_place(-0.75, 0.5), carbon_place(0.5, -0.25), 13).tolist()),
}
"""Nodes by coordinate (see `coordinates`). Closer in cool stars, whose TiO comes and goes fast, and where carbon comes
to outweigh oxygen; spectra are smooth in log g and a_M."""

NAMES = ("T_eff", "log_g", "M_H", "a_M", "C_M")
PIECE_NODES = 32
"""Spectra a file of the work folder."""
NOT_SYNTHESIS = {"__main__.py", "accuracy.py", "compress.py", "coordinates.py", "fisher.py", "forward.py", "grid.py"}
NOT_SYNTHESIS |= {"instrument.py", "package.py", "population.py", "simulator.py", "splines.py", "pfs_mr_noise.csv"}
"""Sources of this package that do not change a synthesised spectrum; any other is taken to."""

Report = Callable[[int, int, float], None]
"""Called with (spectra there are, spectra wanted, seconds a spectrum has taken one process so far)."""


def node_places(axes: Axes) -> NDArray[np.float64]:
    """Return the coordinates of all nodes, shape (N, L), the last axis fastest."""
    return np.array(list(product(*axes.values())), dtype=np.float64)


def random_places(axes: Axes, count: int) -> NDArray[np.float64]:
    """Return coordinates of labels spread evenly over the box of the axes, shape (count, L), always the same."""
    low_L, high_L = _ends(axes)
    share_ML = np.random.default_rng(0).random((count, len(low_L)))
    place_ML = low_L + (high_L - low_L) * share_ML
    low_M, high_M = (np.clip(carbon(end, place_ML[:, 3]), *RANGES["C_M"]) for end in (low_L[4], high_L[4]))
    place_ML[:, 4] = carbon_place(low_M + (high_M - low_M) * share_ML[:, 4], place_ML[:, 3])
    return place_ML


def crossing_places(axes: Axes, count: int) -> NDArray[np.float64]:
    """Return coordinates where spectra are hardest to interpolate: cool stars with about as much carbon as oxygen."""
    place_ML, share_ML = random_places(axes, count), np.random.default_rng(1).random((count, 3))
    low_L, high_L = _ends(axes)
    place_ML[:, 0] = np.clip(3750 + 350 * share_ML[:, 0], low_L[0], high_L[0])
    place_ML[:, 2] = np.clip(-1 + 1.75 * share_ML[:, 1], low_L[2], high_L[2])
    apart_M = 0.15 + 0.25 * share_ML[:, 2]  # of [C/M] - [alpha/M]
    place_ML[:, 3] = np.clip(place_ML[:, 3], low_L[3], np.maximum(RANGES["C_M"][1] - apart_M, low_L[3]))
    place_ML[:, 4] = np.clip(carbon_place(apart_M, 0.0), low_L[4], high_L[4])
    return place_ML


def labels_of(place_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the labels `NAMES` of coordinates, shape (N, L)."""
    return np.column_stack((place_NL[:, :4], carbon(place_NL[:, 4], place_NL[:, 3])))


def _ends(axes: Axes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low_L, high_L = np.array([(min(nodes), max(nodes)) for nodes in axes.values()]).T
    return low_L, high_L


def fingerprint(axes: Axes) -> str:
    """Return a digest of all sources and tables that the synthesis may use, a hyphen, and one of the axes."""
    digest = hashlib.blake2b(str(NUM_PIXELS).encode(), digest_size=6)
    for source in sorted(files("specvit.physics").iterdir(), key=lambda file: file.name):
        if source.name.endswith((".py", ".csv")) and source.name not in NOT_SYNTHESIS:
            digest.update(f"\0{source.name}\0".encode() + source.read_bytes())
    nodes = json.dumps({name: list(nodes) for name, nodes in axes.items()})
    return f"{digest.hexdigest()}-{hashlib.blake2b(nodes.encode(), digest_size=4).hexdigest()}"


def work_folder(mark: str) -> Path:
    """Return where the spectra of a grid with this fingerprint are kept while it is made."""
    return cache_dir() / f"grid-{mark}"


def synthesise(labels_NL: NDArray, folder: Path, *, workers: int, report: Report) -> NDArray:
    """Return the flux of all labels, shape (N, Q), float32; pieces that lie in `folder` already are not made again.

    The caller holds `folder` locked; raises `DataError` where a worker dies. A piece is named by its number and by the
    digest of its labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    parts = np.split(labels_NL, range(PIECE_NODES, len(labels_NL), PIECE_NODES))
    paths = [folder / f"{number:05d}-{_digest(part)}.npy" for number, part in enumerate(parts)]
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()]
    done, made, seconds = len(labels_NL) - sum(len(part) for _, part in missing), 0, 0.0
    report(done, len(labels_NL), 0.0)
    if missing:
        try:
            with process_pool(min(workers, len(missing))) as pool:
                jobs = {pool.submit(make_piece, path, part): len(part) for path, part in missing}
                for job in as_completed(jobs):
                    seconds, made = seconds + job.result(), made + jobs[job]
                    report(done + made, len(labels_NL), seconds / made)
        except BrokenProcessPool as problem:
            remedy = "the same command goes on; --workers 1 needs least"
            raise DataError("a worker process died, perhaps for lack of memory", remedy=remedy) from problem
    flux_NQ = np.empty((len(labels_NL), len(padded_wavelength())), dtype=np.float32)
    for number, path in enumerate(paths):
        flux_NQ[number * PIECE_NODES : (number + 1) * PIECE_NODES] = np.load(path)
    return flux_NQ


def make_piece(path: Path, labels_BL: NDArray) -> float:
    """Synthesise some spectra into one file, whole or absent; return the seconds that took; raises `DataError`."""
    from specvit.physics.synthesis import padded_flux  # here: its tables are for the workers only

    started = time.perf_counter()
    flux_BQ = np.stack([padded_flux(dict(zip(NAMES, row, strict=True))) for row in labels_BL.tolist()])
    if not (np.isfinite(flux_BQ).all() and (flux_BQ > 0).all()):
        bad = labels_BL[~(np.isfinite(flux_BQ) & (flux_BQ > 0)).all(axis=1)][0]
        where = ", ".join(f"{name} {value:g}" for name, value in zip(NAMES, bad.tolist(), strict=True))
        raise DataError("has no positive flux", where=where, remedy="keep the axes nearer to cool stars")
    write_atomic(path, lambda stream: np.save(stream, flux_BQ))
    return time.perf_counter() - started


def _digest(labels_BL: NDArray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(labels_BL).tobytes(), digest_size=6).hexdigest()
