"""Plan a conversion, and check all of it before anything is written: spectra, labels, pixels, shards.

Shape suffixes: N spectra of all sources, P pixels.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit.convert.choose import Choice, choose, open_source
from specvit.convert.contents import Contents, DamagedFile, kind_of
from specvit.convert.labels import faults, labels_from_contents, labels_from_file, missing, ordered, ranges, read_table
from specvit.convert.names import RESOLUTION, Naming, labels_from_names, naming_of
from specvit.convert.options import Options
from specvit.convert.pixels import RunPixels, make_recipe
from specvit.convert.sources import find_sources, wave_file_of
from specvit.convert.spectrum import Recipe
from specvit.convert.split import shards_of
from specvit.convert.unpack import bytes_of, is_needed
from specvit.data.shards import open_shard, open_shards, read_labels
from specvit.utils.errors import ConfigError, DataError
from specvit.utils.memory import refuse_beyond_memory
from specvit.utils.quantities import ERROR, FLUX, LABELS, WAVE

LAYOUT = {WAVE, FLUX, ERROR}
ROW_BYTES = 100
"""Memory that the plan takes for a spectrum, beside its labels."""
FILES_A_PIECE, ROWS_A_PIECE = 16, 512
"""Most spectra of a piece, from single files and from tables: what a kill may cost each worker."""
PIECE_BYTES = 64 * 2**20
"""Most bytes of a piece of a table, in float64; a piece has at least one row."""


@dataclass(frozen=True)
class Plan:
    """Which spectra go to which shard, and how they are converted."""

    options: Options
    sources: tuple[Path, ...]
    base: Path
    """The deepest folder around the sources."""
    layout: bool
    """Whether the sources are shards already."""
    wave_file: Path | None
    """The wavelengths of all spectra, where they lie in a file of their own."""
    source_N: NDArray[np.intp]
    """Number of each spectrum's source, and its row there."""
    row_N: NDArray[np.intp]
    labels: Any
    """DataFrame (N rows)."""
    recipe: Recipe
    piece_rows: int
    """Spectra that are made together."""
    to_unpack: Mapping[int, int]
    """Sources in which rows cannot be looked up as they are, and the bytes of a copy in which they can."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Spectra that are left out for their labels, and why."""
    shards: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)
    """File under the target -> spectra that go into it, in order."""
    marked: bool = False
    """Whether sources that are shards already are marked as observed."""
    notes: tuple[str, ...] = ()

    def origin(self, row: int) -> str:
        """Return where a spectrum comes from."""
        path = self.sources[self.source_N[row]]
        return str(path) if self.recipe.choice.spectra is None else f"{path} row {self.row_N[row]}"

    @property
    def pixels(self) -> int:
        """Pixels of a spectrum that is made."""
        return len(self.recipe.target.wave_P)

    @property
    def observed(self) -> bool:
        """Whether the flux has the noise of its errors: these are the source's, of a shard as it is marked."""
        own = self.recipe.with_error and self.options.snr is None and self.options.magnitudes is None
        return own and (not self.layout or self.marked)

    @property
    def keeps_snr(self) -> bool:
        """Whether the S/N of the sources is that of what is made."""
        return self.recipe.keep and self.recipe.with_error and "snr" in self.labels


@dataclass(frozen=True)
class Reading:
    """How sources are read, as a look at the first of them says (with --skip-bad, the first that is whole)."""

    sources: list[Path]
    base: Path
    options: Options
    """With the columns of a library's texts."""
    layout: bool
    naming: Naming | None
    named: list[dict[str, float]]
    recipe: Recipe
    notes: list[str]
    left_out: list[str]
    """Arrays that are not read."""
    piece_rows: int

    @property
    def choice(self) -> Choice:
        """Which arrays are read."""
        return self.recipe.choice


def look_at_sources(given: Sequence[Path], out: Path, options: Options, run_pixels: RunPixels | None = None) -> Reading:
    """Return how sources are read, for shards or for the pixels of a trained model; raises as `make_plan` does."""
    options.check()
    sources, base = find_sources(given, out, options)
    if options.planes is not None and kind_of(sources[0]) != "FITS":
        raise ConfigError("is for images in FITS files", where="--planes", remedy="leave it out")
    for path in sources[:-1] if options.skip_bad else ():
        with contextlib.suppress(DamagedFile):
            return _look(path, sources, base, options, run_pixels)
    return _look(sources[-1 if options.skip_bad else 0], sources, base, options, run_pixels)


