"""What the figures show, and that no number of a poor run keeps them from being drawn."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specvit.metrics.scores import confusion_matrix
from specvit.tracking import figures

NAN = float("nan")


@pytest.fixture
def drawn(drawn_figures: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list that figures are kept in after they were saved; warnings are errors."""
    kept: list[Any] = []

    def save(figure: Any, path: Path) -> None:
        figures_save(figure, path)
        kept.append(figure)

    figures_save = figures.save
    monkeypatch.setattr(figures, "save", save)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield kept


def columns(*labels: str, rows: int = 300) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return true and predicted values of labels."""
    rng = np.random.default_rng(0)
    return {label: (true_N := rng.uniform(1, 5, rows), true_N + rng.normal(size=rows)) for label in labels}


def bins(label: str, *values: tuple[float, float, float], metric: str = "r2") -> list[dict[str, Any]]:
    """Return rows of bins (value, low, high) between whole numbers, the last one open."""
    edges = [*range(len(values)), float("inf")]
    return [
        {"label": label, "low": edges[k], "high": edges[k + 1], "rows": 10 + k}
        | dict(zip((metric, f"{metric}_low", f"{metric}_high"), value, strict=True))
        for k, value in enumerate(values)
    ]


def points(axis: Any) -> list[tuple[float, float]]:
    """Return the centres of round marks."""
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    return [(round(float(x)), float(y)) for line in marks for x, y in zip(*line.get_data(), strict=True)]


def test_predictions_have_a_panel_a_label_with_units_and_one_colour_scale(drawn: list[Any], tmp_path: Path) -> None:
    snr_N, shown = np.linspace(3, 30, 300), columns("log_g", "T_eff", "M_H", "age")
    figures.draw_predictions(tmp_path / "new" / "p.png", shown, snr_N, titles=["a", "b", "c", "d"])
    *panels, bar = drawn[0].axes
    assert [axis.get_xlabel() for axis in panels] == [
        "true log_g [dex]",
        "true T_eff [K]",
        "true M_H [dex]",
        "true age",
    ]
    assert [axis.get_title() for axis in panels] == ["a", "b", "c", "d"]
    assert bar.get_ylabel() == "S/N per pixel"
    np.testing.assert_allclose(panels[1].collections[0].get_offsets(), np.stack(shown["T_eff"], axis=1))
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_clean_flux_has_no_colour_scale_and_no_panel_by_signal_to_noise(drawn: list[Any], tmp_path: Path) -> None:
    clean_N, shown = np.full(300, np.inf), columns("log_g")
    figures.draw_predictions(tmp_path / "p.png", shown, clean_N, titles=["a"])
    figures.draw_residuals(tmp_path / "r.png", shown, clean_N)
    assert [len(figure.axes) for figure in drawn] == [1, 1]


def test_residuals_stand_over_the_true_label_and_the_signal_to_noise(drawn: list[Any], tmp_path: Path) -> None:
    snr_N, shown = np.linspace(3, 30, 300), columns("log_g", "T_eff")
    figures.draw_residuals(tmp_path / "r.png", shown, snr_N)
    axes = drawn[0].axes
    names = ["true log_g [dex]", "S/N per pixel", "true T_eff [K]", "S/N per pixel"]
    assert [axis.get_xlabel() for axis in axes] == names
    assert axes[2].get_ylabel() == "predicted - true T_eff [K]"
    true_N, predicted_N = shown["T_eff"]
    for axis, x_N in ((axes[2], true_N), (axes[3], snr_N)):
        np.testing.assert_allclose(axis.collections[0].get_offsets(), np.stack((x_N, predicted_N - true_N), axis=1))
    median = next(line for line in axes[0].lines if line.get_label() == "median")
    first = np.argsort(shown["log_g"][0])[:25]
    assert median.get_ydata()[0] == pytest.approx(np.median(np.subtract(*shown["log_g"][::-1])[first]))


@pytest.mark.parametrize("rows", [2, 30])
def test_few_rows_are_drawn_without_a_median(rows: int, drawn: list[Any], tmp_path: Path) -> None:
    figures.draw_residuals(tmp_path / "r.png", columns("log_g", rows=rows), np.linspace(3, 30, rows))
    assert not [line for line in drawn[0].axes[0].lines if line.get_label() == "median"]


def test_bins_show_each_labels_value_and_interval(drawn: list[Any], tmp_path: Path) -> None:
    by_snr = bins("log_g", (0.5, 0.4, 0.6), (0.7, 0.6, 0.8)) + bins("T_eff", (0.9, 0.85, 0.95), (0.95, 0.9, 0.99))
    figures.draw_bins(tmp_path / "b.png", by_snr, bins("log_g", (0.2, 0.1, 0.3)))
    left, right = drawn[0].axes
    assert points(left) == [(0, 0.5), (1, 0.7), (0, 0.9), (1, 0.95)]
    assert points(right) == [(0, 0.2)]
    ends = [(path.vertices[0, 1], path.vertices[1, 1]) for path in left.collections[0].get_paths()]
    assert ends == [(0.4, 0.6), (0.6, 0.8)]
    assert [text.get_text() for text in left.get_xticklabels()] == ["0 to 1\n10", "≥ 1\n11"]
    assert (left.get_xlabel(), right.get_xlabel()) == (
        "S/N per pixel (number of spectra)",
        "mag [mag] (number of spectra)",
    )
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["log_g", "T_eff"]


def test_both_sides_share_an_axis_that_holds_every_point(drawn: list[Any], tmp_path: Path) -> None:
    high = bins("log_g", (0.9, 0.88, 0.92), (0.7, 0.6, 0.8))
    figures.draw_bins(tmp_path / "b.png", bins("log_g", (0.5, 0.4, 0.6)), high)
    limits = [axis.get_ylim() for axis in drawn[0].axes]
    assert limits[0] == limits[1]
    assert limits[0][0] < 0.4 and limits[0][1] > 0.92


def test_bins_of_a_poor_run_are_drawn(drawn: list[Any], tmp_path: Path) -> None:
    poor = bins("log_g", (NAN, NAN, NAN), (0.5, 0.6, 0.7), (-40.0, -80.0, -9.0), (0.1, -3.0, 0.4))
    figures.draw_bins(tmp_path / "b.png", poor, [])
    (axis,) = drawn[0].axes
    assert points(axis) == [(1, 0.5), (3, 0.1)]
    (triangle,) = [line for line in axis.lines if line.get_marker() == "v"]
    np.testing.assert_allclose(triangle.get_data(), [[2], [-1]])
    assert "▼ below -1" in axis.get_ylabel()
    assert axis.get_ylim()[0] > -1.1


def test_no_bins_make_no_figure_and_classes_are_drawn_by_accuracy(drawn: list[Any], tmp_path: Path) -> None:
    figures.draw_bins(tmp_path / "none.png", [], [])
    assert not (tmp_path / "none.png").exists()
    figures.draw_bins(tmp_path / "b.png", bins("class", (0.5, 0.4, 0.6), metric="accuracy"), [])
    assert drawn[0].axes[0].get_ylabel() == "accuracy with 95 % interval"


@pytest.mark.parametrize("classes", [2, 4, 40])
def test_confusion_shows_shares_of_the_true_class_with_their_counts(
    classes: int, drawn: list[Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    counts_CC = confusion_matrix(*rng.integers(classes - 1, size=(2, 500)), classes)  # the last class never occurs
    names = [f"class {number}" for number in range(classes)]
    figures.draw_confusion(tmp_path / "c.png", counts_CC, names, label="log_g", title="a")
    axis = drawn[0].axes[0]
    share_CC = axis.images[0].get_array()
    np.testing.assert_allclose(share_CC[:-1], counts_CC[:-1] / counts_CC[:-1].sum(axis=1, keepdims=True))
    assert (share_CC[-1] == 0).all()
    written = [text.get_text() for text in axis.texts]
    assert written == ([f"{count}" for count in counts_CC.ravel()] if classes < 40 else [])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted log_g [dex]", "true log_g [dex]")
    assert len(axis.get_yticklabels()) <= 15
    assert axis.get_yticklabels()[1].get_text() == names[int(axis.get_yticks()[1])]


def test_curves_show_training_and_validation(drawn: list[Any], tmp_path: Path) -> None:
    rows = [{"epoch": e, "train_loss": 3 / e, "val_loss": 2 / e, "train_r2": None, "val_r2": e / 9} for e in (1, 2, 3)]
    figures.draw_curves(tmp_path / "c.png", rows, score="r2")
    left, right = drawn[0].axes
    curves = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_allclose([curves["train"], curves["val"]], [[3, 1.5, 1], [2, 1, 2 / 3]])
    (val,) = [line for line in right.lines if line.get_label() == "val"]
    np.testing.assert_allclose(val.get_ydata(), [1 / 9, 2 / 9, 3 / 9])
    assert (left.get_ylabel(), right.get_ylabel(), right.get_xlabel()) == ("loss", "R²", "epoch")
    assert (left.get_yscale(), left.get_legend(), len(drawn[0].legends)) == ("linear", None, 1)


def test_curves_of_an_exploded_run_have_a_logarithmic_loss_and_r2_from_minus_1(
    drawn: list[Any], tmp_path: Path
) -> None:
    rows = [
        {"epoch": e, "train_loss": loss, "val_loss": loss, "train_r2": r2, "val_r2": r2}
        for e, (loss, r2) in enumerate([(1.0, 0.001), (5600.0, -49.0), (float("inf"), NAN), (0.9, 0.4)])
    ]
    figures.draw_curves(tmp_path / "c.png", rows, score="r2")
    left, right = drawn[0].axes
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
    shown = [text.get_text() for text in left.get_yticklabels()]
    assert {"1", "10", "100", "1,000"} < set(shown)
    assert -1.2 < right.get_ylim()[0] < -1 and right.get_ylim()[1] < 0.5
    (below, _) = [line for line in right.lines if line.get_marker() == "v"]
    np.testing.assert_allclose(below.get_data(), [[1], [-1]])
    assert right.get_ylabel() == "R², ▼ below -1"


def test_a_failed_attempt_leaves_no_older_figure_and_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "figures" / "a.png"
    figures.attempt(path, lambda path: figures.save(figures.canvas(1, 1, (2, 2))[0], path), said.append)
    assert path.exists()
    assert said == []

    def broken(path: Path) -> None:
        raise ValueError

    figures.attempt(path, broken, said.append)
    assert not path.exists()
    assert said == ["note: figures/a.png could not be drawn (ValueError: no message)"]
