"""What the user is told about slow files and full memory, and how it is measured."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rewrite_chunked
from toy_data import train_data

from specvit.commands import data as data_cli
from specvit.commands.train import main as train_main
from specvit.data import batches, io_hints
from specvit.data.io_hints import beyond_memory, layout_line, seconds_to_read
from specvit.data.views import Spectra, open_spectra
from specvit.utils.memory import free_memory, room_in

TIME = r"[0-9.e+-]+ s"


def test_a_run_on_chunked_files_says_what_a_step_waits_and_offers_to_convert(
    tiny: list[str], write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = write_set(tmp_path / "chunked", 64)
    rewrite_chunked(path)
    monkeypatch.chdir(tmp_path)
    words = [f"data.file_path={path}", "data.resident=never", "train.epochs=1"]
    assert train_main([*tiny, *words]) == 0
    said = capsys.readouterr().out
    note = rf"read from chunked files \(slow\); .*\nnote: reading the 16 spectra of a step takes {TIME}; "
    assert re.search(note + re.escape(f"`specvit data convert {path} TARGET` makes it contiguous\n"), said)


@pytest.mark.parametrize(
    ("layout", "setting", "said"),
    [
        ("contiguous", "never", 0),
        ("chunked", "auto", 0),
        ("mixed", "never", 1),
    ],
)
def test_only_files_that_are_read_chunk_by_chunk_are_spoken_of(
    layout: str, setting: str, said: int, files: dict[str, list[Path]]
) -> None:
    notes = train_data(open_spectra(files[layout], -1), resident=setting).io_notes(0)
    assert len(notes) == said
    assert all(f"`specvit data convert {files['mixed'][1]} TARGET`" in note for note in notes)


def test_several_chunked_files_are_one_command(write_set: Any, tmp_path: Path) -> None:
    paths = [write_set(tmp_path / f"a set {i}", 20, seed=i) for i in range(3)]
    for path in paths[1:]:
        rewrite_chunked(path)
    (note,) = train_data(open_spectra(paths, -1), resident="never").io_notes(1)
    offer = f"`specvit data convert '{paths[1]}' ... FOLDER` makes it and the other 1 chunked files contiguous"
    assert note.endswith(offer)


class Slow(Spectra):
    """Spectra of which each takes 10 ms."""

    def gather(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take as long as a slow disk."""
        time.sleep(0.01 * len(index_B))
        return super().gather(index_B)


def test_a_cost_is_measured_and_where_it_is_high_reckoned_from_few_rows(
    spectra: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, rows = Slow(spectra.shards, spectra.rows_N), np.arange(50)
    assert 0.5 <= seconds_to_read(slow, rows) < 1.0
    monkeypatch.setattr(io_hints, "PATIENCE_S", 0.03)
    started = time.perf_counter()
    assert 0.5 <= seconds_to_read(slow, rows) < 1.0
    assert time.perf_counter() - started < 0.3


@pytest.mark.parametrize(
    ("layout", "says"), [("contiguous", "contiguous: they are memory-mapped"), ("chunked", "chunked")]
)
def test_inspect_says_how_arrays_lie_and_what_that_costs(
    layout: str, says: str, files: dict[str, list[Path]], capsys: Any
) -> None:
    (path,) = files[layout]
    assert data_cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"  arrays are {says}" in shown
    cost = rf"reading 80 random rows takes {TIME}; `specvit data convert {re.escape(str(path))} TARGET` makes it"
    assert bool(re.search(cost, shown)) == (layout == "chunked")


def test_a_file_that_cannot_be_read_has_no_cost(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("nothing")
    assert layout_line(tmp_path / "a.h5") == ""


def test_a_set_beyond_free_memory_in_random_order_is_pointed_to_block_order(
    spectra: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * 4 * 80 * 256
    assert spectra.num_bytes == size
    assert beyond_memory(spectra, size, "global") == beyond_memory(spectra, 0, "block") == []
    monkeypatch.setattr(batches, "free_memory", lambda: size - 1)
    (note,) = train_data(spectra).io_notes(0)
    assert "do not fit into 0.0 GB of free memory" in note
    assert note.endswith("; data.order=block (another run) reads long pieces")
    assert train_data(spectra, order="block").io_notes(0) == []


# memory


def test_free_memory_is_some_but_not_more_than_the_machine_has() -> None:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 2**20 < free_memory() <= 1024 * int(facts["MemTotal"].split()[0])


@pytest.fixture
def group(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a control group's files with a limit."""

    def make(limit: str) -> Path:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("900\n")
        (tmp_path / "memory.stat").write_text("anon 300\nfile 600\nactive_file 200\ninactive_file 350\n")
        return tmp_path

    return make


def test_pages_of_files_leave_room_in_a_control_group(group: Callable[[str], Path], tmp_path: Path) -> None:
    assert room_in(group("1000")) == 1000 - 900 + 550
    assert room_in(group("max")) == float("inf")
    assert room_in(tmp_path / "nowhere") == float("inf")
