"""The full check of files, for which training has no time: every value, every row, every label.

A result is cached by each file's path, size and time of change, outside the (perhaps read-only) data folder.
Legend: N rows, P pixels, B rows of a chunk.
"""

import contextlib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.data.hdf5 import filter_of, open_dataset, open_file
from specvit.data.shards import (
    Array2D,
    Shard,
    check_wave,
    masked_pixels,
    open_array,
    read_labels,
    read_mark,
    read_masked,
    read_wave,
)
from specvit.utils.errors import DataError
from specvit.utils.files import cache_dir, read_json, write_json
from specvit.utils.quantities import ERROR, FLUX, LABELS, MASKED, WAVE
from specvit.utils.text import counted

INSPECT_VERSION = 7
CHUNK_ROWS = 2048
PIXEL_FAULTS = "(flux|error) is (not finite|zero or negative) "
NAMED_ROWS = 5
"""How many bad rows a fault names."""


@dataclass
class Column:
    """A dataset or a label; `low` and `high` are the ends of its finite numbers, infinite where it has none."""

    name: str
    shape: list[int]
    type: str
    unit: str = ""
    low: float = math.inf
    high: float = -math.inf

    def span(self, values: np.ndarray) -> "Column":
        """Widen the range by the finite ones of some values."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        return self

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return it as a row of a text table."""
        span = f"{self.low:.5g} … {self.high:.5g}" if self.low <= self.high else ""
        return self.name, str(tuple(self.shape)), self.type, self.unit, span


