"""A conversion that was begun and is gone on with: what has to be as it was, and what is kept for the next time."""

import json
from pathlib import Path
from typing import Any

import foreign_files as make
import numpy as np
import pytest
from test_foreign_formats import ONE, PATTERN, SNR, STARS
from test_foreign_resume import COARSE, interrupt

from specvit.data import __main__ as data_cli
from specvit.data.foreign import engine
from specvit.data.foreign.progress import Progress

pytestmark = pytest.mark.slow

FLUX_NX = np.stack([make.flux_of(star, COARSE) for star in STARS])


def convert(source: Path | str, out: Path, *options: str) -> int:
    return data_cli.main(["convert", str(source), str(out), *ONE, *SNR, *options])


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def texts(folder: Path) -> Path:
    folder.mkdir()
    for star in STARS:
        make.text(folder / f"{make.name_of(star)}.txt", {"1": COARSE, "2": make.flux_of(star, COARSE)})
    return folder


def bad_row(path: Path) -> Path:
    """Write a table of stars of which the fourth has a pixel that is no number."""
    flux_NX = FLUX_NX.copy()
    flux_NX[3, 1000] = np.nan
    np.savez(path, wave=COARSE, flux=flux_NX, T_eff=4000 + np.arange(5))
    return path


def stopped(source: Path | str, out: Path, *options: str) -> None:
    """Begin a conversion and stop it by Ctrl-C before its second shard."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "all_1")
        assert convert(source, out, "--shard", "2", *options) == 130


def test_the_grid_of_a_library_that_was_found_is_part_of_what_was_asked(tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / "library", tmp_path / "out"
    folder.mkdir()
    for star in STARS:
        name = "bosz2024_mp_t{:.0f}_g{:+.1f}_m{:+.2f}_a+0.00_c+0.00_v2_r5000_resam.txt".format(*star)
        make.text(folder / name, {"1": make.flux_of(star, COARSE)})
    grid = folder / "bosz2024_wave_r5000.txt"
    np.savetxt(grid, COARSE)
    stopped(folder, out)
    np.savetxt(grid, COARSE + 5)
    assert convert(folder, out, "--shard", "2") == 2
    assert "was begun with another content of bosz2024_wave_r5000.txt" in capsys.readouterr().err
    np.savetxt(grid, COARSE)
    assert convert(folder, out, "--shard", "2") == 0
    assert manifest(out)["inputs"]["source_wave"]["file"] == grid.name


def test_sources_spelled_otherwise_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    stopped("source", tmp_path / "out", *PATTERN)
    assert convert(tmp_path / "source", tmp_path / "out", *PATTERN, "--shard", "2") == 0
    assert convert("source", tmp_path / "whole", *PATTERN, "--shard", "2") == 0
    found = manifest(tmp_path / "out")
    assert found == manifest(tmp_path / "whole")
    assert all(len(source["sha256"]) == 64 for source in found["sources"])


def test_leaving_bad_ones_out_is_part_of_what_was_asked(tmp_path: Path, capsys: Any) -> None:
    source, out = bad_row(tmp_path / "set.npz"), tmp_path / "out"
    assert convert(source, out, "--shard", "2") == 2  # its second shard has the bad one
    assert convert(source, out, "--shard", "2", "--skip-bad") == 0
    assert manifest(out)["options"]["skip_bad"]
    assert convert(source, out, "--shard", "2", "--skip-bad") == 0
    capsys.readouterr()
    assert convert(source, out, "--shard", "2") == 2
    assert "out: was made by --skip-bad, which left out 1 spectra; type the same command" in capsys.readouterr().err


def test_leaving_none_out_makes_no_difference(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX, T_eff=4000 + np.arange(5))
    source = tmp_path / "set.npz"
    stopped(source, tmp_path / "out", "--skip-bad")
    assert convert(source, tmp_path / "out", "--shard", "2") == 2
    assert "was begun with --skip-bad, and not with no --skip-bad" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "--shard", "2", "--skip-bad") == 0
    assert convert(source, tmp_path / "out", "--shard", "2") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_what_is_unpacked_stays_for_the_next_time(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX, T_eff=4000 + np.arange(5))
    copy = tmp_path / "out" / ".convert" / "unpacked" / "0.h5"
    with monkeypatch.context() as patch:
        interrupt(patch, "all_0")
        assert convert(tmp_path / "set.npz", tmp_path / "out") == 130
    assert "unpacking 1 MB\nunpacked 1 of 1 MB\n" in capsys.readouterr().out
    copied = copy.stat()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "unpack", None)
        interrupt(patch, "all_0")
        assert convert(tmp_path / "set.npz", tmp_path / "out") == 130
    assert copy.stat() == copied
    assert convert(tmp_path / "set.npz", tmp_path / "out", "--no-normalise") == 0  # begun anew, since nothing is made
    assert manifest(tmp_path / "out")["options"]["normalise"] is False


@pytest.mark.parametrize("left", [None, "{}", "not JSON"])
def test_pieces_without_their_plan_are_nobodys(left: str | None, tmp_path: Path, capsys: Any) -> None:
    source, out = texts(tmp_path / "source"), tmp_path / "out"
    stopped(source, out, *PATTERN)
    plan = out / ".convert" / "plan.json"
    plan.unlink() if left is None else plan.write_text(left)
    assert convert(source, out, *PATTERN, "--shard", "2") == 2
    assert "out: holds a conversion of which the plan is lost; name another target" in capsys.readouterr().err
    assert (out / "all_0" / "dataset.h5").exists()


@pytest.mark.parametrize("key", ["inputs", "folder", "left_out"])
def test_a_manifest_that_lacks_something_is_none(key: str, tmp_path: Path, capsys: Any) -> None:
    source, out = texts(tmp_path / "source"), tmp_path / "out"
    assert convert(source, out, *PATTERN) == 0
    (out / "manifest.json").write_text(json.dumps({k: v for k, v in manifest(out).items() if k != key}))
    assert convert(source, out, *PATTERN) == 2
    assert "manifest.json: is no manifest of a conversion" in capsys.readouterr().err


def test_paths_with_spaces_are_printed_as_they_are_typed(tmp_path: Path, capsys: Any) -> None:
    assert convert(texts(tmp_path / "source"), tmp_path / "my set", *PATTERN) == 0
    assert f"data.root='{tmp_path}/my set' " in capsys.readouterr().out


def test_unpacking_and_converting_are_told_apart(capsys: Any) -> None:
    with Progress() as report:
        for done in (0, 300):
            report(done, 300, "MB")
        for done in (20, 40):
            report(done, 40)
    lines = ["unpacking 300 MB", "unpacked 300 of 300 MB", "20 of 40 spectra are there already"]
    assert capsys.readouterr().out.splitlines() == [*lines, "converted 40 of 40 spectra"]
