"""Find the source files of a conversion, and read wavelengths from a file of their own."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.choose import companion
from specvit.convert.contents import Array, Contents, kind_of, open_contents, plain
from specvit.convert.names import WAVE_FILES, Naming
from specvit.convert.options import Options
from specvit.convert.wavelengths import LOG_NAMES, WAVE_NAMES
from specvit.utils.errors import ConfigError, DataError
from specvit.utils.text import counted


def find_sources(given: Sequence[Path], out: Path, options: Options) -> tuple[list[Path], Path]:
    """Return all files that are meant, absolute, and the deepest folder around them; raises `DataError`.

    A folder stands for the files of known kinds in it and below it, also through links, in natural order; what lies
    under `out`, and what the options name, is not a spectrum.
    """
    others = {Path(name).resolve() for name in (options.labels, options.source_wave, options.wave) if name}
    patterns = [pattern for pattern in (options.source_error, options.source_mask) if pattern]
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = [inner for inner in _below(path) if kind_of(inner) and inner.is_file()]
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        inside = found
        if not path.is_file():
            inside = [p for p in found if p.resolve() not in others and not WAVE_FILES.fullmatch(p.name)]
            inside = [p for p in inside if not p.resolve().is_relative_to(out.resolve())]
            beside = {companion(pattern, p).resolve() for pattern in patterns for p in inside}
            inside = [p for p in inside if p.resolve() not in beside]
        if not inside:
            what = "holds no file of a known kind" if path.is_dir() else "is not there"
            raise DataError(what, where=str(path), remedy="check the path")
        files += sorted(map(Path.absolute, inside), key=natural)
    for pattern in patterns:
        if len(files) > 1 and "{name}" not in pattern:
            remedy = "put {name} in it, which stands for the source's name"
            raise ConfigError(f"is one file for {len(files)} sources", where=pattern, remedy=remedy)
    counts = Counter(path.resolve() for path in files)
    twice = next((path for path in files if counts[path.resolve()] > 1), None)
    if twice is not None:
        raise DataError("is named twice", where=str(twice), remedy="name each file once")
    kinds = Counter(kind_of(path) or f"{path.suffix or 'other'}" for path in files)
    if len(kinds) > 1:
        held = " and ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        remedy = "name those of one kind by a glob in quotes, such as 'FOLDER/*.fits'"
        raise DataError(f"hold {held} files", where=" ".join(map(str, given[:3])), remedy=remedy)
    return files, Path(os.path.commonpath([path.parent for path in files]))


def _below(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder and below it, but for what is hidden; a folder that links lead to again only once."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(here, name) for name in names if not name.startswith("."))
        seen.add(real)


def natural(path: Path) -> list[Any]:
    """Return a sort key that puts spectrum_2 before spectrum_10."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if part.isdigit() else part for part in parts]


def read_wavelengths(path: Path) -> Array:
    """Return the one array of wavelengths that a file holds, read; raises `DataError`."""
    with open_contents(path) as contents:
        array = _wavelengths(contents)
        if len(array.shape) != 1 or not array.numeric:
            what = f"has wavelengths of shape {array.shape} and type {array.dtype}"
            raise DataError(what, where=f"{path}:{array.name}", remedy="one column of numbers is needed")
        wave_X = np.asarray(array.take(None), dtype=np.float64)
        if len(wave_X) < 2:
            what = f"holds {counted(len(wave_X), 'wavelength')}"
            raise DataError(what, where=f"{path}:{array.name}", remedy="at least two are needed")
    return replace(array, take=lambda rows: wave_X)


def wave_file_of(naming: Naming, first: Path, base: Path, resolution: float) -> Path:
    """Return the file of wavelengths that belongs to files of a library; raises `DataError` if it is not there."""
    name = naming.wave_file.format(resolution=resolution)
    absolute = first.absolute()
    around = [folder for folder in absolute.parents if base.parent in (folder, *folder.parents)]
    for folder in around:
        for place in (folder / name, folder / "wavelength_grids" / name):
            if place.exists():
                return place
    what = f"has no wavelengths in it; they lie in {name}, which is not beside it"
    raise DataError(what, where=str(first), remedy=f"put it there, or give --source-wave {name}")


def _wavelengths(contents: Contents) -> Array:
    arrays = list(contents.arrays.values())
    named = [array for array in arrays if plain(array.name) in (*WAVE_NAMES, *LOG_NAMES)]
    if len(named) == 1 or len(arrays) == 1 or (contents.numbered and arrays):
        return (named or arrays)[0]
    what = f"has no wavelengths that are clear; {contents.listing()}"
    raise DataError(what, where=str(contents.path), remedy="give a file with one column")