@dataclass
class Report:
    """What one file holds and what is wrong with it."""

    path: str
    columns: list[Column] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a user should know, though the file can be used."""
    linked: bool = False
    """Whether values are in other files: a report on them is not kept, since this file does not change with them."""
    digests: list[str] = field(default_factory=list)
    """A digest of each spectrum, to find the same one twice; "" for one that cannot be read."""


def inspect_files(paths: Sequence[Path]) -> list[Report]:
    """Return a report a file; a spectrum that is in two of the files is a fault of the later one."""
    reports = [_cached(path) for path in paths]
    seen: dict[str, str] = {}
    for report in reports:
        twins = [(row, seen[digest]) for row, digest in enumerate(report.digests) if digest in seen]
        if twins:
            row, where = twins[0]
            report.faults.append(f"{len(twins)} spectra are in another file, too: row {row} is {where}")
        name = Path(report.path).parent.name + "/" + Path(report.path).name
        seen |= {digest: f"{name} row {row}" for row, digest in enumerate(report.digests) if digest}
    return reports


def inspect_file(path: Path) -> Report:
    """Return the report of one file, whatever is wrong with it."""
    report = Report(str(path))
    try:
        flux, error = _check_layout(path, report)
    except DataError as problem:
        report.faults.append(problem.what)
        return report
    if flux is not None:
        if error is not None and (flux.rows, flux.pixels) != (error.rows, error.pixels):
            report.faults.append(f"{ERROR} has shape {error.rows, error.pixels}, the flux {flux.rows, flux.pixels}")
        _check_labels(Shard(path=path, flux=flux, error=error or flux, wave_P=np.empty(0)), report)
        _check_values(flux, "flux", report, _flux_faults)
        _check_duplicates(flux, report)
    if error is not None:
        _check_values(error, "error", report, _error_faults)
    if flux is not None and error is not None and report.faults:
        _excuse_masked(path, flux, error, report)
    return report


def _excuse_masked(path: Path, flux: Array2D, error: Array2D, report: Report) -> None:
    """Replace the faults of pixels by a note, where the file says of each row how many are masked."""
    with open_file(path) as file:
        masked_N = read_masked(file, path, flux) if MASKED in file else None
    if masked_N is None:
        return
    report.faults = [fault for fault in report.faults if not re.match(PIXEL_FAULTS, fault)]
    pieces = zip(_chunks_of(flux), _chunks_of(error), strict=False)
    counted_N = np.concatenate([masked_pixels(flux_BP, error_BP).sum(axis=1) for (_, flux_BP), (_, error_BP) in pieces])
    if len(counted_N) == len(masked_N):  # else rows cannot be read, which is a fault of its own
        report.faults += _bad_rows(f"masked pixels are not as many as {MASKED} says", counted_N != masked_N)
    in_rows = counted(int(np.count_nonzero(masked_N)), "row")
    report.notes.append(f"note: masked pixels: {masked_N.sum():,}, in {in_rows}")


def _cached(path: Path) -> Report:
    try:
        facts = path.stat()
    except OSError as problem:
        raise DataError("is not there", where=str(path), remedy="check the path") from problem
    key = json.dumps([INSPECT_VERSION, str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    cache_file = cache_dir() / "inspect" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    known = read_json(cache_file)
    if known:
        return Report(**known | {"path": str(path), "columns": [Column(**row) for row in known["columns"]]})
    report = inspect_file(path)
    if report.linked:
        return report
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache_file, asdict(report))
    return report


def _check_layout(path: Path, report: Report) -> tuple[Array2D | None, Array2D | None]:
    """Check each dataset by itself, so that one that is missing does not hide the next."""
    arrays: dict[str, Array2D | None] = {FLUX: None, ERROR: None}
    with open_file(path) as file:
        for name in arrays:
            try:
                arrays[name] = array = open_array(file, path, name)
                report.linked |= array.path != path or open_dataset(file, path, name).is_virtual
            except DataError as problem:
                report.faults.append(_shorten(problem, path))
        try:
            if arrays[FLUX] and read_mark(file, path):
                report.notes.append("note: the flux is marked as observed: it gets no further noise")
            wave_P = read_wave(file, path)
            report.columns.append(Column(WAVE, list(wave_P.shape), "float", "Å vacuum").span(wave_P))
            flux = arrays[FLUX]
            check_wave(wave_P, flux.pixels if flux else len(wave_P), path)
        except DataError as problem:
            report.faults.append(_shorten(problem, path))
        for name, array in arrays.items():
            if array is not None:
                layout = "contiguous" if array.offset is not None else _chunks(file, name)
                shape = [array.rows, array.pixels]
                report.columns.append(Column(name, shape, f"{array.dtype} {layout}", "median flux"))
    return arrays[FLUX], arrays[ERROR]


def _check_labels(shard: Shard, report: Report) -> None:
    try:
        table = read_labels(shard)
    except DataError as problem:
        report.faults.append(_shorten(problem, shard.path))
        return
    for name in map(str, table.columns):
        known = LABELS.get(name)
        if table[name].dtype.kind not in "fiu":
            report.columns.append(Column(name, [len(table)], str(table[name].dtype)))
            continue
        values_N = table[name].to_numpy(dtype=np.float64)
        report.columns.append(Column(name, [len(table)], "label", known.unit if known else "").span(values_N))
        report.faults += _bad_rows(f"label {name} is infinite", np.isinf(values_N))
        report.notes += [f"note: {words}" for words in _bad_rows(f"label {name} is missing (NaN)", np.isnan(values_N))]
        if known:
            outside = np.isfinite(values_N) & ((values_N < known.low) | (values_N > known.high))
            report.faults += _bad_rows(f"label {name} is outside {known.low:g} to {known.high:g} {known.unit}", outside)
    missing = [name for name in LABELS if name not in table]
    if missing:
        report.notes.append(f"note: labels of the layout that it does not have: {', '.join(missing)}")


def _check_values(
    array: Array2D, name: str, report: Report, faults: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> None:
    """Scan an array chunk by chunk; `faults` returns a row mask for each kind of fault."""
    full = FLUX if name == "flux" else ERROR
    masks: dict[str, np.ndarray] = {}
    damaged_N = np.ones(array.rows, dtype=bool)
    (column,) = (column for column in report.columns if column.name == full)
    for start, values_BP in _chunks_of(array):
        damaged_N[start : start + len(values_BP)] = False
        for what, bad_B in faults(values_BP).items():
            masks.setdefault(what, np.zeros(array.rows, dtype=bool))[start : start + len(bad_B)] = bad_B
        column.span(values_BP)
    if damaged_N.any():
        with open_file(array.path) as file:
            packed = filter_of(open_dataset(file, array.path, array.name)) or "stored without a filter"
        rows = _bad_rows(f"{full}: damaged, cannot be read ({packed})", damaged_N)
        report.faults += [f"{row}; copy or make the file again" for row in rows]
    for what, bad_N in masks.items():
        report.faults += _bad_rows(f"{name} {what}", bad_N)


def _flux_faults(flux_BP: np.ndarray) -> dict[str, np.ndarray]:
    finite_B = _in_all_pixels(np.isfinite(flux_BP))
    flat_B = _in_all_pixels(flux_BP == flux_BP[:, :1])
    with np.errstate(invalid="ignore"):
        dark_B = finite_B & ~flat_B & (np.median(flux_BP, axis=1) <= 0)
    return {"is not finite": ~finite_B, "is the same in every pixel": flat_B, "has a median of zero or less": dark_B}


def _error_faults(error_BP: np.ndarray) -> dict[str, np.ndarray]:
    finite_B = _in_all_pixels(np.isfinite(error_BP))
    return {"is not finite": ~finite_B, "is zero or negative": finite_B & ~_in_all_pixels(error_BP > 0)}


def _in_all_pixels(mask_BP: np.ndarray) -> np.ndarray:
    return np.asarray(mask_BP.all(axis=1))


def _check_duplicates(flux: Array2D, report: Report) -> None:
    seen: dict[str, int] = {}
    twins: list[tuple[int, int]] = []
    report.digests = [""] * flux.rows
    for start, values_BP in _chunks_of(flux):
        for row, values_P in enumerate(values_BP, start):
            digest = hashlib.blake2b(values_P.tobytes(), digest_size=12).hexdigest()
            if digest in seen:
                twins.append((row, seen[digest]))
            seen.setdefault(digest, row)
            report.digests[row] = digest
    if twins:
        named = ", ".join(f"{row} = {first}" for row, first in twins[:NAMED_ROWS])
        report.faults.append(f"{len(twins)} rows repeat the flux of an earlier one: {named}")


def _chunks_of(array: Array2D) -> Iterator[tuple[int, np.ndarray]]:
    """Yield an array piece by piece, each with its first row; rows of chunks that cannot be unpacked are left out."""
    opened: Any = array.open()
    high = (getattr(opened, "chunks", None) or (array.rows,))[0]
    for start in range(0, array.rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, array.rows)
        try:
            yield start, np.asarray(opened[start:stop])
            continue
        except OSError:
            edges = sorted({start, stop, *range(start - start % high + high, stop, high)})
        for first, last in itertools.pairwise(edges):
            with contextlib.suppress(OSError):
                yield first, np.asarray(opened[first:last])


def _bad_rows(what: str, bad_N: np.ndarray) -> list[str]:
    rows = np.flatnonzero(bad_N)
    if not len(rows):
        return []
    named = ", ".join(map(str, rows[:NAMED_ROWS])) + (", …" if len(rows) > NAMED_ROWS else "")
    return [f"{what} in {counted(len(rows), 'row')}: {named}"]


def _chunks(file: h5py.File, name: str) -> str:
    dataset = open_dataset(file, Path(name), name)
    return f"chunks {dataset.chunks}" + (f" {dataset.compression}" if dataset.compression else "")


def _shorten(problem: DataError, path: Path) -> str:
    """Return a fault without the file's path, which the table's heading names."""
    return ": ".join(part for part in (problem.where.removeprefix(str(path)).lstrip(":"), problem.what) if part)
