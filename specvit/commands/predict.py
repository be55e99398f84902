"""`specvit predict RUN [RUN ...] SOURCE`: the labels of spectra in any form that `specvit data convert` reads."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from specvit.commands.answer import Answer, add_json
from specvit.commands.entry import Parser, user_facing
from specvit.convert.command import add_reading_options, given_options
from specvit.study.find import find_run, find_study
from specvit.utils.errors import ConfigError, DataError, FolderError

if TYPE_CHECKING:
    from specvit.convert.stream import SpectraStream
    from specvit.run.ensemble import Ensemble
    from specvit.run_folder.folder import RunFolder

BLOCK_ROWS = 1024
"""Spectra in memory at once: whole batches of evaluation, so that every row rounds as it does there."""
SUFFIXES = (".csv", ".parquet")


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Predict labels of observed spectra, with error bars, by a trained run; by several runs or a study, their mean.

    SOURCE is a shard, or a file, a folder or a glob in quotes of anything that `specvit data convert` reads; labels
    are not needed. No noise is added. Columns: docs/predict.md.
    """
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    given = given_options(options)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        _check_out(out)
    folders = _runs(options)
    from specvit.convert.options import Options
    from specvit.convert.pixels import RunPixels
    from specvit.convert.stream import open_stream
    from specvit.run.ensemble import load_ensemble

    ensemble = load_ensemble(folders, options.device, _say, "--device")
    if note := ensemble.check_level(options.level, "--level"):
        _say(note)
    pixels = RunPixels(ensemble.wave, options.resample)
    stream = open_stream([Path(options.source)], Options(**given), pixels, out, ensemble.observed)
    if out is not None and out.resolve() in [path.resolve() for path in stream.sources]:
        raise ConfigError("is the source", where="--out", remedy="name another file")
    if ensemble.needs_error and not stream.has_errors:
        what = f"has no errors, by which model={ensemble.config.model.kind} weighs pixels"
        raise DataError(what, where=str(stream.sources[0]), remedy="name them by --error-name")
    if stream.masked:
        ensemble.filling(stream.masked)
    for note in stream.notes:
        _say(note)
    rows: list[dict[str, Any]] | None = [] if options.json and out is None else None
    counts = _write(out, ensemble, stream, options.level, rows)
    _conclude(counts, stream, out)
    if not options.json:
        return 0
    facts = {
        "runs": [folder.path.name for folder in folders],
        "out": out and str(out),
        "spectra": counts.pop("spectra"),
        "masked_pixels": counts.pop("pixels"),
        "masked_spectra": counts.pop("masked"),
    }
    return Answer("predict", {**facts, "flags": counts, "first_fault": stream.first_fault or None, "predictions": rows})


def parser() -> Parser:
    """Return the parser of the command."""
    own = Parser(
        prog="specvit predict", usage="specvit predict RUN [RUN ...] SOURCE [options]", description=main.__doc__
    )
    own.add_argument("run", nargs="*", help="a run's folder, name or hash; several, such as seeds, predict together")
    own.add_argument("source", help="the spectra: a file, a folder, or a glob in quotes")
    own.add_argument("--study", metavar="NAME", help="instead of runs: the best setting of a study, with all its seeds")
    own.add_argument("--out", metavar="FILE", help="a .csv or .parquet file (default: CSV to standard output)")
    what = "share of true labels in the intervals LABEL_low to LABEL_high (default: 0.9)"
    own.add_argument("--level", type=float, metavar="SHARE", help=what)
    own.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    pixels = own.add_argument_group("pixels")
    what = "bring spectra on other wavelengths to the run's pixels, as `specvit data convert --wave FILE` does"
    pixels.add_argument("--resample", action="store_true", help=what)
    pixels.add_argument("--resolution", type=float, metavar="R", help="of the source; smoothed to that of the run")
    pixels.add_argument("--to-resolution", type=float, metavar="R", help="that of the run (default: the instrument's)")
    what = "leave spectra that cannot be read or resampled without prediction, instead of stopping at the first"
    pixels.add_argument("--skip-bad", action="store_true", default=None, help=what)
    add_reading_options(own)
    add_json(own)
    return own


def _runs(options: Any) -> "list[RunFolder]":
    """Return the runs that are named, or those of a study's best setting; raises `SpecvitError`."""
    if options.study is None and not options.run:
        raise ConfigError(
            "names no run", where="specvit predict", remedy="name a run before the source, or --study NAME"
        )
    if options.study is None:
        return [_run(name) for name in options.run]
    if options.run:
        raise ConfigError("does not go with runs", where="--study", remedy=f"leave {options.run[0]} out")
    from specvit.study.best import best_runs

    runs, choice = best_runs(find_study(options.study))
    _say(choice)
    return runs


def _run(name: str) -> "RunFolder":
    """Return the run of a name; raises `FolderError`, which for a file says how several are named as one source."""
    try:
        return find_run(name)[0]
    except FolderError as problem:
        if not Path(name).is_file():
            raise
        glob = shlex.quote(str(Path(name).with_name(f"*{Path(name).suffix}")))
        remedy = f"name one source behind the runs: a file, a folder, or a glob in quotes such as {glob}"
        raise FolderError("is a file, not a run", where=name, remedy=remedy) from problem


