"""Ridge by kernels for a few thousand rows: what is linear in some columns. N rows, K targets, n rows of a half."""

from collections.abc import Sequence

import numpy as np

PENALTIES = np.logspace(-5, 3, 17)
"""Of the mean eigenvalue of the kernel; generalised cross-validation chooses one for each fit."""


def cross_fitted(blocks: Sequence[np.ndarray], target_NK: np.ndarray) -> np.ndarray:
    """Return predictions (N, K) of each row by ridge on the other half of the rows, drawn at random with a fixed seed.

    `blocks` are columns (N, any number); each is standardised and counts alike as a whole. NaN is a column's mean.
    """
    kernel_NN = sum(_kernel(block) for block in blocks)
    assert isinstance(kernel_NN, np.ndarray)
    halves = np.array_split(np.random.default_rng(0).permutation(len(target_NK)), 2)
    predicted_NK = np.empty(target_NK.shape)
    for one, other in (halves, halves[::-1]):
        mean_K = target_NK[one].mean(axis=0)
        coefficients_nK = _fit(kernel_NN[np.ix_(one, one)], target_NK[one] - mean_K)
        predicted_NK[other] = kernel_NN[np.ix_(other, one)] @ coefficients_nK + mean_K
    return predicted_NK


def r2(blocks: Sequence[np.ndarray], target_NK: np.ndarray) -> np.ndarray:
    """Return R² (K,) of `cross_fitted` predictions; that of a constant target is NaN."""
    residual_NK = target_NK - cross_fitted(blocks, target_NK)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - residual_NK.var(axis=0) / target_NK.var(axis=0)


def auc(blocks: Sequence[np.ndarray], is_other_N: np.ndarray) -> tuple[float, float]:
    """Return the AUC with which ridge tells two sets of rows apart, and its standard error if they are alike."""
    score_N = cross_fitted(blocks, is_other_N[:, None].astype(float))[:, 0]
    ranks_N = score_N.argsort().argsort() + 1
    others, rest = int(is_other_N.sum()), int((~is_other_N).sum())
    area = (ranks_N[is_other_N].sum() - others * (others + 1) / 2) / (others * rest)
    return float(area), float(np.sqrt((others + rest + 1) / (12 * others * rest)))


def column_means(values_NP: np.ndarray) -> np.ndarray:
    """Return the mean of each column (P,) without its NaN; 0 where nothing else is in it."""
    return np.nansum(values_NP, axis=0, dtype=np.float64) / np.isfinite(values_NP).sum(axis=0).clip(min=1)


def _kernel(block: np.ndarray) -> np.ndarray:
    columns = block - column_means(block)
    spread = np.sqrt(column_means(np.square(columns)))
    columns = np.nan_to_num(columns / np.where(spread > 0, spread, 1.0), copy=False)
    return columns @ columns.T / columns.shape[1]


def _fit(kernel_nn: np.ndarray, target_nK: np.ndarray) -> np.ndarray:
    """Return dual coefficients (n, K) at the penalty of the least generalised cross-validation error."""
    values_n, vectors_nn = np.linalg.eigh(kernel_nn)
    values_n, rotated_nK = values_n.clip(min=0), vectors_nn.T @ target_nK
    best: tuple[float, np.ndarray] | None = None
    for penalty in PENALTIES * max(values_n.mean(), 1e-12):
        coefficients_nK, left = rotated_nK / (values_n + penalty)[:, None], penalty / (values_n + penalty)
        error = float(np.square(penalty * coefficients_nK).mean() / left.mean() ** 2)
        if best is None or error < best[0]:
            best = (error, vectors_nn @ coefficients_nK)
    assert best is not None
    return best[1]
