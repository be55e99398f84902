"""Built-in spectra are the same in every layout and made once."""

import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from specvit.commands.data import main
from specvit.data import synthetic
from specvit.physics.population import STAR_COLUMNS, draw_stars
from specvit.physics.simulator import Simulator
from specvit.utils.quantities import ERROR, FLUX, LABELS, WAVE

FLUX_12345 = [0.54046, 0.51985, 0.50181, 0.18056, 0.33790]
ERROR_12345 = [0.056122, 0.053242, 0.056453, 0.052334, 0.045326]


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        flux_NP, error_NP = file[FLUX][()], file[ERROR][()]
        assert file[WAVE].shape == flux_NP.shape[1:]
    table: Any = pd.read_hdf(path)
    return flux_NP, error_NP, table[list(LABELS)].to_numpy()


def silent(*progress: object) -> None:
    """Report nothing."""


def make(paths: dict[Path, range], **options: Any) -> None:
    synthetic.make_shards(paths, **{"seed": 1, "split": "train", "report": silent} | options)


def test_a_builtin_row_is_the_same_to_the_bit_in_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are split over files, on one CPU or two, whatever torch's threads, and far from the first row."""
    size = 2 * synthetic.PIECE_ROWS + 20
    make({tmp_path / "one.h5": range(size)})
    cuts = [(0, 3), (3, 7), (7, synthetic.PIECE_ROWS + 1), (synthetic.PIECE_ROWS + 1, size)]
    paths = {tmp_path / f"{start}.h5": range(start, stop) for start, stop in cuts}
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    make(paths)
    parts = zip(*(read(path) for path in paths), strict=True)
    for whole, pieces in zip(read(tmp_path / "one.h5"), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert len(whole) == size and len(np.unique(whole[:, 0])) == size
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    make({tmp_path / "three.h5": range(5, 8)})
    for whole, piece in zip(read(tmp_path / "one.h5"), read(tmp_path / "three.h5"), strict=True):
        np.testing.assert_array_equal(piece, whole[5:8])


def test_spectra_do_not_change_between_versions() -> None:
    """Published numbers rest on them: another grid, forward model or noise needs a new GENERATOR_VERSION."""
    flux_P, error_P = (x[0] for x in Simulator(False)(torch.from_numpy(draw_stars(0, "train", np.array([12345])))))
    pixels = [100, 1700, 2555, 3380, 4000]
    assert synthetic.GENERATOR_VERSION == 4
    np.testing.assert_allclose(flux_P[pixels], FLUX_12345, rtol=1e-4)
    np.testing.assert_allclose(error_P[pixels], ERROR_12345, rtol=1e-4)


@pytest.mark.parametrize("max_redshift", [0.0, 0.001])
def test_a_builtin_row_is_what_the_simulator_makes_of_its_star(max_redshift: float, tmp_path: Path) -> None:
    make({tmp_path / "one.h5": range(4, 9)}, max_redshift=max_redshift)
    stars_NS = draw_stars(1, "train", np.arange(4, 9), max_redshift=max_redshift)
    flux_NP, error_NP, table_NK = read(tmp_path / "one.h5")
    for found, expected in zip((flux_NP, error_NP), Simulator()(torch.from_numpy(stars_NS)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    table = dict(zip(LABELS, table_NK.T, strict=True))
    np.testing.assert_array_equal(table.pop("snr"), np.median(flux_NP / error_NP, axis=1))
    for name, values in table.items():
        np.testing.assert_array_equal(values, stars_NS[:, STAR_COLUMNS.index(name)])
    assert (np.abs(table["redshift"]) > 0).all() == (max_redshift > 0)


def test_making_leaves_the_threads_of_torch_as_they_were(tmp_path: Path) -> None:
    before, during = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        make({tmp_path / "one.h5": range(1)}, report=lambda *_: during.append(torch.get_num_threads()))
        assert (during, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_redshifted_sets_are_sets_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "ROUND_UP", 1)
    wish: dict[str, Any] = {"seed": 0, "split": "val"}
    still = synthetic.builtin_manifest(2, **wish)
    assert still == synthetic.builtin_manifest(2, **wish, max_redshift=0.0)
    assert still == {"builtin": 4, "seed": 0, "split": "val", "rows": 2}
    assert synthetic.builtin_manifest(2, **wish, max_redshift=0.0005) == still | {"max_redshift": 0.0005}
    near = 0.00012345678, 0.00012345699  # alike in six digits
    files = {z: synthetic.builtin_files(2, **wish, report=silent, max_redshift=z) for z in (0.0, 0.0005, 0.001, *near)}
    assert len({path for (path,) in files.values()}) == 5
    redshifts = {z: read(path)[2][:, list(LABELS).index("redshift")] for z, (path,) in files.items()}
    np.testing.assert_allclose(redshifts[0.001], 2 * redshifts[0.0005])
    assert (redshifts[0.0] == 0).all() and (redshifts[0.001] != 0).all()


def test_another_distribution_of_labels_is_a_set_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard is shared, in neither order of making; shards made before the key existed keep their place."""
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "ROUND_UP", 1)
    wish: dict[str, Any] = {"seed": 0, "split": "val"}
    uniform = synthetic.builtin_manifest(3, **wish)
    assert uniform == synthetic.builtin_manifest(3, **wish, label_prior="uniform")
    assert synthetic.builtin_manifest(3, **wish, label_prior="published") == uniform | {"label_prior": "published"}
    made = {p: synthetic.builtin_files(3, **wish, report=silent, label_prior=p) for p in ("published", "uniform")}
    assert made["uniform"] == synthetic.builtin_files(3, **wish, report=silent)
    assert len({path for (path,) in made.values()}) == 2
    for prior, (path,) in made.items():
        stars_NS = draw_stars(0, "val", np.arange(3), label_prior=prior)
        flux_NP, error_NP, table_NK = read(path)
        np.testing.assert_array_equal(
            table_NK[:, list(LABELS).index("log_g")], stars_NS[:, STAR_COLUMNS.index("log_g")]
        )
        for found, expected in zip((flux_NP, error_NP), Simulator(False)(torch.from_numpy(stars_NS)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Not more than some pieces are held at a time, although the disk may be slower than the making."""
    alive: list[weakref.ref[np.ndarray]] = []
    real, most = synthetic.make_piece, 0

    def counted(*words: Any) -> Any:
        flux_BP, *rest = real(*words)
        alive.append(weakref.ref(flux_BP))
        return flux_BP, *rest

    def slow_disk(*_: object) -> None:
        nonlocal most
        time.sleep(0.0 if most else 1.5)
        most = max(most, sum(reference() is not None for reference in alive))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(synthetic, "make_piece", counted)
        patched.setattr("os.sched_getaffinity", lambda _: {0})
        make({tmp_path / "one.h5": range(20 * synthetic.PIECE_ROWS)}, report=slow_disk)
    assert len(alive) == 20
    assert 1 <= most <= 5


def test_generate_takes_a_redshift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--out", str(tmp_path / "made"), "--train", "3", "--val", "2", "--test", "2"]
    assert main([*words, "--max-redshift", "0.0005", "--label-prior", "published"]) == 0
    redshifts = [read(path)[2][:, list(LABELS).index("redshift")] for path in (tmp_path / "made").rglob("dataset.h5")]
    assert len(redshifts) == 3 and np.abs(np.concatenate(redshifts)).max() <= 0.0005
    (train,) = (tmp_path / "made").glob("train_*/dataset.h5")
    stars_NS = draw_stars(0, "train", np.arange(3), label_prior="published")
    np.testing.assert_array_equal(read(train)[2][:, list(LABELS).index("T_eff")], stars_NS[:, 0])
    assert (np.concatenate(redshifts) != 0).all()
    assert "making train 3 of 3" in capsys.readouterr().out
    for odd in ("0.0011", "-0.1", "fast"):
        assert main([*words, "--max-redshift", odd]) == 2
        assert "--max-redshift" in capsys.readouterr().err


MAKER = """
import sys
from specvit.data import synthetic
synthetic.SHARD_ROWS, synthetic.ROUND_UP = 4, 2
made = []
paths = synthetic.builtin_files(int(sys.argv[1]), seed=2, split="val", report=lambda *progress: made.append(progress))
print(len(made), *paths, sep="\\n")
"""


def make_together(cache: Path, *counts: int) -> list[list[str]]:
    """Ask for built-in spectra from several processes at once; return what each prints: reports, then paths."""
    environment = {"SPECVIT_CACHE": str(cache), "PATH": ""}
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(count)], stdout=subprocess.PIPE, text=True, env=environment)
        for count in counts
    ]
    return [maker.communicate(timeout=120)[0].split() for maker in makers]


