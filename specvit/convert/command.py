"""`specvit data convert` from other formats: its options and what it prints."""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specvit.convert.options import ERROR_KINDS, SPLITS, Options
from specvit.utils.text import counted, read_count

LABEL = re.compile(r"[A-Za-z_]\w*")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how spectra are read; all are None where they are not given."""
    read = parser.add_argument_group("reading other formats")
    add = read.add_argument
    add("--wave-name", metavar="NAME", help="column or dataset of the wavelengths, if its name is not clear")
    add("--flux-name", metavar="NAME", help="column or dataset of the flux, if its name is not clear")
    add("--error-name", metavar="NAME", help="column or dataset of errors, variances or inverse variances; or none")
    add("--error-kind", choices=ERROR_KINDS, help="what the errors are, where name and unit do not say it")
    planes = "rows of an image: planes of one star, such as flux,ivar,wavelength, or spectra for a star each"
    add("--planes", metavar="NAMES", help=planes)
    add("--source-wave", metavar="FILE", help="the wavelengths of all spectra, where they lie in a file of their own")
    beside = "of a source in a file of their own, point by point; {name} is the source's name, as in "
    add("--source-error", metavar="FILE", help=f"errors {beside}'{{name}}_err.fits'")
    add("--source-mask", metavar="FILE", help=f"masks, 0 where a point is good, {beside}'{{name}}_mask.fits'")
    add("--unit", choices=("A", "nm", "um"), help="unit of the wavelengths, where the source does not say it")
    add("--log10", action="store_true", default=None, help="wavelengths are decimal logarithms")
    medium = read.add_mutually_exclusive_group()
    medium.add_argument("--air", dest="medium", action="store_const", const="air", help="wavelengths are of air")
    medium.add_argument("--vacuum", dest="medium", action="store_const", const="vacuum", help="of vacuum (default)")
    normalise = "median of the pixels to 0.5 (default; not for files in the layout)"
    add("--normalise", action=argparse.BooleanOptionalAction, default=None, help=normalise)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `convert`; all are None where they are not given."""
    add = parser.add_argument_group("labels of other formats").add_argument
    add("--names", metavar="PATTERN", help="labels from names of files: bosz2017, bosz2024, or {T_eff}_{log_g}_{M_H}")
    add("--labels", metavar="CSV", help="labels from a table: a column `file`, and one a label")
    add("--columns", type=_pairs, metavar="LABEL=NAME,..", help="what labels are called in the source")
    add("--fill", type=_numbers, metavar="LABEL=VALUE,..", help="labels that are the same in all spectra")
    add_reading_options(parser)
    make = parser.add_argument_group("what to write")
    add = make.add_argument
    add("--wave", metavar="FILE", help="target pixels: a file of vacuum Angstrom, instrument (default), or keep")
    add("--resolution", type=float, metavar="R", help="resolution of the source; smoothed to that of the instrument")
    add("--to-resolution", type=float, metavar="R", help="smoothed to this instead (default: 5000)")
    add("--snr", type=float, metavar="X", help="errors: the median flux over X in every pixel")
    magnitudes = "errors: the instrument's, at magnitudes drawn between these"
    add("--magnitudes", type=float, nargs=2, metavar=("LOW", "HIGH"), help=magnitudes)
    add("--seed", type=int, help="another seed draws other magnitudes and another split (default: 0)")
    add("--split", type=_shares, metavar="A,B,C", help="shares of train, val and test, such as 0.8,0.1,0.1")
    add("--shard", type=read_count, metavar="ROWS", help=f"most spectra a file (default: {Options.shard})")
    share = f"share of a spectrum's pixels that may be masked (default: {Options.max_masked:g})"
    add("--max-masked", type=float, metavar="SHARE", help=share)
    add("--skip-bad", action="store_true", default=None, help="leave out spectra that cannot be used, and list them")
    add("--workers", type=read_count, metavar="N", help="processes (default: one a CPU)")


