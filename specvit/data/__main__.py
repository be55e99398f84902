"""`python -m specvit.data generate|inspect`: make built-in spectra as files, check any file."""

import argparse
import sys
import time
from pathlib import Path

from specvit.entry import Parser, user_facing
from specvit.errors import DataError


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Make built-in spectra as HDF5 shards, or check HDF5 files value by value."""
    parser = Parser(prog="specvit data", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="make built-in spectra: train_<rows>_<i>, val_<rows>, test_<rows>")
    make.add_argument("--out", type=Path, required=True, help="folder for the shards; give it to data.root afterwards")
    make.add_argument("--train", type=_count, default=5000, metavar="ROWS", help="training rows, such as 5000 or 200k")
    make.add_argument("--val", type=_count, default=1000, metavar="ROWS", help="validation rows")
    make.add_argument("--test", type=_count, default=2000, metavar="ROWS", help="test rows")
    make.add_argument("--shard", type=_count, default=5000, metavar="ROWS", help="most rows a training file")
    make.add_argument("--seed", type=int, default=0, help="another seed makes other stars")
    check = commands.add_parser(
        "inspect", help="print what files hold and find every fault; exit code 1 if there is one"
    )
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return _generate(options) if options.command == "generate" else _inspect(options.files)


def _generate(options: argparse.Namespace) -> int:
    from specvit.config.identity import short_count
    from specvit.data.builtin import make_shards

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
    there = [path for shards in splits.values() for path in shards if path.exists()]
    if there:
        raise DataError("is there already", where=str(there[0]), remedy="choose another --out, or remove it first")
    for split, shards in splits.items():
        make_shards(shards, seed=options.seed, split=split, report=_report)
    print(f"made {options.train + options.val + options.test:,} spectra in {time.perf_counter() - started:.0f} s")
    paths = [f"file_path='train_{size}_*/dataset.h5'"]
    paths += [f"{split}_path={next(iter(splits[split])).relative_to(options.out)}" for split in ("val", "test")]
    print(f"train on them:  specvit train data=hdf5 data.root={options.out} " + " ".join(f"data.{p}" for p in paths))
    return 0


def _inspect(files: list[Path]) -> int:
    from specvit.data.inspect import inspect_files

    faults = 0
    for report in inspect_files(files):
        print(report.path)
        widths = [max((len(row[i]) for row in report.columns), default=0) for i in range(5)]
        for row in report.columns:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for fault in report.faults:
            print(f"  FAULT: {fault}")
        print("  no fault found" if not report.faults else f"  {len(report.faults)} fault(s)")
        faults += len(report.faults)
    return 1 if faults else 0


def _report(split: str, done: int, total: int) -> None:
    """Print how far the making is, about ten times a split."""
    step = max(100, total // 10)
    if done % step < 100 or done == total:
        print(f"making {split} {done:,} of {total:,}", flush=True)


def _count(text: str) -> int:
    """Read 5000, 200k or 1m."""
    scale = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    number = int(text[:-1] if scale > 1 else text) * scale
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
