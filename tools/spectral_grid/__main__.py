"""`python -m tools.spectral_grid`: synthesise the grid of spectra in the package specvit. For developers."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import specvit.physics
from specvit.commands.entry import Parser, user_facing
from specvit.physics.grid import FILE_NAME
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import is_locked, locked, write_atomic, write_json
from tools.spectral_grid.compression import (
    best_splines,
    compress,
    compression_error,
    interpolation_error,
    leave_one_out_error,
)
from tools.spectral_grid.nodes import (
    AXES,
    Axes,
    crossing_coordinates,
    fingerprint,
    labels_of,
    node_coordinates,
    random_coordinates,
    synthesise,
    work_folder,
)

COMPONENTS = 120
VALID_RANGES = {"T_eff": (3000.0, 7000.0), "log_g": (0.0, 6.0), "M_H": (-4.0, 1.0), "a_M": (-1.0, 1.0), "C_O": (-8, 8)}
"""Where the synthesis is meaningful at all."""
CHECKS = 512
"""Spectra between the nodes that measure the interpolation, and as many again where it is hardest."""
NOISE = "noise of the median pixel at magnitude 20.5: 6 %"


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Synthesise a grid of spectra, compress it, and print its errors."""
    parser = Parser(prog="python -m tools.spectral_grid", description=main.__doc__)
    default = Path(specvit.physics.__file__).with_name(FILE_NAME)
    parser.add_argument("--out", type=Path, default=default, help="file to write; a .json with its errors beside it")
    parser.add_argument("--components", type=int, default=COMPONENTS, help=f"principal components ({COMPONENTS})")
    parser.add_argument("--checks", type=int, default=CHECKS, help=f"random spectra to compare with ({CHECKS})")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per CPU)")
    parser.add_argument("--axes", type=_axes, default=AXES, metavar="JSON", help='nodes: {"T_eff": [4000, 5000], ...}')
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    _check(options)
    try:
        _make(options)
    except KeyboardInterrupt:
        print("\nspecvit: stopped by Ctrl-C; run the same command again to resume.", file=sys.stderr)
        return 130
    return 0