def _look(path: Path, sources: list[Path], base: Path, options: Options, run_pixels: RunPixels | None) -> Reading:
    """Return how sources are read, as a look at one of them says."""
    with open_source(path, options) as contents:
        layout = set(contents.arrays) >= LAYOUT
        naming = None if options.labels or layout else naming_of(options.names, path)
        if not layout and (naming or options.labels):  # labels of files: a table with one spectrum is that spectrum
            contents = contents.single()
        reading = _as_named(options, naming, contents, base)
        choice = choose(contents, reading)
        if options.names is not None and choice.spectra is not None:
            what = f"is for files of one spectrum each, but {path} holds {choice.spectra}"
            raise ConfigError(what, where="--names", remedy="leave it out")
        naming = naming if choice.spectra is None else None
        named = [] if naming is None else labels_from_names(naming, sources)
        resolution = options.resolution or _common_resolution(named, sources)
        known = {"layout": layout, "run_pixels": run_pixels}
        recipe, notes = make_recipe(contents, choice, reading, naming, resolution, **known)
        left_out = sorted(set(contents.arrays) - set(choice.arrays) - set(choice.labels.values()))
        piece_rows = FILES_A_PIECE if choice.spectra is None else _rows_a_piece(contents, recipe)
    return Reading(sources, base, reading, layout, naming, named, recipe, notes, left_out, piece_rows)


def make_plan(given: Sequence[Path], out: Path, options: Options) -> Plan:
    """Return the plan for sources and options; raises `ConfigError` or `DataError`, and writes nothing."""
    found = look_at_sources(given, out, options)
    sources, layout, notes = found.sources, found.layout, list(found.notes)
    counts, to_unpack = [1] * len(sources), {}
    if found.choice.spectra is None:
        labels, more = _labels_of_files(sources, found.base, options, found.naming, found.named)
        notes += more
    else:
        labels, counts, to_unpack = _labels_of_tables(found)
        if options.labels is not None:
            labels = read_table(Path(options.labels), len(labels), options)
        left_out = ", ".join(found.left_out)
        notes += [f"note: {sources[0]}: left out: {left_out}"] if left_out and not layout else []
    labels = _filled(labels, options, found.naming, layout=layout)
    source_N = np.repeat(np.arange(len(sources)), counts)
    row_N = np.concatenate([np.arange(count) for count in counts])
    wave_file = Path(found.options.source_wave) if found.options.source_wave else None
    where = options, tuple(sources), found.base, layout, wave_file
    plan = Plan(*where, source_N, row_N, labels, found.recipe, found.piece_rows, to_unpack)
    needed = _needed_labels(plan)
    bad = _bad_labels(plan, needed)
    shards, more = shards_of(labels, options)
    notes += [*_replaced_labels(plan), *([] if layout else ranges(labels)), *more]
    notes += [] if options.skip_bad else missing(labels, needed)
    marked = layout and _is_marked(sources, options)
    return replace(plan, bad=bad, shards=shards, marked=marked, notes=tuple(notes))


def _is_marked(sources: list[Path], options: Options) -> bool:
    """Return whether shards are marked as observed; raises `ConfigError` where made errors would undo their masks."""
    shards = open_shards(sources)
    masked = next((shard for shard in shards if shard.masked_N is not None and shard.masked_N.any()), None)
    if masked is not None and (options.snr is not None or options.magnitudes is not None):
        what = f"replaces errors, which mark the masked pixels of {masked.path}"
        option = "--snr" if options.snr is not None else "--magnitudes"
        raise ConfigError(what, where=option, remedy="leave it out, or convert the spectra that it was made from")
    return shards[0].observed


