"""Opening a set: what names a run stays what it was, and nothing is imported or read that a start does not need."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from specvit.data.shards import write_shard
from specvit.data.views import open_spectra
from specvit.utils.quantities import LABELS


def write_exact(path: Path, rows: int, start: int = 0) -> Path:
    """Write spectra and labels of numbers that have no rounding, so that their digests are the same everywhere."""
    row_N1, pixel_P = np.arange(start, start + rows)[:, None], np.arange(16)
    labels = pd.DataFrame({name: row_N1[:, 0] / 8 + number for number, name in enumerate(LABELS)})
    flux_NP = (row_N1 * 16 + pixel_P) / 64
    write_shard(path, wave_P=7100.0 + pixel_P / 2, flux_NP=flux_NP, error_NP=flux_NP / 4 + 1, labels=labels)
    return path


def test_what_identifies_a_set_is_for_good(tmp_path: Path) -> None:
    paths = [write_exact(tmp_path / "a.h5", 40), write_exact(tmp_path / "b.h5", 30, start=40)]
    whole = {"shape": [70, 16], "labels": "abd0a05b2638946e", "rows": "aa627ca370cdd19c"}
    assert open_spectra(paths, -1).manifest(("log_g",)) == whole
    assert open_spectra([write_exact(tmp_path / "c.h5", 70)], -1).manifest(("log_g",)) == whole
    some = {"shape": [45, 16], "labels": "8818c814b0be38d4", "rows": "86dd298203f0ab53"}
    assert open_spectra(paths, 45).manifest(("log_g",)) == some
    some = {"shape": [45, 16], "labels": "a2421b8e85da2418", "rows": "95dbec8226506db2"}
    assert open_spectra(paths, 45, subset="random", seed=1).manifest(("log_g",)) == some


def test_files_are_opened_without_the_libraries_that_only_making_spectra_or_training_needs() -> None:
    program = "import sys, specvit.data.splits; print(*sorted({'scipy', 'torch', 'pandas'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"