@pytest.mark.slow
def test_processes_that_want_builtin_spectra_at_once_make_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_together(tmp_path, 6, 6)
    assert first[1:] == second[1:]
    assert sorted([first[0], second[0]]) == ["0", "2"]  # one report a shard, all from one of the two
    rows = np.concatenate([read(Path(path))[0] for path in first[1:]])
    np.testing.assert_array_equal(rows[5], synthetic.make_piece(2, "val", 0, 0.0)[0][5])
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "SHARD_ROWS", 4)
    monkeypatch.setattr(synthetic, "ROUND_UP", 2)
    # a damaged shard is made again, the rest is left alone
    whole, last = (Path(path) for path in first[1:])
    kept = whole.stat().st_mtime_ns
    last.write_bytes(last.read_bytes()[:5000])
    reports: list[Any] = []
    again = synthetic.builtin_files(6, seed=2, split="val", report=lambda *progress: reports.append(progress))
    assert (len(reports), again, whole.stat().st_mtime_ns) == (1, [whole, last], kept)
    np.testing.assert_array_equal(read(last)[0][1], rows[5])
    # a longer wish gets a file of its own: another run may have the short one mapped
    before = last.stat()
    longer = synthetic.builtin_files(8, seed=2, split="val", report=silent)
    assert longer[0] == whole and longer[1] != last
    assert (last.stat().st_ino, last.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.testing.assert_array_equal(read(longer[1])[0][1], rows[5])


def test_a_cached_file_with_other_values_is_made_again_and_one_that_was_only_copied_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "ROUND_UP", 1)
    (path,) = synthetic.builtin_files(3, seed=0, split="val", report=silent)
    whole = read(path)
    os.utime(path, (1, 1))
    before = path.stat().st_ino
    assert synthetic.builtin_files(3, seed=0, split="val", report=silent) == [path]
    assert (path.stat().st_ino, capsys.readouterr().err) == (before, "")
    with h5py.File(path, "r+") as file:
        file["dataset/arrays/flux/value"][1] = 1.0
    assert synthetic.builtin_files(3, seed=0, split="val", report=silent) == [path]
    assert capsys.readouterr().err == f"note: {path} has changed since it was made and is made again\n"
    for made, first in zip(read(path), whole, strict=True):
        np.testing.assert_array_equal(made, first)
