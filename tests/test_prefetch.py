"""Reading ahead: which bytes it reads, that no batch changes by it, and what becomes of a file that ends too early."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_data import CPU, STEP_ROWS, train_data

from specvit.config.schema import DataConfig
from specvit.data import batches
from specvit.data.batches import SpectraStore
from specvit.data.prefetch import STRETCH_ROWS, Prefetcher, byte_ranges
from specvit.data.shards import write_shard
from specvit.data.views import Spectra, epoch_order, open_spectra
from specvit.utils.errors import DataError

PIXELS = 8
COUNTS = (STRETCH_ROWS["block"] + 3000, STRETCH_ROWS["block"] + 501)
SEED = 3
"""That of `train_data`."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, stars: Any) -> list[Path]:
    """Return two files with more rows than two windows hold."""
    folder = tmp_path_factory.mktemp("long")
    made = [folder / f"{count}.h5" for count in COUNTS]
    for seed, (path, count) in enumerate(zip(made, COUNTS, strict=True)):
        write_shard(path, **stars(count, PIXELS, seed))
    return made


def bytes_read() -> int:
    """Return how many bytes this process has asked the kernel to read into its buffers; mapped pages do not count."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def size_of(rows: int) -> int:
    return 8 * rows * PIXELS


@given(st.data())
def test_the_byte_ranges_of_rows_hold_their_flux_and_error(paths: list[Path], data: Any) -> None:
    view = open_spectra(paths, sum(COUNTS) // 2, subset="random", seed=1)
    rows = data.draw(st.sets(st.integers(0, len(view) - 1), min_size=1, max_size=20))
    start = data.draw(st.integers(0, len(view) - 60))
    index_B = np.array(sorted(rows | set(range(start, start + 50))))
    found: dict[str, bytes] = {}
    for path, ranges in byte_ranges(view, index_B).items():
        content = path.read_bytes()
        half = len(ranges) // 2  # all of the flux, then all of the error
        for name, part in (("flux", ranges[:half]), ("error", ranges[half:])):
            found[name] = found.get(name, b"") + b"".join(content[offset : offset + size] for offset, size in part)
    flux_BP, error_BP = view.gather(index_B)
    assert found == {"flux": flux_BP.tobytes(), "error": error_BP.tobytes()}


def test_neighbouring_rows_are_one_range_of_each_array(paths: list[Path]) -> None:
    view = open_spectra(paths, -1)
    row = size_of(1) // 2
    ranges = byte_ranges(view, np.array([3, 4, 5, COUNTS[0] - 1, COUNTS[0]]))
    assert [[size for _, size in ranges[path]] for path in paths] == [[3 * row, row] * 2, [row] * 2]


@pytest.mark.parametrize("subset", ["first", "random"])
@pytest.mark.parametrize("order", ["block", "global"])
def test_batches_are_the_same_with_reading_ahead_and_in_any_sequence(
    order: str, subset: str, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "free_memory", lambda: 0)
    view = open_spectra(paths, 2 * STRETCH_ROWS["block"] + 7, subset=subset)
    data = train_data(view, order=order)
    steps = data.steps_per_epoch
    for step in (0, 1, STRETCH_ROWS[order] // STEP_ROWS, STRETCH_ROWS[order] // STEP_ROWS - 1, steps - 1, steps, 2, 7):
        epoch, within = divmod(step, steps)
        order_N = epoch_order(len(view), seed=SEED, epoch=epoch, order=order)
        index_B = order_N[within * STEP_ROWS : (within + 1) * STEP_ROWS]
        batch = data.batch(step)
        assert batch.target.tolist() == index_B.tolist()
        assert torch.equal(batch.flux_BP, SpectraStore(view, DataConfig(), CPU).gather(index_B)[0])
    data.close()


@pytest.mark.parametrize(
    ("order", "free", "ahead"), [("block", 2**60, True), ("global", 0, True), ("global", 2**60, False)]
)
def test_mapped_rows_are_read_ahead_in_block_order_and_where_they_do_not_fit_into_memory(
    order: str, free: int, ahead: bool, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "free_memory", lambda: free)
    data = train_data(open_spectra(paths, -1), order=order)
    before = bytes_read()
    data.batch(0)
    grown = bytes_read() - before
    data.close()  # else it would read into the next test's count
    assert grown >= size_of(STRETCH_ROWS[order]) if ahead else grown < size_of(STRETCH_ROWS[order]) / 2


def test_a_stretch_is_read_once_and_the_next_one_beside_it(paths: list[Path]) -> None:
    view = open_spectra(paths, -1)
    stretch, last = STRETCH_ROWS["block"], sum(COUNTS)
    reader = Prefetcher(view, order="block", seed=0)
    before = bytes_read()
    places = [(0, 0), (0, stretch - 20), (0, stretch - 10), (0, stretch + 5), (0, 2 * stretch), (0, last - 16), (1, 0)]
    for epoch, first in places:
        reader.reach(epoch, first, first + 16)
    reader.reach(1, stretch, stretch + 16)
    grown = bytes_read() - before
    once = size_of(last + 2 * stretch)
    assert once <= grown < once + size_of(2 * stretch)  # what follows is perhaps under way


def test_a_file_that_ends_too_early_is_one_sentence_before_its_rows_are_touched(stars: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, **stars(4000, 256))
    data = train_data(open_spectra([path], -1), order="block")
    data.store.gather(np.arange(3))  # mapped: from here on the kernel would kill the process at a missing page
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"a\.h5: is truncated; copy or make it again\."):
        data.batch(0)


def test_a_file_that_has_gone_is_one_sentence(stars: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, **stars(40, 16))
    reader = Prefetcher(open_spectra([path], -1), order="global", seed=0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.h5: is "):
        reader.reach(0, 0, 16)


def test_few_rows_are_one_stretch_that_every_epoch_reads(spectra: Spectra) -> None:
    reader = Prefetcher(spectra, order="block", seed=0)
    size, before = spectra.num_bytes, bytes_read()
    for epoch in range(3):
        for first in range(0, 80, 16):
            reader.reach(epoch, first, first + 16)
    assert 3 * size <= bytes_read() - before < 5 * size