def given_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by name."""
    names = [*Options.__dataclass_fields__, "workers"]
    return {name: value for name in names if (value := getattr(parsed, name, None)) is not None}


def is_other_format(sources: Sequence[Path]) -> bool:
    """Return True if a source is anything but an HDF5 file in the layout, sound or damaged."""
    import h5py

    from specvit.convert.contents import kind_of
    from specvit.utils.quantities import ERROR, FLUX, PARAMS, WAVE

    for source in sources:
        is_glob = not source.exists() and re.search(r"[*?\[]", str(source)) is not None
        if source.is_dir() or is_glob or kind_of(source) not in ("HDF5", ""):
            return True
        try:
            with h5py.File(source, "r") as file:
                if not any(name in file for name in (FLUX, ERROR, WAVE, PARAMS)):
                    return True
        except OSError:  # which the other way of converting says in one sentence
            continue
    return False


def convert(sources: Sequence[Path], out: Path, given: dict[str, Any]) -> int:
    """Convert spectra to shards under `out`, or resume that, and print how to use them; raises `SpecvitError`."""
    from specvit.convert.conversion import run_plan
    from specvit.convert.plan import make_plan
    from specvit.convert.progress import Progress

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    workers = given.pop("workers", len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    plan = make_plan(sources, out, Options(**given))
    for note in plan.notes:
        print(note)
    try:
        with Progress() as report:
            manifest = run_plan(plan, out, workers=workers, report=report)
    except KeyboardInterrupt:
        print("\nspecvit: stopped by Ctrl-C; run the same command again to resume.", file=sys.stderr)
        return 130
    if manifest is None:
        print(f"{out} is finished: nothing to do")
    else:
        rows = sum(output["rows"] for output in manifest["outputs"])
        print(f"converted {rows:,} spectra in {time.perf_counter() - started:.0f} s")
        if masked := sum(output.get("masked_pixels", 0) for output in manifest["outputs"]):
            spectra = counted(
                sum(output.get("masked_rows", 0) for output in manifest["outputs"]), "spectrum", "spectra"
            )
            print(f"note: {masked:,} masked pixels in {spectra}: a model sees its mean training spectrum there")
        if manifest["left_out"]:
            first = manifest["left_out"][0]["why"]
            print(
                f"note: {len(manifest['left_out'])} bad spectra were left out ({out}/manifest.json); the first: {first}"
            )
    _say_what_next(plan, out)
    return 0


def _say_what_next(plan: Any, out: Path) -> None:
    """Print the command that trains on what was made."""
    param = "" if "log_g" in plan.labels else f" data.param={plan.labels.columns[0]}"
    options = plan.options
    if plan.observed:
        print("note: the errors are the source's: its flux is marked as observed and gets no further noise")
    root = f"data=hdf5 data.root={shlex.quote(str(out))}"
    if options.split is None:
        print(f"all spectra are one set; as the test set of a run:  {root} data.test_path='all_*/dataset.h5'{param}")
        print("to train on them, convert with --split 0.8,0.1,0.1 into another folder: that makes train, val and test")
        return
    keys = {"train": "file_path", "val": "val_path", "test": "test_path"}
    paths = " ".join(f"data.{keys[split]}='{split}_*/dataset.h5'" for split in SPLITS)
    print(f"train on them:  specvit train {root} {paths}{param}")


def _pairs(text: str) -> dict[str, str]:
    """Read T_eff=TEFF,log_g=LOGG."""
    pairs = {}
    for part in text.split(","):
        label, sign, value = part.strip().partition("=")
        if not sign or not value or not LABEL.fullmatch(label):
            what = f"{part.strip()!r} is not LABEL=..., where a label is letters, digits and _"
            raise argparse.ArgumentTypeError(what)
        pairs[label] = value
    return pairs


def _numbers(text: str) -> dict[str, float]:
    """Read redshift=0,C_M=0."""
    try:
        return {label: float(value) for label, value in _pairs(text).items()}
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _shares(text: str) -> tuple[float, float, float]:
    """Read 0.8,0.1,0.1."""
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers between commas") from None
    return train, val, test
