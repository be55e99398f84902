"""Pieces: spectra that one worker converts together into one intermediate file.

Shape suffixes: B spectra of a piece, P pixels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.choose import open_source
from specvit.convert.spectrum import Recipe, on_pixels, read_rows
from specvit.utils.errors import DataError
from specvit.utils.files import write_atomic


@dataclass(frozen=True)
class Piece:
    """Spectra that are converted together, and their file."""

    path: Path
    spectra: tuple[tuple[Path, int], ...]
    """File and row of each, in order."""
    names: Mapping[Path, Path] = field(default_factory=dict)
    """Copy -> the source that it is of, to be named where something is wrong."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Places of spectra that are left out already, and why."""


def make_piece(recipe: Recipe, piece: Piece) -> None:
    """Convert the spectra of a piece into `piece.path`, an NPZ file that is written whole or not at all.

    It holds `flux` and, if wanted, `error`, (B, P) float32; `good` (B,), False where a spectrum was left out, whose
    rows are zero; and in JSON `why` those were left out and the `digests` of files. Raises `DataError` for a
    spectrum that cannot be made, unless such are to be left out.
    """
    made = _PieceArrays(recipe, piece)
    places: dict[Path, list[int]] = {}
    for place, (path, _) in enumerate(piece.spectra):
        places.setdefault(path, [])
        if place not in piece.bad:
            places[path].append(place)
    for path, here in places.items():
        if not here:
            continue
        try:
            made.add_file(path, here)
        except DataError as problem:  # of the whole file, or of a damaged part of it
            for place in here if recipe.options.skip_bad and len(here) > 1 else ():
                made.add_row(path, place)
            if not recipe.options.skip_bad or len(here) == 1:
                made.leave_out(here, problem)
    digests = {str(path): digest_of(path) for path in places} if recipe.digest else {}
    facts = {"why": np.array(json.dumps(made.why)), "digests": np.array(json.dumps(digests)), "good": made.good_B}
    write_atomic(piece.path, lambda stream: np.savez(stream, **made.arrays, **facts))  # pyright: ignore[reportArgumentType]


def digest_of(path: Path) -> dict[str, Any]:
    """Return size and sha256 of a file; nothing for one that cannot be read."""
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"bytes": stream.tell(), "sha256": digest}
    except OSError:
        return {}


class _PieceArrays:
    """Arrays of a piece, filled file by file."""

    def __init__(self, recipe: Recipe, piece: Piece) -> None:
        """All arrays are zero."""
        self.recipe, self.piece = recipe, piece
        shape = (len(piece.spectra), len(recipe.target.wave_P))
        self.arrays = {name: np.zeros(shape, np.float32) for name in ("flux", "error")[: 1 + recipe.with_error]}
        self.good_B = np.array([place not in piece.bad for place in range(shape[0])])
        self.why = {str(place): why for place, why in piece.bad.items()}

    def add_file(self, path: Path, here: list[int]) -> None:
        """Convert spectra of a file, at places `here` of the piece; raises `DataError`."""
        recipe, name = self.recipe, self.piece.names.get(path, path)
        rows = [self.piece.spectra[place][1] for place in here]
        with open_source(path, recipe.choice.options, recipe.choice.arrays, name) as contents:
            wave_BX, flux_BX, error_BX = read_rows(contents, recipe, rows)
            for i, place in enumerate(here):
                where = str(name) if recipe.choice.spectra is None else f"{name} row {rows[i]}"
                wave_X = wave_BX if wave_BX.ndim == 1 else wave_BX[i]
                error_X = None if error_BX is None else error_BX[i]
                try:
                    both = on_pixels(where, wave_X, flux_BX[i], error_X, recipe)
                except DataError as problem:
                    self.leave_out([place], problem)
                    continue
                for array, values_P in zip(self.arrays.values(), both, strict=False):
                    array[place] = values_P

    def add_row(self, path: Path, place: int) -> None:
        """Make one spectrum of a file, or leave it out."""
        try:
            self.add_file(path, [place])
        except DataError as problem:
            self.leave_out([place], problem)

    def leave_out(self, here: list[int], problem: DataError) -> None:
        """Record why spectra are left out; raises `problem` without --skip-bad."""
        if not self.recipe.options.skip_bad:
            raise problem
        self.good_B[here] = False
        self.why |= {str(place): str(problem) for place in here}
