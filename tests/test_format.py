"""Scores in words."""

import pytest

from specvit.metrics.format import bin_lines, bin_name, rest_line, row_line, summary_line

OLD = {
    "state": "completed",
    "test_loss": 1.0,
    "test_r2": 0.80001,
    "test_mae": 0.38071,
    "test_rows": 2000,
    "label": "log_g",
}
ENDS = {"test_r2_low": 0.78912, "test_r2_high": 0.81134}
INF = float("inf")


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (OLD, "test R² 0.8000, MAE 0.3807 dex (log_g, 2,000 spectra)"),
        ({**OLD, **ENDS}, "test R² 0.8000 [0.789, 0.811], MAE 0.3807 dex (log_g, 2,000 spectra)"),
        ({**OLD, "test_r2": None, "test_r2_low": None}, "test R² undefined, MAE 0.3807 dex (log_g, 2,000 spectra)"),
        ({**OLD, "label": "age", "test_mae": None}, "test R² 0.8000, MAE undefined (age, 2,000 spectra)"),
        ({"test_accuracy": 0.75, "test_rows": 64, "label": "class"}, "test accuracy 0.7500 (64 spectra)"),
        (
            {"test_accuracy": 0.75, "test_accuracy_low": 0.7, "test_accuracy_high": 0.8, "test_rows": 1},
            "test accuracy 0.7500 [0.700, 0.800] (1 spectrum)",
        ),
        (
            {**OLD, **ENDS, "test_r2_log_g": 0.8, "test_mae_log_g": 0.4, "test_r2_log_g_low": 0.7}
            | {"test_r2_T_eff": 0.6, "test_mae_T_eff": 81.0, "test_r2_T_eff_low": 0.55, "test_r2_T_eff_high": 0.65}
            | {"test_r2_M_H": None, "test_mae_M_H": 0.25},
            "test R² 0.8000 [0.789, 0.811], MAE 0.3807 dex (log_g, 2,000 spectra); "
            "R² 0.6000 [0.550, 0.650], MAE 81.0000 K (T_eff); R² undefined, MAE 0.2500 dex (M_H)",
        ),
        ({}, "no test scores on file"),
    ],
)
def test_a_summary_in_one_line(summary: dict, said: str) -> None:
    assert summary_line(summary) == said


def test_further_scores_follow_in_a_second_line() -> None:
    row = {"label": "T_eff", "rows": 50, "r2": 0.5, "mae": 81.62, "rmse": 101.36, "rmse_low": 97.2, "rmse_high": 105.6}
    assert row_line(row) == "R² 0.5000, MAE 81.6200 K (T_eff, 50 spectra)"
    assert rest_line({**row, "slope": float("nan")}) == "RMSE 101.4 [97.2, 106], slope undefined"


@pytest.mark.parametrize(
    ("low", "high", "name"), [(4.0, 6.0, "4 to 6"), (18.0, INF, "≥ 18"), (-INF, 20.5, "< 20.5"), (0.0, 4.0, "0 to 4")]
)
def test_bins_are_named_by_their_edges(low: float, high: float, name: str) -> None:
    assert bin_name(low, high) == name


def test_bins_make_an_aligned_table() -> None:
    row = {
        "label": "log_g",
        "low": 4.0,
        "high": 6.0,
        "rows": 1312,
        "r2": 0.5,
        "r2_low": 0.4,
        "r2_high": 0.6,
        "mae": 0.25,
    }
    lines = bin_lines([row, {**row, "low": 18.0, "high": INF, "rows": 9, "r2": -12.3456, "r2_low": None}], "S/N")
    assert lines == [
        "  S/N     label        spectra  R²                    MAE",
        "  4 to 6  log_g [dex]  1,312    0.500 [0.400, 0.600]  0.25",
        "  ≥ 18    log_g [dex]  9        -12.346               0.25",
    ]
    assert bin_lines([], "mag") == []
    classes = {"label": "class", "low": 0.0, "high": 4.0, "rows": 3, "accuracy": 1 / 3, "balanced_accuracy": 0.5}
    assert bin_lines([classes], "mag")[1].split() == ["0", "to", "4", "class", "3", "0.333", "0.500"]
