"""What a begun conversion takes as the same request: sources, options and work files have to be as they were."""

import json
from pathlib import Path
from typing import Any

import convert_inputs as make
import numpy as np
import pytest
from convert_inputs import COARSE, FLUX_NX, PATTERN, SNR, STARS, convert, interrupt, refusal, texts

from specvit.convert import conversion
from specvit.convert.progress import Progress


def convert_stars(source: Path | str, out: Path, *options: str) -> int:
    """Convert with errors at S/N 50."""
    return convert(source, out, *SNR, *options)


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def bad_row(path: Path) -> Path:
    """Write a table of stars of which the fourth has too many pixels that are not a number."""
    flux_NX = FLUX_NX[:, ::2].copy()
    flux_NX[3, 1000:2000] = np.nan
    np.savez(path, wave=COARSE, flux=flux_NX, T_eff=4000 + np.arange(5))
    return path


def stopped(source: Path | str, out: Path, *options: str) -> None:
    """Begin a conversion and stop it by Ctrl-C before its second shard."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "all_1")
        assert convert_stars(source, out, "--shard", "2", *options) == 130


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
    assert convert_stars(folder, out, "--shard", "2") == 2
    assert "was begun with another content of bosz2024_wave_r5000.txt" in capsys.readouterr().err
    np.savetxt(grid, COARSE)
    assert convert_stars(folder, out, "--shard", "2") == 0
    assert manifest(out)["inputs"]["source_wave"]["file"] == grid.name


def test_other_errors_or_masks_of_equal_size_are_another_content(tmp_path: Path, capsys: Any) -> None:
    folder = texts(tmp_path / "source")
    for star in STARS:
        np.savez(folder / f"{make.name_of(star)}_own.npz", sigma=np.ones(len(COARSE)), mask=np.zeros(len(COARSE), int))
    beside = folder / f"{make.name_of(STARS[-1])}_own.npz"
    for option in ("--source-error", "--source-mask"):
        out = tmp_path / option
        own = [*PATTERN, option, "{name}_own.npz"]
        stopped(folder, out, *own)
        size = beside.stat().st_size
        np.savez(beside, sigma=2 * np.ones(len(COARSE)), mask=np.ones(len(COARSE), int))
        assert beside.stat().st_size == size
        assert convert_stars(folder, out, "--shard", "2", *own) == 2
        assert "was begun with another content of {name}_own.npz" in capsys.readouterr().err
        np.savez(beside, sigma=np.ones(len(COARSE)), mask=np.zeros(len(COARSE), int))


def test_sources_spelled_otherwise_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    stopped("source", tmp_path / "out", *PATTERN)
    assert convert_stars(tmp_path / "source", tmp_path / "out", *PATTERN, "--shard", "2") == 0
    assert convert_stars("source", tmp_path / "whole", *PATTERN, "--shard", "2") == 0
    found = manifest(tmp_path / "out")
    assert found == manifest(tmp_path / "whole")
    assert all(len(source["sha256"]) == 64 for source in found["sources"])


def test_leaving_bad_ones_out_is_part_of_what_was_asked(tmp_path: Path, capsys: Any) -> None:
    source, out = bad_row(tmp_path / "set.npz"), tmp_path / "out"
    assert convert_stars(source, out, "--shard", "2") == 2  # its second shard has the bad one
    assert convert_stars(source, out, "--shard", "2", "--skip-bad") == 0
    assert manifest(out)["options"]["skip_bad"]
    assert convert_stars(source, out, "--shard", "2", "--skip-bad") == 0
    capsys.readouterr()
    assert convert_stars(source, out, "--shard", "2") == 2
    assert "out: was made by --skip-bad, which left out 1 spectra; type the same command" in capsys.readouterr().err


def test_leaving_none_out_makes_no_difference(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX[:, ::2], T_eff=4000 + np.arange(5))
    source = tmp_path / "set.npz"
    stopped(source, tmp_path / "out", "--skip-bad")
    assert convert_stars(source, tmp_path / "out", "--shard", "2") == 2
    assert "was begun with --skip-bad; this command has no --skip-bad" in capsys.readouterr().err
    assert convert_stars(source, tmp_path / "out", "--shard", "2", "--skip-bad") == 0
    assert convert_stars(source, tmp_path / "out", "--shard", "2") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_one_of_an_older_specvit_is_finished_unless_its_flux_lacks_the_mark(tmp_path: Path, capsys: Any) -> None:
    np.savez(
        tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX[:, ::2], error=FLUX_NX[:, ::2] / 50, T_eff=4000 + np.arange(5)
    )
    for name, options in (("simulated", SNR), ("own", [])):
        asked = (tmp_path / "set.npz", tmp_path / name, *options)
        assert convert(*asked) == 0
        (tmp_path / name / "manifest.json").write_text(json.dumps({**manifest(tmp_path / name), "format": 3}))
        assert convert(*asked) == (2 if name == "own" else 0)
    shown = capsys.readouterr()
    assert "simulated is finished: nothing to do" in shown.out
    assert "own: was made by an older specvit, which did not mark observed flux as such; train on it with" in shown.err
    assert shown.err.endswith("data.observed=true, or name another target, or remove it first.\n")


def test_what_is_unpacked_stays_for_the_next_time(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "set.npz", wave=COARSE, flux=FLUX_NX[:, ::2], T_eff=4000 + np.arange(5))
    copy = tmp_path / "out" / ".convert" / "unpacked" / "0.h5"
    with monkeypatch.context() as patch:
        interrupt(patch, "all_0")
        assert convert_stars(tmp_path / "set.npz", tmp_path / "out") == 130
    assert "unpacking 1 MB\nunpacked 1 of 1 MB\n" in capsys.readouterr().out
    copied = copy.stat()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "unpack", None)
        interrupt(patch, "all_0")
        assert convert_stars(tmp_path / "set.npz", tmp_path / "out") == 130
    assert copy.stat() == copied
    assert (
        convert_stars(tmp_path / "set.npz", tmp_path / "out", "--no-normalise") == 0
    )  # begun anew, since nothing is made
    assert manifest(tmp_path / "out")["options"]["normalise"] is False


def test_pieces_without_their_plan_are_nobodys(tmp_path: Path, capsys: Any) -> None:
    source, out = texts(tmp_path / "source"), tmp_path / "out"
    stopped(source, out, *PATTERN)
    plan = out / ".convert" / "plan.json"
    for content in ("{}", "not JSON", None):
        plan.unlink() if content is None else plan.write_text(content)
        sentence = refusal(capsys, source, out, *SNR, *PATTERN, "--shard", "2")
        assert "out: holds a conversion of which the plan is lost; name another target" in sentence, content
        assert (out / "all_0" / "dataset.h5").exists()


def test_a_manifest_that_lacks_something_is_none(tmp_path: Path, capsys: Any) -> None:
    source, out = texts(tmp_path / "source"), tmp_path / "out"
    assert convert_stars(source, out, *PATTERN) == 0
    facts = manifest(out)
    for key in ("inputs", "folder", "left_out"):
        (out / "manifest.json").write_text(json.dumps({k: v for k, v in facts.items() if k != key}))
        assert "manifest.json: is not a manifest of a conversion" in refusal(capsys, source, out, *SNR, *PATTERN), key


def test_paths_with_spaces_are_printed_as_they_are_typed(tmp_path: Path, capsys: Any) -> None:
    assert convert_stars(texts(tmp_path / "source"), tmp_path / "my set", *PATTERN) == 0
    assert f"data.root='{tmp_path}/my set' " in capsys.readouterr().out


def test_unpacking_and_converting_are_told_apart(capsys: Any) -> None:
    with Progress() as report:
        for done in (0, 300):
            report(done, 300, "MB")
        for done in (20, 40):
            report(done, 40)
    lines = ["unpacking 300 MB", "unpacked 300 of 300 MB", "20 of 40 spectra are there already"]
    assert capsys.readouterr().out.splitlines() == [*lines, "converted 40 of 40 spectra"]
