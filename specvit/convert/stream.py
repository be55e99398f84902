"""Spectra of any source, streamed in order onto the pixels of a trained model: no labels, no copy, bounded memory.

Shape suffixes: B spectra of a block, X points of a source, P pixels.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specvit.convert.choose import open_source
from specvit.convert.contents import DamagedFile, kind_of, open_contents, suffixes
from specvit.convert.masks import BadPixels
from specvit.convert.options import Options
from specvit.convert.pixels import RunPixels
from specvit.convert.plan import LAYOUT, Reading, check_form, look_at_sources
from specvit.convert.sources import find_sources
from specvit.convert.spectrum import Recipe, Values, on_pixels, read_rows, stream_rows
from specvit.data.shards import grid_difference, same_wavelengths
from specvit.data.views import Spectra, first_masked, open_spectra
from specvit.utils.errors import DataError
from specvit.utils.memory import refuse_beyond_memory

MOST_MASKED = 0.99
"""Share of masked pixels above which a spectrum is not put on the pixels; the runs' own limit is lower."""
SHARD_ROWS = 1024
"""Rows of a shard that are read at once."""


@dataclass(frozen=True)
class Block:
    """Spectra on the pixels: their files, row numbers there, flux and 1 sigma error (B, P); NaN in masked pixels."""

    files_B: list[str]
    rows_B: np.ndarray
    flux_BP: np.ndarray
    error_BP: np.ndarray | None

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.rows_B)

    def part(self, start: int, stop: int) -> "Block":
        """Return some of the spectra."""
        here = slice(start, stop)
        error_BP = None if self.error_BP is None else self.error_BP[here]
        return Block(self.files_B[here], self.rows_B[here], self.flux_BP[here], error_BP)


@dataclass
class SpectraStream:
    """All spectra of a source, on the pixels of a trained model; `notes` on what was taken to be so."""

    notes: list[str]
    sources: list[Path]
    base: Path
    """The deepest folder around the sources."""
    _counts: list[int]
    _found: Reading | Spectra
    _skip_bad: bool = False
    first_fault: str = ""
    """Why the first of the spectra that are NaN as a whole is so; known after it was read."""

    @property
    def rows(self) -> int:
        """Number of spectra."""
        return sum(self._counts)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Yield blocks of so many spectra, the last one shorter, whatever files hold them; raises `DataError`."""
        held, count = list[Block](), 0
        for block in self._read():
            start = 0
            while start < len(block):
                held.append(block.part(start, start + rows - count))
                start, count = start + len(held[-1]), count + len(held[-1])
                if count == rows:
                    yield _joined(held)
                    held, count = [], 0
        if held:
            yield _joined(held)

    @property
    def masked(self) -> str:
        """Where the first row of shards with masked pixels is, or ""."""
        return first_masked(self._found) if isinstance(self._found, Spectra) else ""

    @property
    def counts_masked(self) -> bool:
        """Whether an error of 0 marks a masked pixel, as it does but in shards that count none."""
        return not isinstance(self._found, Spectra) or self._found.masked_N is not None

    @property
    def has_errors(self) -> bool:
        """Whether the source has errors, which some models need."""
        return isinstance(self._found, Spectra) or self._found.recipe.with_error

    def _read(self) -> Iterator[Block]:
        if isinstance(self._found, Spectra):
            yield from _read_shards(self._found)
            return
        pixels = len(self._found.recipe.target.wave_P)
        for path, count in zip(self.sources, self._counts, strict=True):
            start = 0
            with self._faults():
                for block in self._read_file(path, self._found):
                    yield block
                    start += len(block)
            if start < count:  # of a damaged file, where such are left out
                bad_BP = np.full((count - start, pixels), np.nan, dtype=np.float32)
                error_BP = bad_BP if self._found.recipe.with_error else None
                yield Block([str(path)] * len(bad_BP), np.arange(start, count), bad_BP, error_BP)

    def _read_file(self, path: Path, found: Reading) -> Iterator[Block]:
        recipe, start = found.recipe, 0
        with open_source(path, recipe.options, recipe.choice.arrays) as contents:
            if recipe.choice.spectra is None:
                yield self._on_pixels(path, 0, recipe, *read_rows(contents, recipe, [0]))
                return
            for wave, flux_BX, error_BX in stream_rows(contents, recipe, found.piece_rows):
                yield self._on_pixels(path, start, recipe, wave, flux_BX, error_BX)
                start += len(flux_BX)

    def _on_pixels(
        self, path: Path, start: int, recipe: Recipe, wave: Values, flux_BX: Values, error_BX: Values | None
    ) -> Block:
        rows = len(flux_BX)
        flux_BP = np.full((rows, len(recipe.target.wave_P)), np.nan, dtype=np.float32)
        error_BP = np.full_like(flux_BP, np.nan) if recipe.with_error else None
        for row in range(rows):
            where = str(path) if recipe.choice.spectra is None else f"{path} row {start + row}"
            error_X = None if error_BX is None else error_BX[row]
            with self._faults():
                wave_X = _checked_grid(where, wave if wave.ndim == 1 else wave[row], recipe)
                flux_P, error_P = on_pixels(where, wave_X, flux_BX[row], error_X, recipe)
                flux_BP[row] = flux_P
                if error_BP is not None and error_P is not None:
                    error_BP[row] = error_P
        return Block([str(path)] * rows, np.arange(start, start + rows), flux_BP, error_BP)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Leave a spectrum of bad pixels alone, with `skip_bad` any that cannot be read, as NaN; raise for others."""
        try:
            yield
        except DataError as problem:
            if not isinstance(problem, BadPixels) and not self._skip_bad:
                raise _of_prediction(problem, skippable=len(self.sources) > 1) from problem
            self.first_fault = self.first_fault or str(_of_prediction(problem))