def _axes(text: str) -> dict[str, tuple[float, ...]]:
    """Read axes from JSON: at least two increasing nodes per label."""
    try:
        axes = {name: tuple(float(node) for node in nodes) for name, nodes in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError("is not a JSON object of lists of numbers") from None
    if not all(len(nodes) > 1 and list(nodes) == sorted(set(nodes)) for nodes in axes.values()):
        raise argparse.ArgumentTypeError("every label needs at least two increasing nodes")
    return axes


def _check(options: argparse.Namespace) -> None:
    """Raise `ConfigError` or `FolderError` for options that cannot give a grid."""
    if list(options.axes) != list(AXES):
        raise ConfigError(f"needs {', '.join(AXES)} in this order", where="--axes")
    if options.components < 1 or options.checks < 1 or options.workers < 1:
        raise ConfigError("must be at least 1", where="--components, --checks, --workers")
    for name, (low, high) in VALID_RANGES.items():
        nodes = options.axes[name]
        if not low <= min(nodes) <= max(nodes) <= high:
            what = f"{name} ranges from {min(nodes):g} to {max(nodes):g}"
            raise ConfigError(what, where="--axes", remedy=f"stay between {low:g} and {high:g}")
    if not options.out.absolute().parent.is_dir():
        raise FolderError("is not a folder", where=str(options.out.absolute().parent), remedy="create it first")


def _make(options: argparse.Namespace) -> None:
    """Synthesise under a lock, compress, measure, write, and delete the work of other sources."""
    axes: Axes = options.axes
    mark = fingerprint(axes)
    folder = work_folder(mark)
    with locked(folder / ".lock", seconds=0) as acquired:
        if not acquired:
            raise FolderError("another process is making this grid", where=str(folder), remedy="wait until it is done")
        progress = Progress(options.workers)
        coordinates = {
            "nodes": node_coordinates(axes),
            "checks": random_coordinates(axes, options.checks),
            "crossing": crossing_coordinates(axes, options.checks),
        }
        flux = {
            name: synthesise(labels_of(rows), folder / name, workers=options.workers, report=progress)
            for name, rows in coordinates.items()
        }
        errors = _write(options, mark, coordinates, flux)
    _print_errors(errors, progress.seconds_each, options.out)
    delete_outdated(folder)


def _write(
    options: argparse.Namespace, mark: str, coordinates: Mapping[str, NDArray], flux: Mapping[str, NDArray]
) -> dict[str, Any]:
    """Write the grid, and beside it a .json of its axes and errors, which is returned."""
    print("compressing", flush=True)
    flux_NQ = flux["nodes"]
    kinds = dict.fromkeys(options.axes, "not-a-knot")
    grid = compress(options.axes, flux_NQ, options.components, kinds=kinds, fingerprint=mark)
    grid = replace(grid, kinds=best_splines(grid, flux_NQ))
    facts = {
        "axes": {name: list(nodes) for name, nodes in grid.axes.items()},
        "splines": grid.kinds,
        "fingerprint": mark,
        "nodes": len(flux_NQ),
        "components": len(grid.basis_KQ.integers),
        "error of the compression": compression_error(grid, flux_NQ),
        "error at nodes left out": leave_one_out_error(grid, flux_NQ),
        "error between the nodes": interpolation_error(grid, coordinates["checks"], flux["checks"]),
        "error in cool stars with as much carbon as oxygen": interpolation_error(
            grid, coordinates["crossing"], flux["crossing"]
        ),
    }
    write_atomic(options.out, grid.save)
    write_json(options.out.with_suffix(".json"), facts)
    return facts


def _print_errors(facts: Mapping[str, Any], seconds_each: float, out: Path) -> None:
    """Print the errors: relative, of pixels or as root mean square over the pixels of a spectrum."""
    each = f", {seconds_each:.3f} s per spectrum and process" if seconds_each else ""
    print(f"{facts['nodes']:,} nodes{each}; {facts['components']} components; {out.stat().st_size / 1e6:.2f} MB")
    print(f"compression:    {_percent(facts['error of the compression'])} (pixels)")
    for name, error in facts["error at nodes left out"].items():
        print(f"left out {name:6s} {_percent(error)} (spectra; {facts['splines'][name]})")
    print(f"between nodes:  {_percent(facts['error between the nodes'])} (spectra)")
    print(f"hardest:        {_percent(facts['error in cool stars with as much carbon as oxygen'])} (cool, C near O)")
    print(NOISE)


def _percent(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.3f} %" for name, value in errors.items())


def delete_outdated(folder: Path) -> None:
    """Delete unlocked work folders of other sources; this one (0.3 GB) stays until the sources change."""
    sources = folder.name.rpartition("-")[0]
    for other in folder.parent.glob("grid-*"):
        if other.name.rpartition("-")[0] != sources and not is_locked(other / ".lock"):
            shutil.rmtree(other, ignore_errors=True)


class Progress:
    """Progress of the synthesis: one line, rewritten on a terminal, else printed every ten seconds."""

    def __init__(self, workers: int) -> None:
        """Forecast for so many processes."""
        self.workers, self.printed_at, self.seconds_each = workers, 0.0, 0.0

    def __call__(self, finished: int, total: int, seconds_each: float) -> None:
        """Print the line if it is due."""
        self.seconds_each = self.seconds_each or seconds_each
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if finished < total and now - self.printed_at < (0.2 if terminal else 10):
            return
        self.printed_at = now
        minutes = (total - finished) * seconds_each / self.workers / 60
        rest = f", about {minutes:.1f} min to go" if seconds_each and finished < total else ""
        end = "\r" if terminal and finished < total else "\n"
        print(f"synthesised {finished:,} of {total:,} spectra{rest}".ljust(70), end=end, flush=True)


if __name__ == "__main__":
    sys.exit(main())
