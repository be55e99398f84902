"""Built-in spectra are the same in every layout and made once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from specvit.data import builtin
from specvit.physics.population import make_row
from specvit.quantities import ERROR, FLUX, LABELS, WAVE


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        flux_NP, error_NP = file[FLUX][()], file[ERROR][()]
        assert file[WAVE].shape == flux_NP.shape[1:]
    table: Any = pd.read_hdf(path)
    return flux_NP, error_NP, table[list(LABELS)].to_numpy()


def silent(*progress: object) -> None:
    """Report nothing."""


def test_a_builtin_row_is_the_same_in_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {tmp_path / "one.h5": range(6)}
    two = {tmp_path / "a.h5": range(2), tmp_path / "b.h5": range(2, 6)}
    builtin.make_shards(one, seed=1, split="train", report=silent)
    monkeypatch.setattr(builtin, "PIECE_ROWS", 3)
    builtin.make_shards(two, seed=1, split="train", report=silent)
    parts = zip(*(read(path) for path in two), strict=True)
    for whole, (first, second) in zip(read(tmp_path / "one.h5"), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    flux_P, error_P, labels = make_row(1, "train", 4)
    flux_NP, error_NP, table_NK = read(tmp_path / "one.h5")
    np.testing.assert_array_equal([flux_P, error_P], [flux_NP[4], error_NP[4]])
    assert dict(zip(LABELS, table_NK[4], strict=True)) == labels


MAKER = """
import sys
from specvit.data import builtin
builtin.SHARD_ROWS, builtin.ROUND_UP = 4, 2
made = []
paths = builtin.builtin_files(int(sys.argv[1]), seed=2, split="val", report=lambda *progress: made.append(progress))
print(len(made), *paths, sep="\\n")
"""


def make_together(cache: Path, *counts: int) -> list[list[str]]:
    """Ask for built-in spectra from several processes at once; return what each printed: reports, then paths."""
    environment = {"SPECVIT_CACHE": str(cache), "PATH": ""}
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(count)], stdout=subprocess.PIPE, text=True, env=environment)
        for count in counts
    ]
    return [maker.communicate(timeout=120)[0].split() for maker in makers]


@pytest.mark.slow
def test_processes_that_want_builtin_spectra_at_once_make_each_file_once(tmp_path: Path) -> None:
    first, second = make_together(tmp_path, 6, 6)
    assert first[1:] == second[1:]
    assert sorted([first[0], second[0]]) == ["0", "2"]  # one report a shard, all from one of the two
    rows = np.concatenate([read(Path(path))[0] for path in first[1:]])
    np.testing.assert_array_equal(rows[5], make_row(2, "val", 5)[0])
    # a damaged shard is made anew, the rest is left alone
    whole, last = (Path(path) for path in first[1:])
    kept = whole.stat().st_mtime_ns
    last.write_bytes(last.read_bytes()[:5000])
    (again,) = make_together(tmp_path, 6)
    assert (again[0], again[1:], whole.stat().st_mtime_ns) == ("1", first[1:], kept)
    np.testing.assert_array_equal(read(last)[0][1], rows[5])
    # a longer wish gets a file of its own: another run may have the short one mapped
    before = last.stat()
    (longer,) = make_together(tmp_path, 8)
    assert longer[1] == first[1] and longer[2] != first[2]
    assert (last.stat().st_ino, last.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.testing.assert_array_equal(read(Path(longer[2]))[0][1], rows[5])
