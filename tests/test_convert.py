"""`specvit data convert`: what it writes is what a run reads from the source, and it is there whole or not at all."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import array, cut, rewrite_chunked, table
from mounts import small_disk

from specvit.commands import data as data_cli
from specvit.convert import rewrite as converting
from specvit.convert.rewrite import convert, plan
from specvit.data.shards import open_shard, read_labels
from specvit.data.views import open_spectra
from specvit.utils.quantities import ERROR, FLUX

ROWS, PIXELS = 40, 256


def stored(dtype: str, **layout: Any) -> Callable[[Path], None]:
    """Return a change of a file to another type and chunks."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name in (FLUX, ERROR):
                value = file[name][()]
                del file[name]
                file.create_dataset(name, data=value, dtype=dtype, **layout)

    return change


LAYOUTS = {
    "compressed chunks": rewrite_chunked,
    "chunks of one row": stored("<f4", chunks=(1, PIXELS)),
    "chunks of one pixel": stored("<f8", chunks=(ROWS, 1), compression="lzf"),
    "float64": stored("<f8"),
    "float16": stored("<f2", chunks=True),
    "the other byte order": stored(">f4"),
    "as it should be": lambda path: None,
}


def silent(*progress: object) -> None:
    """Report nothing."""


def refusal(sources: list[Path], target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence with which the command ends."""
    assert data_cli.main(["convert", *map(str, sources), str(target)]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("specvit: ") and sentence.count("\n") == 1
    return sentence


@pytest.mark.parametrize("pieces", [2**26, 2**13])
def test_a_converted_file_is_mapped_and_holds_what_a_run_reads_from_the_source(
    pieces: int, write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "PIECE_BYTES", pieces)
    columns = {"age": np.arange(ROWS), "kind": [f"star {i}" for i in range(ROWS)]}
    for layout, change in LAYOUTS.items():
        path, target = write_set(tmp_path / layout, ROWS, PIXELS, **columns), tmp_path / f"{layout}.h5"
        change(path)
        assert data_cli.main(["convert", str(path), str(target)]) == 0, layout
        source, made = open_spectra([path], -1), open_spectra([target], -1)
        assert made.contiguous, layout
        assert {made.shards[0].flux.dtype, made.shards[0].error.dtype} == {np.dtype("<f4")}, layout
        index_B = np.arange(ROWS)
        for expected_BP, found_BP in zip(source.gather(index_B), made.gather(index_B), strict=True):
            assert found_BP.tobytes() == expected_BP.tobytes(), layout
        assert made.manifest(("log_g", "age")) == source.manifest(("log_g", "age")), layout
        assert read_labels(open_shard(target)).equals(read_labels(open_shard(path))), layout


def test_a_number_beyond_float32_is_infinite_in_the_source_and_masked_in_the_target(
    write_set: Any, tmp_path: Path
) -> None:
    path = write_set(tmp_path / "source", ROWS, PIXELS)
    array(FLUX, lambda flux: np.where(flux < flux[7, 9], 1e300, flux.astype(np.float64)))(path)
    (conversion,) = plan([path], tmp_path / "target.h5")
    convert(conversion, silent)
    with np.errstate(over="ignore"):
        expected_BP, _ = open_spectra([path], -1).gather(np.arange(ROWS))
    found_BP, _ = open_spectra([tmp_path / "target.h5"], -1).gather(np.arange(ROWS))
    assert np.isinf(expected_BP).any()
    np.testing.assert_array_equal(found_BP, np.where(np.isinf(expected_BP), np.nan, expected_BP))


def test_memory_is_bounded_by_the_size_of_a_piece(
    write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set(tmp_path / "source", 2000, 2048)
    stored("<f8", chunks=(64, 2048))(path)
    monkeypatch.setattr(converting, "PIECE_BYTES", 2**21)
    (conversion,) = plan([path], tmp_path / "target.h5")
    tracemalloc.start()
    convert(conversion, silent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23 < path.stat().st_size / 4


def test_several_files_keep_their_names_in_a_folder(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    sources = [write_set(tmp_path / f"train_{i}", 8, seed=i) for i in range(2)]
    other = (tmp_path / "other.h5",)
    write_set(tmp_path / "a", 8, seed=3).rename(other[0])
    assert data_cli.main(["convert", *map(str, (*sources, *other)), str(tmp_path / "out")]) == 0
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.h5"))
    assert made == ["other.h5", "train_0/dataset.h5", "train_1/dataset.h5"]
    shown = capsys.readouterr().out
    assert f"writing {tmp_path / 'out' / 'train_1' / 'dataset.h5'} " in shown
    assert "converted 3 files" in shown
    flux_BP, _ = open_spectra([tmp_path / "out" / "train_1" / "dataset.h5"], -1).gather(np.arange(8))
    np.testing.assert_array_equal(flux_BP, open_spectra([sources[1]], -1).gather(np.arange(8))[0])


def test_one_file_goes_into_a_folder_that_is_there_under_the_same_name_as_of_several(
    write_set: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (conversion,) = plan([write_set(tmp_path / "train_0", 8)], tmp_path / "out")
    assert conversion.target == tmp_path / "out" / "train_0" / "dataset.h5"


def test_what_is_not_carried_over_is_named(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    path = write_set(tmp_path, 8)
    with h5py.File(path, "r+") as file:
        file["dataset/arrays/mask/value"] = np.zeros((8, 3))
        file["notes"] = "from the survey"
    assert data_cli.main(["convert", str(path), str(tmp_path / "target.h5")]) == 0
    assert f"{path}: left out, not in the layout: dataset/arrays/mask/value, notes\n" in capsys.readouterr().out


def test_progress_is_told_about_ten_times_and_ends_with_all(
    write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "PIECE_BYTES", 2**11)
    (conversion,) = plan([write_set(tmp_path, ROWS, PIXELS)], tmp_path / "target.h5")
    told: list[tuple[int, int]] = []
    convert(conversion, lambda target, done, total: told.append((done, total)))
    assert len(told) == 10
    assert told[-1] == (8 * ROWS * PIXELS, 8 * ROWS * PIXELS)


# refusals


def truncated(path: Path) -> None:
    rewrite_chunked(path)
    cut(0.5)(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is not there; check the path."),
    "truncated, contiguous": (cut(0.5), "is truncated; copy or make it again."),
    "truncated, chunked": (truncated, "is truncated; copy or make it again."),
    "no spectra file": (lambda path: path.write_text("nothing"), "is not a readable HDF5 file"),
    "no flux": (array(FLUX, lambda flux: None), f"{FLUX}: is missing"),
    "no labels": (table(lambda labels: None), "has no label table"),
    "labels of other length": (table(lambda labels: labels[:-1]), "has 39 label rows but 40 spectra"),
}


def test_a_source_that_cannot_be_read_is_refused_before_anything_is_written(
    write_set: Any, tmp_path: Path, capsys: Any
) -> None:
    sound, wrong = write_set(tmp_path / "sound", 8), []
    for fault, (damage, words) in REFUSED.items():
        bad = write_set(tmp_path / fault, ROWS, PIXELS)
        damage(bad)
        sentence = refusal([sound, bad], tmp_path / "out", capsys)
        if str(bad) not in sentence or words not in sentence or (tmp_path / "out").exists():
            wrong.append((fault, sentence))
    assert not wrong


def test_a_target_that_is_there_is_left_alone(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    path, target = write_set(tmp_path, 8), tmp_path / "target.h5"
    target.write_text("mine")
    assert "target.h5: already exists; remove it first" in refusal([path], target, capsys)
    assert target.read_text() == "mine"
    (tmp_path / "link.h5").symlink_to(path)
    for same in (path, tmp_path / "link.h5"):
        assert "is source and target at once; name another target." in refusal([path], same, capsys)


def test_two_sources_do_not_become_one_target(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    sources = [write_set(tmp_path / name / "set", 8) for name in ("a", "b")]
    assert "out/set/dataset.h5: is the target of two sources" in refusal(sources, tmp_path / "out", capsys)


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    write_set: Any, tmp_path: Path, capsys: Any
) -> None:
    path = write_set(tmp_path / "source", 2000, PIXELS)
    with small_disk(tmp_path / "disk", 4096) as disk:
        sentence = refusal([path], disk / "new" / "target.h5", capsys)
        assert "target.h5: 0.01 GB are needed but 0.00 GB are free; free some space there" in sentence
        assert list(disk.iterdir()) == []


def test_a_chunk_that_cannot_be_unpacked_leaves_no_target(write_set: Any, tmp_path: Path, capsys: Any) -> None:
    path = write_set(tmp_path / "source", ROWS, PIXELS)
    rewrite_chunked(path)
    with h5py.File(path) as file:
        chunk = file[ERROR].id.get_chunk_info(9)
    with open(path, "r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(bytes(chunk.size))
    (tmp_path / "out").mkdir()
    assert str(path) in refusal([path], tmp_path / "out" / "target.h5", capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_conversion_that_is_stopped_leaves_nothing_and_the_next_one_sweeps_up_after_a_kill(
    write_set: Any, tmp_path: Path
) -> None:
    path, target = write_set(tmp_path / "source", 8), tmp_path / "out" / "target.h5"
    (conversion,) = plan([path], target)

    def stop(*progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(conversion, stop)
    assert list(target.parent.iterdir()) == []
    for name in (".target.h5.123.tmp", ".other.h5.123.tmp"):
        (target.parent / name).touch()
    convert(conversion, silent)
    assert sorted(file.name for file in target.parent.iterdir()) == [".other.h5.123.tmp", "target.h5"]