def _rows_a_piece(contents: Contents, recipe: Recipe) -> int:
    """Return the rows of a piece of a table."""
    values = [int(np.prod(contents.arrays[name].shape[1:])) for name in recipe.choice.arrays]
    row_bytes = 8 * (sum(values) + len(recipe.target.wave_P))
    return int(np.clip(PIECE_BYTES // row_bytes, 1, ROWS_A_PIECE))


def _filled(labels: Any, options: Options, naming: Naming | None, *, layout: bool) -> Any:
    """Return labels with those of `--fill` and of a library; raises `ConfigError` for labels that the sources have."""
    both = next((label for label in options.fill if label in labels), None)
    if both is not None:
        remedy = f"leave it out, or rename theirs: --columns {both}_source={both}"
        raise ConfigError(f"gives {both}, which the sources have themselves", where="--fill", remedy=remedy)
    if layout:
        return labels.rename(columns={name: label for label, name in options.columns.items()}).assign(**options.fill)
    known = {} if naming is None else {key: value for key, value in naming.fill.items() if key not in labels}
    return ordered(labels, {**known, **options.fill}, options.columns)


def _replaced_labels(plan: Plan) -> list[str]:
    """Return notes of labels that the sources have and that are computed again."""
    replaced = {"magnitudes that are drawn": "mag"} if plan.options.magnitudes is not None else {}
    replaced |= {} if plan.keeps_snr else {"S/N that is measured on what is made": "snr"}
    return [
        f"note: {old} of the sources is replaced by the {new}" for new, old in replaced.items() if old in plan.labels
    ]


def _as_named(options: Options, naming: Naming | None, contents: Contents, base: Path) -> Options:
    """Return options with the columns of a library's texts, which have no header."""
    options = replace(options, columns={}) if options.labels else options
    if naming is None or naming.columns is None or not contents.numbered or options.flux_name:
        return options
    wave, flux = naming.columns
    if wave or options.source_wave:
        return replace(options, flux_name=flux, wave_name=options.wave_name or wave or None)
    resolution = (naming.labels_of(contents.path) or {}).get(RESOLUTION, 0.0)
    found = wave_file_of(naming, contents.path, base, resolution)
    return replace(options, flux_name=flux, source_wave=str(found))


def _common_resolution(named: list[dict[str, float]], sources: list[Path]) -> float | None:
    """Return the resolution that the names of all files give, None if they give none; raises `DataError` if several."""
    found = [labels.get(RESOLUTION) for labels in named]
    other = next((i for i, value in enumerate(found) if value != found[0]), None)
    if other is not None:
        what = f"has a resolution of {found[other]:g} and {sources[0]} one of {found[0]:g}"
        raise DataError(what, where=str(sources[other]), remedy="convert those of one resolution at a time")
    return found[0] if found else None


def _labels_of_files(
    sources: list[Path], base: Path, options: Options, naming: Naming | None, named: list[dict[str, float]]
) -> tuple[Any, list[str]]:
    """Return labels of files with one spectrum each, one row a file, and notes."""
    import pandas as pd

    if options.labels is not None:
        return labels_from_file(sources, base, options)
    if options.columns:
        remedy = "leave it out, or give --labels FILE.csv"
        raise ConfigError("names columns, but labels come from the files' names", where="--columns", remedy=remedy)
    if naming is None:
        if options.fill:
            return pd.DataFrame(index=range(len(sources))), []
        remedy = "give --labels FILE.csv, or --names with a pattern such as {T_eff}_{log_g}_{M_H}"
        raise DataError("says nothing of its labels", where=str(sources[0]), remedy=remedy)
    notes = [] if options.names else [f"note: files are named as those of {naming.name}: labels are read from names"]
    read = ", ".join(f"{label} {value:g}" for label, value in named[0].items())
    notes.append(f"note: {sources[0].name} is read as {read}")
    return pd.DataFrame(named).drop(columns=RESOLUTION, errors="ignore"), notes


def check_form(contents: Contents, found: Reading) -> Choice:
    """Return what is read of another file with many spectra; raises `DataError` unless it holds what the first does."""
    own = choose(contents, found.options)
    if own.arrays != found.choice.arrays or own.spectra is None:
        what = f"does not hold the same as {found.sources[0]}; {contents.listing()}"
        raise DataError(what, where=str(contents.path), remedy="convert files of one form at a time")
    return own


def _labels_of_tables(found: Reading) -> tuple[Any, list[int], dict[int, int]]:
    """Return labels and row counts of files with many spectra, and which have to be unpacked, to how many bytes."""
    import pandas as pd

    tables, counts, to_unpack = [], [], {}
    for number, path in enumerate(found.sources):
        with open_source(path, found.options) as contents:
            own = check_form(contents, found)
            if set(own.labels) != set(found.choice.labels):
                what = f"does not hold the labels of {found.sources[0]}; {contents.listing()}"
                raise DataError(what, where=str(path), remedy="convert files of one form at a time")
            if is_needed(contents, own, 1 if found.options.split is not None else found.piece_rows):
                to_unpack[number] = bytes_of(contents, own)
            refuse_beyond_memory(ROW_BYTES * (sum(counts) + (own.spectra or 0)), str(path))
            tables.append(None if found.layout else labels_from_contents(contents, own))
            counts.append(own.spectra or 0)
        if found.layout:
            tables[-1] = read_labels(open_shard(path))
    return pd.concat(tables, ignore_index=True), counts, to_unpack


def _needed_labels(plan: Plan) -> list[str]:
    """Return the labels of the sources that are checked: those of the layout, and those that were asked for."""
    made = {"snr"} if not plan.keeps_snr else set()
    made |= {"mag"} if plan.options.magnitudes is not None else set()
    return [name for name in plan.labels if (name in LABELS or name in plan.options.columns) and name not in made]


def _bad_labels(plan: Plan, needed: list[str]) -> dict[int, str]:
    """Return spectra whose labels cannot be used, and why; raises `DataError` unless such are to be left out."""
    labels, options = plan.labels, plan.options
    if not len(labels.columns):
        remedy = "give --labels FILE.csv, --columns LABEL=NAME or --fill LABEL=VALUE"
        raise DataError("has no labels", where=str(plan.sources[0]), remedy=remedy)
    found = faults(labels, needed, options, plan.origin, any_unit=plan.layout)
    if found and not options.skip_bad:
        raise found[min(found)]
    return {row: str(problem) for row, problem in found.items()}
