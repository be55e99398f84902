"""`specvit analysis errors` on planted errors: scores, ranks, calibration by fold and S/N, figures, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import config, make_run
from scipy import stats

from specvit.analysis.error_figures import draw_pit, draw_sigma
from specvit.analysis.error_report import ErrorReport, error_report, sentence
from specvit.analysis.grouping import by_test_set
from specvit.analysis.records import read_runs, with_predictions
from specvit.commands.analysis import main
from specvit.config.build import build_config
from specvit.run_folder.identity import identity_of
from specvit.utils.errors import FolderError

VAL, TEST = 400, 1000
Errors = Callable[[pd.DataFrame, np.random.Generator], Any]


def noise(table: pd.DataFrame, rng: np.random.Generator) -> Any:
    """Return errors that are larger where S/N is lower: normal, std 0.6 at 5 and 0.2 at 15."""
    return rng.normal(size=len(table)) * sigma(table)


def sigma(table: pd.DataFrame) -> Any:
    return np.where(table["snr"] < 10, 0.6, 0.2)


def plant(
    folder: Path, name: str, of_test: Errors = noise, of_val: Errors = noise, *, std: float = 0, **changes: Any
) -> Path:
    """Write a finished run with these errors; it predicts `std` times their true std, if not 0."""
    changes.setdefault("train", {"seed": int(name[-1])})
    settings = config(**{"data": {"param": ["log_g"]}, "loss": {"name": "gaussian" if std else "mse"}, **changes})
    made = build_config(settings)
    data = {split: {"shape": [rows, 9]} for split, rows in (("train", 500), ("val", VAL), ("test", TEST))}
    data["test"]["labels"] = str(made.data.fold)
    about = {"summary": {"best_epoch": 1}, "settings": settings, "identity": identity_of(made, data)}
    run = make_run(folder / f"{name}-0000000{name[-1]}", "completed", **about)
    for split, rows, errors in (("val", VAL, of_val), ("test", TEST, of_test)):
        rng, fold = np.random.default_rng(rows + 7 * made.data.fold), made.data.fold
        table = pd.DataFrame({"file": "a/b.h5", "row": range(rows), "snr": np.where(np.arange(rows) % 4, 15.0, 5.0)})
        table = table.assign(mag=np.nan, star_id=[f"s{fold * rows + row}" for row in range(rows)])
        table["true_log_g"] = rng.uniform(1, 5, rows)
        rng = np.random.default_rng([rows, made.train.seed, fold])
        table["pred_log_g"] = table["true_log_g"] + errors(table, rng)
        if std:
            table["std_log_g"] = std * sigma(table)
        table.to_csv(run.file({"val": "val_predictions.csv", "test": "predictions.csv"}[split]), index=False)
    return run.path


def report(folder: Path, bounds: list[Any] | None = None) -> ErrorReport:
    (test_set,) = by_test_set(with_predictions(read_runs([folder])[0], "log_g", noiseless=True)[0])
    return error_report(test_set, "log_g", bounds or [])[0]


def written(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "errors.csv").set_index("subset")


@pytest.mark.slow
def test_scores_of_subsets_are_those_of_their_rows(tmp_path: Path, capsys: Any) -> None:
    run = plant(tmp_path / "runs", "a1", std=0.5)
    assert main(["errors", str(run), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"test set: {TEST} rows")
    rows, test, val = written(tmp_path), *(pd.read_csv(run / f"{name}predictions.csv") for name in ("", "val_"))
    error = test["pred_log_g"] - test["true_log_g"]
    for name, inside in {
        "all": error < np.inf,
        "4 to 6": test["snr"] == 5,
        "giants": test["true_log_g"] < 2.5,
        "subgiants": test["true_log_g"].between(2.5, 3.5),
        "dwarfs": test["true_log_g"] >= 3.5,
    }.items():
        row, here = rows.loc[name], error[inside]
        known = stats.norm(test["pred_log_g"][inside], test["std_log_g"][inside])
        expected = {"rmse": (here**2).mean() ** 0.5, "bias": here.mean(), "mae": here.abs().mean()}
        expected |= {"nll": -known.logpdf(test["true_log_g"][inside]).mean(), "rows": inside.sum()}
        for of_val, level in (("coverage_68", 0.68), ("coverage_95", 0.95)):
            half = pd.Series(0.0, test.index)
            for snr, rank in ((5, int(np.ceil(101 * level))), (15, int(np.ceil(301 * level)))):
                own = val[val["snr"] == snr]
                ratio = ((own["pred_log_g"] - own["true_log_g"]) / own["std_log_g"]).abs().sort_values()
                half[test["snr"] == snr] = ratio.iloc[rank - 1] * test["std_log_g"]
            expected[of_val] = (error.abs() <= half)[inside].mean()
        for score, value in expected.items():
            assert row[score] == pytest.approx(value, rel=1e-9), (name, score)
        assert row["rmse_low"] < row["rmse"] < row["rmse_high"] and row["coverage_68_within"]
    assert rows.loc["4 to 6", "predicted_std"] == pytest.approx(0.3)
    assert rows.loc["4 to 6", "half_width"] == pytest.approx(0.6, rel=0.2)
    assert all((tmp_path / f"{name}.png").exists() for name in ("pit", "sigma_by_snr", "bias"))
    worst = json.loads((tmp_path / "errors.json").read_text())["worst"]["a1"]
    assert len(worst) == 10 and worst[0]["star"].startswith("s") and worst[0]["ratio"] > 3 > worst[0]["std"]


def test_chance_is_of_the_calibration_rows_of_each_bin(tmp_path: Path) -> None:
    plant(tmp_path, "a1")
    rows = {row["subset"]: row for row in report(tmp_path).settings[0].rows}
    assert [rows[name]["calibration_rows"] for name in ("4 to 6", "14 to 18", "all")] == [100, 300, 400]
    assert rows["4 to 6"]["coverage_68_chance"] == pytest.approx(2 * (0.68 * 0.32 * (1 / 100 + 1 / 250)) ** 0.5)
    assert rows["all"]["coverage_95_chance"] == pytest.approx(2 * (0.95 * 0.05 * (1 / 400 + 1 / TEST)) ** 0.5)


def test_ranks_are_uniform_only_where_the_error_bars_are_right(tmp_path: Path) -> None:
    def shifted(table: pd.DataFrame, rng: np.random.Generator) -> Any:
        return noise(table, rng) - 0.2

    for name, errors, std in (("right", noise, 1), ("narrow", noise, 0.5), ("ranked", noise, 0), ("low", shifted, 0)):
        plant(tmp_path / name, "a1", errors, std=std)
    pit = {path.name: report(path).settings[0].seeds[0]["pit"] for path in tmp_path.iterdir()}
    uniform = {name: stats.kstest(values, "uniform").statistic for name, values in pit.items()}
    assert uniform["right"] < 0.04 and uniform["ranked"] < 0.08
    assert ((pit["narrow"] < 0.05) | (pit["narrow"] > 0.95)).mean() == pytest.approx(
        2 * stats.norm.cdf(-0.822), abs=0.03
    )
    assert pit["low"].mean() > 0.65  # predictions too low: labels are high in their distributions
    (axis,) = draw_pit(report(tmp_path / "low")).axes
    (heights, edges, _) = axis.patches[-1].get_data()
    np.testing.assert_allclose(heights, np.histogram(pit["low"], edges, density=True)[0])


def test_bias_by_true_label_is_the_planted_shrinkage(tmp_path: Path) -> None:
    def shrunk(table: pd.DataFrame, rng: np.random.Generator) -> Any:
        return noise(table, rng) - 0.3 * (table["true_log_g"] - 3)

    for seed in (1, 2, 3):
        plant(tmp_path, f"a{seed}", shrunk)
    (one,) = report(tmp_path).settings
    assert len(one.seeds) == 3 and len(one.of("true")) == 8
    for row in one.of("true"):
        assert row["bias"] == pytest.approx(-0.3 * (row["true"] - 3), abs=0.06)
        assert row["bias_low"] < row["bias"] < row["bias_high"]
    assert [round(row["bias"], 1) for row in one.of("type")] == pytest.approx([0.4, 0, -0.4])


def test_seeds_are_drawn_again_for_intervals(tmp_path: Path) -> None:
    for seed in (1, 2):
        plant(tmp_path, f"a{seed}", lambda table, rng, seed=seed: noise(table, rng) * 0.01 + seed)
    row = report(tmp_path).settings[0].rows[0]
    assert row["bias"] == pytest.approx(1.5, abs=0.01)
    assert row["bias_low"] == pytest.approx(1, abs=0.01) and row["bias_high"] == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_each_fold_is_calibrated_by_its_own_validation_rows(tmp_path: Path) -> None:
    def of_fold(fold: int) -> Errors:
        return lambda table, rng: rng.normal(size=len(table)) * (0.1 if fold else 1.0)

    for seed in (1, 2):
        for fold in range(3):
            data = {"kind": "hdf5", "file_path": ["m/a.h5"], "param": ["log_g"], "folds": 3, "fold": fold}
            data["val_samples"] = 7  # another number than tested: files are not compared
            plant(tmp_path / "runs", f"a{seed}{fold}", *[of_fold(fold)] * 2, data=data, train={"seed": seed})
    assert main(["errors", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    row = written(tmp_path).loc["all"]
    assert (row["rows"], row["calibration_rows"], row["seeds"]) == (3 * TEST, 3 * VAL, "1 2")
    assert row["coverage_68_within"] and row["width"] == pytest.approx(2 * (1.0 + 0.1 + 0.1) / 3, rel=0.15)


def test_the_figure_by_snr_has_the_van_trees_bound(tmp_path: Path) -> None:
    plant(tmp_path, "a1", std=0.5)
    bounds = [{"by": "snr", "snr": 5.0, "van_trees": 0.25}, {"by": "snr", "snr": 15.0, "van_trees": 0.01}]
    (axis,) = draw_sigma(report(tmp_path, bounds)).axes
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert list(lines["van Trees"]) == [0.5, 0.1] and list(lines["predicted"]) == pytest.approx([0.3, 0.1])
    assert list(lines["error"]) == pytest.approx([0.6, 0.2], rel=0.1)
    assert list(lines["calibrated"]) == pytest.approx([0.6, 0.2], rel=0.2)


def test_what_calibrates_too_little_is_said(tmp_path: Path) -> None:
    few, nan = plant(tmp_path / "few", "a1"), plant(tmp_path / "nan", "a1", std=1)
    for run, column, rows in ((few, "true_log_g", slice(12, None)), (nan, "std_log_g", slice(3, 3))):
        table = pd.read_csv(run / "val_predictions.csv")
        table.loc[rows, column] = np.nan
        table.to_csv(run / "val_predictions.csv", index=False)
    said = sentence(report(tmp_path / "few").settings[0], "log_g")
    assert " inside error bars of 0.68 (±" in said and ", error bars of 0.95 are infinite; RMSE" in said
    with pytest.raises(FolderError, match="or a damaged one"):
        report(tmp_path / "nan")


@pytest.mark.slow
def test_runs_without_calibration_are_left_out_or_refused(tmp_path: Path, capsys: Any) -> None:
    good, bad = plant(tmp_path / "runs", "a1"), plant(tmp_path / "runs", "a2")
    path = bad / "val_predictions.csv"
    pd.read_csv(path)[:-1].to_csv(path, index=False)
    remedy = f"{bad}: has no val_predictions.csv with log_g, or a damaged one; "
    remedy += f"`specvit evaluate {bad} --split val` writes it"
    assert main(["errors", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert f"note: 1 of 2 seeds of a1 left out: {remedy}." in capsys.readouterr().out
    assert written(tmp_path).loc["all", "run_ids"] == int(good.name[-8:])
    for spoil in (path.unlink, lambda: path.write_bytes(b"\xff\x00,"), lambda: path.write_text("snr\n1\n")):
        spoil()
        assert main(["errors", str(bad)]) == 2
        assert capsys.readouterr().err == f"specvit: {remedy}.\n"
    assert main(["errors", str(good), "--label", "M_H"]) == 2
    assert capsys.readouterr().err.startswith("specvit: ") and not (good / "errors").exists()
