"""In which order an epoch visits its rows: a function of (seed, epoch), the same whatever holds the data."""

import numpy as np

from specvit.utils import seeding

BLOCK_ROWS = 1024
WINDOW_BLOCKS = 16


def epoch_order(num_rows: int, *, seed: int, epoch: int, order: str) -> np.ndarray:
    """Return the view rows (N,) of one epoch, each once.

    `global` shuffles all rows. `block` shuffles blocks of neighbouring rows and then the rows within windows of
    some blocks, so that a set beyond memory is read from disk in long pieces.
    """
    rng = seeding.numpy_rng(seed, "order", epoch)
    if order == "global":
        return rng.permutation(num_rows)
    blocks = [np.arange(start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS)]
    shuffled = [blocks[index] for index in rng.permutation(len(blocks))]
    windows = [shuffled[start : start + WINDOW_BLOCKS] for start in range(0, len(shuffled), WINDOW_BLOCKS)]
    return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])
