"""Scores over a whole split, in label units. Legend: N rows, K labels, C classes.

Metric names are flat and the same everywhere: `r2`, `mae`, `rmse`, `bias`, `p90`, `slope`, `mae_norm`, `accuracy`,
`balanced_accuracy`, with `train_`, `val_` or `test_` before them. With several labels the plain name is the first
label's, and each label has its own as `r2_T_eff`. Formulas and units: docs/scores.md.
"""

from collections.abc import Sequence

import numpy as np


def regression_scores(true_N: np.ndarray, predicted_N: np.ndarray, *, scale: float = 1.0) -> dict[str, float]:
    """Return the scores of one label, sums over rows divided by their number.

    `r2` = 1 - SSE/SST about the mean of these rows; `mae`, `rmse`, median `bias` and `p90`, 90 % of |error|, in
    label units; `slope` of predicted on true; `mae_norm` = mae / `scale`, the training scaler's. A constant label has
    no r2 and no slope (NaN).
    """
    true_N, predicted_N = np.asarray(true_N, np.float64), np.asarray(predicted_N, np.float64)
    error_N = predicted_N - true_N
    centred_N = true_N - true_N.mean()
    total = float(centred_N @ centred_N) if np.ptp(true_N) > 0 else 0.0
    return {
        "r2": 1.0 - float(error_N @ error_N) / total if total > 0 else float("nan"),
        "mae": float(np.abs(error_N).mean()),
        "rmse": float(np.sqrt(np.square(error_N).mean())),
        "bias": float(np.median(error_N)),
        "p90": float(np.percentile(np.abs(error_N), 90)),
        "slope": float(centred_N @ predicted_N) / total if total > 0 else float("nan"),
        "mae_norm": float(np.abs(error_N).mean()) / scale,
    }


def all_label_scores(
    true_NK: np.ndarray, predicted_NK: np.ndarray, names: Sequence[str], scales: Sequence[float]
) -> dict[str, float]:
    """Return the scores of the first label under plain names and, if there are several, of each as `r2_NAME`."""
    scores: dict[str, float] = {}
    for k, name in enumerate(names):
        of_label = regression_scores(true_NK[:, k], predicted_NK[:, k], scale=scales[k])
        if k == 0:
            scores.update(of_label)
        if len(names) > 1:
            scores.update({f"{metric}_{name}": value for metric, value in of_label.items()})
    return scores


def accuracy(true_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Return the share of rows whose class is right."""
    return float((true_N == predicted_N).mean())


def class_scores(true_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Return the scores of class numbers: `accuracy`, and `balanced_accuracy`, the mean recall over true classes."""
    classes_C, number_N = np.unique(true_N, return_inverse=True)
    right_C = np.bincount(number_N, weights=true_N == predicted_N, minlength=len(classes_C))
    recall_C = right_C / np.bincount(number_N)
    return {"accuracy": accuracy(true_N, predicted_N), "balanced_accuracy": float(recall_C.mean())}


def confusion_matrix(true_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how many rows of each true class (row) were given each class (column), (C, C), int64."""
    pairs_N = true_N.astype(np.int64) * num_classes + predicted_N.astype(np.int64)
    return np.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)
