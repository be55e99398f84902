"""Figures of a study in which two settings are the same map and one exploded: each stays readable."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from specvit.analysis.ablation_report import ablation_of
from specvit.analysis.figures import draw_ablation, draw_curves
from specvit.analysis.records import Runs, run_row, run_table
from specvit.config.schema import Config
from specvit.study.results import Outcome


def rows_of(
    name: str, rate: float, losses: Sequence[float], scores: Sequence[float], test_r2: float
) -> list[dict[str, Any]]:
    """Return the runs of two seeds with the same curves."""
    rows = [
        {"epoch": n, "step": 10 * n, "train_loss": loss, "val_r2": score}
        for n, (loss, score) in enumerate(zip(losses, scores, strict=True), 1)
    ]
    outcome = Outcome({"test_r2": test_r2, "best_epoch": len(rows)}, rows, [])
    factors = {"model/tokenizer": name, "opt.lr": rate}
    return [run_row(f"{name}{rate}{seed}", factors, seed, "completed", Config(), outcome) for seed in (1, 2)]


@pytest.fixture
def records() -> Runs:
    good = [1.0, 0.8, 0.7], [0.1, 0.3, 0.4], 0.4
    rows = [
        *rows_of("c1d", 0.006062205196547231, *good),
        *rows_of("sw", 0.006062205196547231, *good),
        *rows_of("c1d", 1.0, [1.0, 5600.0, 1.0], [0.01, -49.0, 0.05], -28.0),
    ]
    return run_table(rows)


def test_curves_on_each_other_have_other_strokes_and_the_legend_has_the_keys(records: Runs) -> None:
    figure = draw_curves(records)
    score, loss = figure.axes
    named = {line.get_label(): line for line in score.lines if not line.get_label().startswith("_")}
    assert list(named) == [
        "model/tokenizer=c1d, opt.lr=0.00606",
        "model/tokenizer=sw, opt.lr=0.00606",
        "model/tokenizer=c1d, opt.lr=1",
    ]
    c1d, sw, exploded = named.values()
    np.testing.assert_array_equal(c1d.get_ydata(), sw.get_ydata())
    assert c1d.get_linestyle() == "-" and sw.get_linestyle() == "--" and sw.get_linewidth() < c1d.get_linewidth()
    np.testing.assert_array_equal(exploded.get_ydata(), [0.01, -1.0, 0.05])
    assert -1.2 < score.get_ylim()[0] < -1 and score.get_ylabel() == "validation R², ▼ below -1"
    assert (loss.get_yscale(), score.get_yscale(), loss.get_legend(), score.get_legend()) == (
        "log",
        "linear",
        None,
        None,
    )
    figure.canvas.draw()
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(axis.get_window_extent()) for axis in figure.axes)


def test_an_outlier_leaves_the_other_bars_their_length(records: Runs) -> None:
    figure = draw_ablation(ablation_of(records, "test_r2", "toy", {}, search=False))
    bars, shares = figure.axes
    low, high = bars.get_xlim()
    assert -0.2 < low < 0 and 0.4 < high < 0.6
    assert [(text.get_text(), text.get_position()) for text in bars.texts] == [("◀ -28", (0.0, 0))]
    figure.canvas.draw()
    assert bars.get_yticklabels()[-1].get_text() == "model/tokenizer=c1d, opt.lr=0.00606"
    assert all(float(text.get_text()).is_integer() for text in shares.get_xticklabels())


def test_long_names_of_bars_have_keys_without_sections(records: Runs) -> None:
    factors = [
        {"model.patch_size, model.stride_size": f"{size}, 64", **own} for size, own in enumerate(records.factors)
    ]
    runs = records.assign(factors=factors, setting=[repr(one) for one in factors])
    bars, _ = draw_ablation(ablation_of(runs, "test_r2", "toy", {}, search=False)).axes
    assert "patch_size, stride_size=0, 64, tokenizer=c1d, lr=0.00606" in [
        text.get_text() for text in bars.get_yticklabels()
    ]


def test_bars_of_like_size_are_drawn_whole(records: Runs) -> None:
    bars, _ = draw_ablation(ablation_of(records[:4], "test_r2", "toy", {}, search=False)).axes
    assert bars.get_xlim()[0] == 0 and bars.get_xlim()[1] > 0.4
    assert list(bars.texts) == []
