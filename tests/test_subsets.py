"""Which rows are chosen, and in which order an epoch visits them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specvit.data.views import BLOCK_ROWS, WINDOW_BLOCKS, epoch_order, select_rows


@given(st.integers(1, 300), st.data(), st.sampled_from(["first", "random"]), st.integers(0, 3))
def test_subsets_nest(total: int, data: Any, subset: str, seed: int) -> None:
    larger = data.draw(st.integers(1, total))
    smaller = data.draw(st.integers(1, larger))
    few, many = (select_rows(total, n, subset=subset, seed=seed, where="") for n in (smaller, larger))
    assert (len(few), len(many)) == (smaller, larger)
    assert set(few) <= set(many) <= set(range(total))
    assert (np.diff(many) > 0).all()


def test_first_is_the_start_and_random_is_another_choice_a_seed() -> None:
    assert select_rows(100, 9, subset="first", seed=5, where="").tolist() == list(range(9))
    chosen = [select_rows(100, 30, subset="random", seed=seed, where="").tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    assert chosen[0] != list(range(30))
    assert select_rows(20, 5, subset="random", seed=0, where="").tolist() == [0, 8, 11, 14, 17]  # for good


@pytest.mark.parametrize("subset", ["first", "random"])
def test_minus_one_is_every_row(subset: str) -> None:
    assert select_rows(77, -1, subset=subset, seed=3, where="").tolist() == list(range(77))


@given(st.integers(1, 3 * BLOCK_ROWS), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["global", "block"]))
def test_an_epoch_visits_each_row_once(rows: int, seed: int, epoch: int, order: str) -> None:
    assert np.array_equal(np.sort(epoch_order(rows, seed=seed, epoch=epoch, order=order)), np.arange(rows))


@pytest.mark.parametrize("order", ["global", "block"])
def test_every_epoch_and_seed_has_its_own_order(order: str) -> None:
    orders = [epoch_order(500, seed=s, epoch=e, order=order).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] not in orders[1:3]
    assert sorted(orders[0]) not in orders


def test_block_order_reads_whole_blocks_of_neighbouring_rows_a_window() -> None:
    window = WINDOW_BLOCKS * BLOCK_ROWS
    order_N = epoch_order(3 * window, seed=0, epoch=0, order="block")
    seen = [set(order_N[start : start + window] // BLOCK_ROWS) for start in range(0, 3 * window, window)]
    assert [len(blocks) for blocks in seen] == [WINDOW_BLOCKS] * 3
    assert seen[0] != set(range(WINDOW_BLOCKS))
    assert len(set(order_N[:64] // BLOCK_ROWS)) > 8  # rows are mixed within the window