def open_stream(
    given: Sequence[Path], options: Options, pixels: RunPixels, out: Path | None, observed: bool | None = None
) -> SpectraStream:
    """Return the spectra of sources, as `specvit data convert` reads them; `out` is not one. Raises `DataError`.

    Shards on the model's pixels are read as evaluation reads them, with `observed` in place of their mark unless it is
    None; `options` with anything in them have shards read like any file.
    """
    nowhere = out or Path(os.devnull)
    sources, base = find_sources(given, nowhere, options)
    if not pixels.resample and not options.as_dict() and all(map(_is_shard, sources)):
        spectra = open_spectra(sources, -1, observed=observed)
        _check_grid(str(sources[0]), spectra.wave_P, pixels.wave_P)
        return SpectraStream([], sources, base, [shard.rows for shard in spectra.shards], spectra)
    skippable = len(sources) > 1 and not options.skip_bad
    try:
        found = look_at_sources(given, nowhere, replace(options, max_masked=MOST_MASKED), pixels)
        single = found.choice.spectra is None
        skippable &= single  # of a damaged table it is unknown how many spectra it holds
        counts = [1 if single else _rows_in(path, found) for path in found.sources]
    except DataError as problem:
        raise _of_prediction(problem, skippable=skippable) from problem
    return SpectraStream(found.notes, found.sources, base, counts, found, options.skip_bad)


def _is_shard(path: Path) -> bool:
    if kind_of(path) != "HDF5":
        return False
    with open_contents(path, ()) as contents:
        return set(contents.arrays) >= LAYOUT


def _rows_in(path: Path, found: Reading) -> int:
    """Return the spectra of a table, after checking that it holds what the first one does."""
    with open_source(path, found.options) as contents:
        if suffixes(path)[1] and kind_of(path) == "FITS":  # unpacked as a whole by astropy
            refuse_beyond_memory(sum(array.num_bytes for array in contents.arrays.values()), str(path))
        return check_form(contents, found).spectra or 0


def _read_shards(spectra: Spectra) -> Iterator[Block]:
    files, rows_N = spectra.origins()
    for start in range(0, len(spectra), SHARD_ROWS):
        here = slice(start, min(start + SHARD_ROWS, len(spectra)))
        flux_BP, error_BP = spectra.gather(np.arange(here.start, here.stop))
        if not spectra.observed:  # clipped as in evaluation; pixels of -inf stay bad
            flux_BP[np.isfinite(flux_BP) & (flux_BP < 0)] = 0.0
        yield Block(files[here], rows_N[here], flux_BP, error_BP)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    errors = [block.error_BP for block in blocks if block.error_BP is not None]
    return Block(
        [name for block in blocks for name in block.files_B],
        np.concatenate([block.rows_B for block in blocks]),
        np.concatenate([block.flux_BP for block in blocks]),
        np.concatenate(errors) if errors else None,
    )


def _checked_grid(where: str, wave_X: Values, recipe: Recipe) -> Values:
    """Return wavelengths as they are, or the model's own where they have to be those and are; raises `DataError`."""
    if not recipe.keep:
        return wave_X
    step = -1 if len(wave_X) > 1 and wave_X[0] > wave_X[-1] else 1
    _check_grid(where, wave_X[::step], recipe.target.wave_P)
    return recipe.target.wave_P[::step]


def _check_grid(where: str, wave_X: Values, run_P: Values) -> None:
    """Raise `DataError` for wavelengths that are not the model's: what differs, and what to do."""
    if same_wavelengths(wave_X, run_P):
        return
    reaches = len(wave_X) > 1 and wave_X[0] <= run_P[0] + 1 and wave_X[-1] >= run_P[-1] - 1
    remedy = "--resample brings them to the run's pixels" if reaches else "name spectra that cover the run's pixels"
    raise DataError(grid_difference(wave_X, run_P), where=where, remedy=remedy)


def _of_prediction(problem: DataError, *, skippable: bool = False) -> DataError:
    """Return a conversion's error with a remedy that holds for predictions, whose pixels are the run's.

    Where damaged files are `skippable`, the remedy for one names --skip-bad.
    """
    remedy = problem.remedy.replace("convert files", "name files").replace(", and --wave keep for other pixels", "")
    if isinstance(problem, BadPixels):  # which are left without prediction anyway
        remedy = "leave it out"
    if "--wave keep" in remedy:
        remedy = "name spectra that cover the run's pixels as finely"
    if skippable and isinstance(problem, DamagedFile):
        remedy += ", or leave it without prediction by --skip-bad"
    return type(problem)(problem.what, where=problem.where, remedy=remedy)
