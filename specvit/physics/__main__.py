"""`python -m specvit.physics grid`: synthesise the grid of spectra that the package carries. For developers."""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from specvit.entry import Parser, user_facing
from specvit.errors import ConfigError, FolderError

COMPONENTS = 120
MEANINGFUL = {"T_eff": (3000.0, 7000.0), "log_g": (0.0, 6.0), "M_H": (-4.0, 1.0), "a_M": (-1.0, 1.0), "C_O": (-8, 8)}
"""Where the synthesis can be asked at all."""
CHECKS = 512
"""Spectra between the nodes that are synthesised to measure the interpolation, and as many where it is hardest."""
NOISE = "noise of the median pixel at magnitude 20.5: 6 %"


@user_facing
def main(arguments: list[str] | None = None) -> int:
    """Synthesise a grid of spectra, compress it, and say how good it is."""
    parser = Parser(prog="python -m specvit.physics", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    grid = commands.add_parser(
        "grid", help="make grid.npz, and grid.json with its errors beside it; goes on if stopped"
    )
    grid.add_argument("--out", type=Path, default=Path(__file__).with_name("grid.npz"), help="the file to write")
    grid.add_argument("--components", type=int, default=COMPONENTS, help=f"principal components ({COMPONENTS})")
    grid.add_argument("--checks", type=int, default=CHECKS, help=f"random spectra to compare with ({CHECKS})")
    grid.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (one a CPU)")
    grid.add_argument(
        "--axes", type=_axes, default=None, metavar="JSON", help='other nodes: {"T_eff": [4000, 5000], ...}'
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        _make(options)
    except KeyboardInterrupt:
        print("\nspecvit: stopped by Ctrl-C; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _make(options: argparse.Namespace) -> None:
    """Synthesise under a lock, compress, measure, write, and drop the work of other fingerprints."""
    from specvit.files import locked
    from specvit.physics.grid import (
        AXES,
        crossing_places,
        fingerprint,
        labels_of,
        node_places,
        random_places,
        synthesise,
        work_folder,
    )

    axes = options.axes or AXES
    if list(axes) != list(AXES):
        raise ConfigError(f"needs {', '.join(AXES)} in this order", where="--axes")
    if options.components < 1 or options.checks < 1 or options.workers < 1:
        raise ConfigError("counts must be at least 1", where="--components, --checks, --workers")
    _check_axes(axes)
    if not options.out.absolute().parent.is_dir():
        raise FolderError("is no folder", where=str(options.out.absolute().parent), remedy="make it first")
    mark = fingerprint(axes)
    folder = work_folder(mark)
    with locked(folder / ".lock", seconds=0) as mine:
        if not mine:
            raise FolderError("another process is making this grid", where=str(folder), remedy="wait until it is done")
        progress = Progress(options.workers)
        places = {
            "nodes": node_places(axes),
            "checks": random_places(axes, options.checks),
            "crossing": crossing_places(axes, options.checks),
        }
        flux = {
            name: synthesise(labels_of(found), folder / name, workers=options.workers, report=progress)
            for name, found in places.items()
        }
        facts = _write(options, axes, mark, flux, places)
    _say(facts, progress.seconds_each, options.out)
    _drop_others(folder)


def _check_axes(axes: dict[str, tuple[float, ...]]) -> None:
    """Raise `ConfigError` for nodes at which the model has no meaning."""
    for name, (low, high) in MEANINGFUL.items():
        if not low <= min(axes[name]) <= max(axes[name]) <= high:
            what = f"{name} goes from {min(axes[name]):g} to {max(axes[name]):g}"
            raise ConfigError(what, where="--axes", remedy=f"stay between {low:g} and {high:g}")


def _write(options: argparse.Namespace, axes: Any, mark: str, flux: Any, places: Any) -> Any:
    """Write the grid and its facts, and return the facts."""
    from dataclasses import replace

    from specvit.files import write_atomic, write_json
    from specvit.physics.accuracy import at_nodes, best_kinds, between_nodes, left_out
    from specvit.physics.compress import compress

    print("compressing", flush=True)
    kinds = dict.fromkeys(axes, "not-a-knot")
    flux_NQ = flux["nodes"]
    grid = compress(axes, flux_NQ, options.components, kinds=kinds, fingerprint=mark)
    grid = replace(grid, kinds=best_kinds(grid, flux_NQ))
    facts = {
        "axes": {name: list(nodes) for name, nodes in grid.axes.items()},
        "splines": grid.kinds,
        "fingerprint": mark,
        "nodes": len(flux_NQ),
        "components": len(grid.basis_KQ.integers),
        "error of the compression": at_nodes(grid, flux_NQ),
        "error at nodes left out": left_out(grid, flux_NQ),
        "error between the nodes": between_nodes(grid, places["checks"], flux["checks"]),
        "error in cool stars with as much carbon as oxygen": between_nodes(grid, places["crossing"], flux["crossing"]),
    }
    write_atomic(options.out, grid.save)
    write_json(options.out.with_suffix(".json"), facts)
    return facts


def _say(facts: Any, seconds_each: float, out: Path) -> None:
    """Print the facts; errors are of the flux, relative, as root mean square over the pixels of a spectrum."""
    each = f", {seconds_each:.3f} s a spectrum and process" if seconds_each else ""
    print(f"{facts['nodes']:,} nodes{each}; {facts['components']} components; {out.stat().st_size / 1e6:.2f} MB")
    print(f"compression:    {_percent(facts['error of the compression'])} (pixels)")
    for name, error in facts["error at nodes left out"].items():
        print(f"left out {name:6s} {_percent(error)} (spectra; {facts['splines'][name]})")
    print(f"between nodes:  {_percent(facts['error between the nodes'])} (spectra)")
    print(f"hardest:        {_percent(facts['error in cool stars with as much carbon as oxygen'])} (cool, C near O)")
    print(NOISE)


def _percent(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.3f} %" for name, value in errors.items())


def _drop_others(folder: Path) -> None:
    """Remove the work folders of other sources that no process holds; 0.3 GB of this one stay until then."""
    from specvit.files import is_locked

    same = folder.name.rpartition("-")[0]
    for other in folder.parent.glob("grid-*"):
        if other.name.rpartition("-")[0] != same and not is_locked(other / ".lock"):
            shutil.rmtree(other, ignore_errors=True)


class Progress:
    """A line that says how far the synthesis is: on a terminal always the same one, else one in ten seconds."""

    def __init__(self, workers: int) -> None:
        """Start with nothing said."""
        self.workers, self.said, self.seconds_each = workers, 0.0, 0.0

    def __call__(self, done: int, total: int, seconds_each: float) -> None:
        """Say it if it is time to."""
        self.seconds_each = self.seconds_each or seconds_each
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if done < total and now - self.said < (0.2 if terminal else 10):
            return
        self.said = now
        left = (total - done) * seconds_each / self.workers
        rest = f", about {left / 60:.1f} min left" if seconds_each and done < total else ""
        end = "\r" if terminal and done < total else "\n"
        print(f"synthesised {done:,} of {total:,} spectra{rest}".ljust(70), end=end, flush=True)


def _axes(text: str) -> dict[str, tuple[float, ...]]:
    """Read axes from JSON: by label at least two rising places."""
    try:
        axes = {name: tuple(float(place) for place in places) for name, places in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise argparse.ArgumentTypeError("is no JSON object of lists of numbers") from None
    if not all(len(places) > 1 and list(places) == sorted(set(places)) for places in axes.values()):
        raise argparse.ArgumentTypeError("every label needs at least two rising places")
    return axes


if __name__ == "__main__":
    sys.exit(main())