def _check_out(out: Path) -> None:
    """Raise `ConfigError` for a file that cannot be written, before anything is computed."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError("is neither .csv nor .parquet", where=f"--out {out}", remedy="name it so")
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else f"is in {out.parent}, which is not a folder"
        raise ConfigError(what, where=f"--out {out}", remedy="name a file in a folder that exists")
    if out.suffix.lower() == ".parquet":
        _parquet()


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as problem:
        remedy = "pip install pyarrow, or name a .csv file"
        raise ConfigError("needs pyarrow, which writes Parquet", where="--out", remedy=remedy) from problem
    return pyarrow


def _write(
    out: Path | None,
    ensemble: "Ensemble",
    stream: "SpectraStream",
    level: float | None,
    rows: list[dict[str, Any]] | None,
) -> Counter[str]:
    """Write all predictions, block by block, into a file that is whole or absent; return the counts of `_tables`.

    Without a file they are printed, or added to `rows` if that is given.
    """
    from specvit.convert.progress import Progress
    from specvit.utils.files import write_atomic

    counts = Counter[str]()
    if rows is not None:
        for table in _tables(ensemble, stream, level, counts):
            rows += table.astype(object).where(table.notna(), None).to_dict("records")
        return counts
    if out is None:
        for number, table in enumerate(_tables(ensemble, stream, level, counts)):
            print(table.to_csv(index=False, header=number == 0), end="")
        return counts

    def fill(file: IO[bytes]) -> None:
        with Progress({"spectra": ("predicting", "predicted")}) as report:
            done = 0
            report(done, stream.rows)
            tables = _tables(ensemble, stream, level, counts)
            for table in _into(file, tables, parquet=out.suffix.lower() == ".parquet"):
                done += len(table)
                report(done, stream.rows)

    write_atomic(out, fill)
    return counts


def _into(file: IO[bytes], tables: Iterator[Any], *, parquet: bool) -> Iterator[Any]:
    """Write tables one after the other; yield each when it is written."""
    if not parquet:
        for number, table in enumerate(tables):
            table.to_csv(file, index=False, header=number == 0)
            yield table
        return
    arrow, writer = _parquet(), None
    for table in tables:
        part = arrow.Table.from_pandas(table, preserve_index=False)
        writer = writer or arrow.parquet.ParquetWriter(file, part.schema)
        writer.write_table(part)
        yield table
    if writer is not None:
        writer.close()


def _tables(ensemble: "Ensemble", stream: "SpectraStream", level: float | None, counts: Counter[str]) -> Iterator[Any]:
    """Yield tables of predictions with each spectrum's file and row in front; count spectra, flags, masked pixels."""
    import numpy as np

    from specvit.run.ensemble import FLAGS, MASKED
    from specvit.utils.text import safe_cell

    for block in stream.blocks(BLOCK_ROWS):
        error_BP = block.error_BP
        if error_BP is not None and not stream.counts_masked and not ensemble.needs_error:
            error_BP = np.where(error_BP == 0, np.float32(1), error_BP)  # no noise in that pixel, as in training
        table = ensemble.table(block.flux_BP, error_BP, level=level)
        names = [safe_cell(str(Path(name).relative_to(stream.base))) for name in block.files_B]
        table.insert(0, "file", names)
        table.insert(1, "row", block.rows_B)
        if table["not_finite"].any() and not counts["not_finite"]:
            stream.first_fault = _why_not(table[table["not_finite"]].iloc[0], ensemble, stream)
        filled_B = table[MASKED].where(~table["not_finite"], 0.0)
        pixels, spectra = round(filled_B.sum() * len(ensemble.wave)), int((filled_B > 0).sum())
        counts.update({"spectra": len(table), "pixels": pixels, MASKED: spectra})
        counts.update({flag: int(table[flag].sum()) for flag in FLAGS if flag in table})
        yield table


def _why_not(row: Any, ensemble: "Ensemble", stream: "SpectraStream") -> str:
    """Return why the first spectrum without prediction, a row of a table, has none."""
    where, most = f"{row['file']} row {row['row']}", ensemble.max_masked
    if row["masked"] == 1 and stream.first_fault:
        return stream.first_fault
    share = f": {100 * row['masked']:.3g} % of its pixels are masked, more than {100 * most:.3g} %"
    return where + share if row["masked"] > most else where


def _conclude(counts: Counter[str], stream: "SpectraStream", out: Path | None) -> None:
    """Print how many spectra have which flag, and where the predictions are."""
    total = counts["spectra"]
    if counts["masked"]:
        pixels = f"{counts['pixels']:,} pixels of {counts['masked']:,} of {total:,} spectra (masked)"
        _say(f"note: masked pixels, in which the model sees the mean spectrum: {pixels}")
    reasons = {
        "flux_outside": "have a flux unlike any training spectrum",
        "snr_outside": "have less or more noise than any training spectrum",
        "not_finite": "have no prediction",
    }
    for flag, reason in reasons.items():
        if counts[flag]:
            first = f"; the first: {stream.first_fault}" if flag == "not_finite" else ""
            _say(f"note: {counts[flag]:,} of {total:,} spectra {reason} ({flag}){first}")
    if out is not None:
        print(f"predicted {total:,} spectra: {out}")


def _say(text: str) -> None:
    """Print a note beside the predictions, which may go to standard output."""
    print(text, file=sys.stderr, flush=True)
