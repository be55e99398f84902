"""Error bars of `specvit predict`: calibrated by what a run's folder holds, or left out with a note."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from shared import once
from test_folds import write_with_ids

import specvit
from specvit.commands import evaluate, predict
from specvit.data.noise import evaluation_noise
from specvit.data.shards import write_shard
from specvit.data.views import open_spectra
from specvit.metrics.conformal import rank

LABELS = ("log_g", "M_H")
pytestmark = pytest.mark.slow
QUIET = ["model=ridge", "train.threads=1", "tracking.progress=lines", "tracking.live=false", "noise.noise_level=1"]
QUIET += ['data.param="log_g,M_H"']
FOLDS = 3


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def sets(shared: Path, write_set: Any) -> Path:
    """Return a folder of sets whose S/N differs from row to row by a factor of five."""

    def write(folder: Path) -> None:
        for seed, (name, rows) in enumerate({"train": 400, "val": 1200, "test": 1000}.items()):
            write_set(folder / name, rows, seed=seed)

    return once(shared / "error_bars", write)


@pytest.fixture(scope="session")
def words(sets: Path) -> list[str]:
    """Return the overrides of a run of ridge on them."""
    keys = {"file": "train", "val": "val", "test": "test"}
    return ["data=hdf5", *QUIET, *(f"data.{key}_path={sets}/{name}/dataset.h5" for key, name in keys.items())]


@pytest.fixture(scope="session")
def finished(reference_run: Any, words: list[str]) -> Path:
    """Return the run; read only."""
    return reference_run(words)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture(scope="session")
def spectra(stars: Any) -> dict[str, Any]:
    """Return 2000 other stars with the noise of such runs, some flux below 0 clipped before it as in evaluation."""
    content = stars(2000, seed=9)
    flux_NP = np.clip(content["flux_NP"], 0, None).astype(np.float32)
    unit_NP = evaluation_noise(np.arange(2000), 256, seed=7, split="new")
    return {**content, "flux_NP": flux_NP + content["error_NP"].astype(np.float32) * unit_NP}


def inside(table: pd.DataFrame, labels: pd.DataFrame, name: str) -> np.ndarray:
    """Return which true labels are in their intervals."""
    return ((table[f"{name}_low"] <= labels[name]) & (labels[name] <= table[f"{name}_high"])).to_numpy()


def within(share: float, level: float, calibrated: int, rows: int, *, sigma: int = 2) -> bool:
    """Return whether a share is the level, to so many of its standard deviations over both draws."""
    return abs(share - level) < sigma * math.sqrt(level * (1 - level) * (1 / calibrated + 1 / rows))


@pytest.mark.parametrize("level", [None, 0.5, 0.95])
def test_intervals_hold_new_labels_at_each_snr(finished: Path, spectra: Any, level: float | None) -> None:
    trained = specvit.load(finished)
    table = trained.predict(spectra["flux_NP"], level=level)
    assert list(table)[:9] == [
        *LABELS,
        *(f"{name}_{kind}" for name in LABELS for kind in ("std", "low", "high")),
        "flux_snr",
    ]
    faint = table["flux_snr"] < table["flux_snr"].median()
    for name in LABELS:
        for here in (faint, ~faint):
            share = inside(table[here], spectra["labels"][here], name).mean()
            assert within(share, level or 0.9, 600, 1000, sigma=3), (name, share)
        assert within(inside(table, spectra["labels"], name).mean(), level or 0.9, 1200, 2000, sigma=3)
        half = (table[f"{name}_high"] - table[f"{name}_low"]) / 2
        np.testing.assert_allclose(table[name], table[f"{name}_low"] + half)
        assert half.round(9).nunique() == 8 and half[faint].mean() > 1.5 * half[~faint].mean()
        one_sigma = (np.abs(table[name] - spectra["labels"][name]) <= table[f"{name}_std"]).mean()
        assert within(one_sigma, 0.68, 1200, 2000)


def test_widths_are_those_of_the_validation_rows_by_hand(finished: Path, spectra: Any) -> None:
    """The rank of the level among the errors of the rows in the same eighth of S/N."""
    kept = pd.read_csv(finished / "val_predictions.csv")
    assert list(kept) == [*pd.read_csv(finished / "predictions.csv"), "flux_snr"] and len(kept) == 1200
    table = specvit.load(finished).predict(spectra["flux_NP"])
    eighths = kept.sort_values("flux_snr").reset_index(drop=True)
    for number in (0, 3, 7):
        of_bin = eighths[number * 150 : number * 150 + 150]
        error_n = np.sort(np.abs(of_bin["pred_M_H"] - of_bin["true_M_H"]))
        above = table["flux_snr"] >= of_bin["flux_snr"].min() if number else table["flux_snr"] > 0
        here = above & ((table["flux_snr"] < eighths["flux_snr"][number * 150 + 150]) if number < 7 else True)
        assert here.sum() > 100
        half = (table["M_H_high"] - table["M_H"])[here]
        np.testing.assert_allclose(half, error_n[rank(150, 0.9) - 1])
        np.testing.assert_allclose(table["M_H_std"][here], error_n[rank(150, 0.68) - 1])


def test_validation_rows_are_predicted_as_their_noisy_flux_is(finished: Path, sets: Path) -> None:
    """The kept labels and S/N are what `predict` gives of the same spectra with the same noise."""
    flux_NP, error_NP = open_spectra([sets / "val" / "dataset.h5"], -1).gather(np.arange(1200))
    noise_NP = evaluation_noise(np.arange(1200), 256, seed=42, split="val")
    table = specvit.load(finished).predict(np.clip(flux_NP, 0, None) + error_NP * noise_NP)
    kept = pd.read_csv(finished / "val_predictions.csv")
    np.testing.assert_allclose(kept["flux_snr"], table["flux_snr"], rtol=1e-5)
    for name in LABELS:
        np.testing.assert_allclose(kept[f"pred_{name}"], table[name], atol=1e-5)
    assert kept["row"].tolist() == list(range(1200))


def test_the_test_scores_them_and_so_does_evaluate(finished: Path, copied: Path, sets: Path) -> None:
    """Against `predict` of the test spectra with their noise: coverage, width, and NLL of a normal distribution."""
    summary = json.loads((finished / "summary.json").read_text())
    flux_NP, error_NP = open_spectra([sets / "test" / "dataset.h5"], -1).gather(np.arange(1000))
    flux_NP = np.clip(flux_NP, 0, None) + error_NP * evaluation_noise(np.arange(1000), 256, seed=42, split="test")
    true, trained = pd.read_csv(finished / "predictions.csv"), specvit.load(finished)
    at = {level: trained.predict(flux_NP, level=level) for level in (0.68, 0.6827, 0.95)}
    for name in LABELS:
        labels = true.rename(columns={f"true_{name}": name})
        for level, score in ((0.68, "coverage_68"), (0.95, "coverage_95")):
            share = inside(at[level], labels, name).mean()
            assert summary[f"test_{score}_{name}"] == pytest.approx(share, abs=0.002)
            assert within(share, level, 1200, 1000) and summary[f"test_{score}_{name}_low"] < share
        width = (at[0.68][f"{name}_high"] - at[0.68][f"{name}_low"]).mean()
        assert summary[f"test_width_{name}"] == pytest.approx(width, rel=1e-3)
        std = at[0.6827][f"{name}_high"] - at[0.6827][name]
        density = norm.logpdf(true[f"true_{name}"], true[f"pred_{name}"], std)
        assert summary[f"test_nll_{name}"] == pytest.approx(-density.mean(), abs=2e-3)
    assert all(0.5 < row["coverage_68"] < 0.9 for row in summary["test_by_snr"] if row["rows"] > 50)
    assert evaluate.main([str(copied)]) == 0
    again = json.loads((copied / "evaluate-test" / "summary.json").read_text())
    names = [name for name in summary if name.startswith(("test_coverage", "test_width", "test_nll", "test_by"))]
    assert {name: again[name] for name in names} == {name: summary[name] for name in names}
    (copied / "val_predictions.csv").unlink()
    assert evaluate.main([str(copied)]) == 0
    without = json.loads((copied / "evaluate-test" / "summary.json").read_text())
    assert not any("coverage" in name or "nll" in name for name in without)


def test_the_command_writes_them_and_leaves_them_empty_where_nothing_is_predicted(
    finished: Path, spectra: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flux_NP = spectra["flux_NP"][:40].copy()
    flux_NP[3, :99] = np.nan
    np.savez("new.npz", wave=spectra["wave_P"], flux=flux_NP)
    words = ["new.npz", "--unit", "A", "--no-normalise", "--level", ".95", "--out", "out.csv"]
    assert predict.main([str(finished), *words]) == 0
    table: Any = pd.read_csv("out.csv")
    again = specvit.load(finished).predict(flux_NP, level=0.95)
    pd.testing.assert_frame_equal(table[list(again)], again, check_dtype=False)
    columns = [f"{name}_{kind}" for name in LABELS for kind in ("std", "low", "high")]
    assert table.loc[3, columns].isna().all() and table.drop(index=3)[columns].notna().all(axis=None)
    for words, said in (
        (["--level", "90"], "--level: is 90; give a share between 0 and 1, such as 0.9"),
        (["--level", "many"], "argument --level: invalid float value: 'many'"),
        (["--device", "cuda:99"], "--device: no CUDA device is there; set --device=cpu or --device=auto"),
    ):
        capsys.readouterr()
        assert predict.main([str(finished), "new.npz", *words]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(specvit.SpecvitError, match=r"level: is '0.5'; give a share between 0 and 1"):
        specvit.load(finished).predict(flux_NP, level="0.5")


def test_an_older_run_has_none_until_its_validation_rows_are_predicted(
    copied: Path, spectra: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (copied / "val_predictions.csv").read_bytes()
    (copied / "val_predictions.csv").unlink()
    trained = specvit.load(copied)
    said = capsys.readouterr().out
    assert (
        f"note: no error bars: {copied} has no val_predictions.csv, or a damaged one; `specvit evaluate {copied}"
        in said
    )
    assert list(trained.predict(spectra["flux_NP"][:4]))[:3] == [*LABELS, "flux_snr"]
    with pytest.raises(specvit.SpecvitError, match=r"without error bars: [^ ]+ has no val_predictions"):
        trained.predict(spectra["flux_NP"][:4], level=0.9)
    assert evaluate.main([str(copied)]) == 0
    assert f"note: no coverage of error bars: {copied} has no val_predictions.csv" in capsys.readouterr().out
    assert evaluate.main([str(copied), "--split", "val"]) == 0
    assert "no coverage" not in capsys.readouterr().out
    assert (copied / "val_predictions.csv").read_bytes() == kept
    scores = json.loads((copied / "evaluate-val" / "summary.json").read_text())
    best = json.loads((copied / "summary.json").read_text())["best_val_loss"]
    assert scores["val_loss"] == pytest.approx(best) and scores["val_rows"] == 1200 and "test_rows" not in scores
    half = kept[: kept.index(b"\n", len(kept) // 2) + 1]
    unpredicted = pd.read_csv(copied / "val_predictions.csv").assign(pred_log_g=np.nan).to_csv(index=False).encode()
    for damaged in (kept[:-40] + b"\x00\xff,,", half, kept.replace(b"flux_snr", b"snr_of_flux"), unpredicted, b""):
        (copied / "val_predictions.csv").write_bytes(damaged)
        assert "a damaged one" in specvit.load(copied).uncalibrated
    (copied / "run.json").write_text("torn")
    assert "a damaged run.json" in specvit.load(copied).uncalibrated


def test_validation_rows_that_are_not_the_runs_calibrate_nothing(
    copied: Path, write_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        capsys.readouterr()
        assert evaluate.main([str(copied), "--split", "val", *words]) == 2
        return capsys.readouterr().err

    kept = (copied / "val_predictions.csv").read_bytes()
    assert "--noise: does not go with --split val, the run's own validation rows" in refusal("--noise", "2")
    assert "--data: does not go with --split val" in refusal("--data", "a.h5")
    config, status = (copied / "config.yaml").read_text(), (copied / "status.json").read_text()
    (copied / "config.yaml").write_text(config.replace("/val/", "/test/"))
    assert "data.val_path: is not what it was; put the spectra back that the run was validated on" in refusal()
    (copied / "config.yaml").write_text(config)
    (copied / "status.json").write_text(json.dumps({**json.loads(status), "state": "preempted"}))
    assert "has not finished (preempted), and its weights may change; run its training" in refusal()
    assert (copied / "val_predictions.csv").read_bytes() == kept


def test_too_few_rows_make_infinite_error_bars_with_a_note(
    reference_run: Any, words: list[str], spectra: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 12 rows, 0.9 takes nine and 0.95 nineteen."""
    run = reference_run([*words, "data.val_samples=12"])
    trained = specvit.load(run)
    table = trained.predict(spectra["flux_NP"][:4])
    kept = pd.read_csv(run / "val_predictions.csv")
    error_n = np.sort(np.abs(kept["pred_M_H"] - kept["true_M_H"]))
    np.testing.assert_allclose(table["M_H_high"] - table["M_H"], error_n[11])
    with pytest.warns(
        UserWarning, match="some error bars are infinite: level 0.95 takes 19 rows with known labels, and"
    ):
        table = trained.predict(spectra["flux_NP"][:4], level=0.95)
    assert (table["M_H_low"] == -np.inf).all() and (table["M_H_high"] == np.inf).all()
    assert np.isfinite(table["M_H_std"]).all()
    np.savez("new.npz", wave=spectra["wave_P"], flux=spectra["flux_NP"][:4])
    assert predict.main([str(run), "new.npz", "--unit", "A", "--level", "0.95", "--out", "out.csv"]) == 0
    assert "there are 12 of log_g, 12 of M_H" in capsys.readouterr().err


def test_seeds_together_are_calibrated_by_their_mean(reference_run: Any, words: list[str], spectra: Any) -> None:
    runs = [reference_run([*words, f"train.seed={seed}"]) for seed in (1, 2)]
    table = specvit.load(*runs).predict(spectra["flux_NP"])
    kept = [pd.read_csv(run / "val_predictions.csv") for run in runs]
    mean_n = (kept[0]["pred_M_H"] + kept[1]["pred_M_H"]) / 2
    lowest = kept[0]["flux_snr"].rank() <= 150
    error_n = np.sort(np.abs(mean_n - kept[0]["true_M_H"])[lowest])
    here = table["flux_snr"].idxmin()
    assert (table["M_H_high"] - table["M_H"])[here] == pytest.approx(error_n[rank(150, 0.9) - 1])
    assert list(table)[2:7] == ["log_g_run_sd", "M_H_run_sd", "log_g_std", "log_g_low", "log_g_high"]
    assert within(inside(table, spectra["labels"], "M_H").mean(), 0.9, 1200, 2000)


def test_a_predicted_std_is_scaled_by_its_errors_in_units_of_it(
    reference_run: Any, scored: list[str], spectra: Any, tmp_path: Path
) -> None:
    """Of a network with loss=gaussian: half-widths are its std times one number, a rank among 48 validation rows."""
    trained = reference_run([*scored, "loss=gaussian"])
    run = Path(shutil.copytree(trained, tmp_path / trained.name))
    flux_NP = np.clip(spectra["flux_NP"][:100], 0, None)
    write_shard(Path("new/stars.h5"), **{**make_rows(spectra, 100), "flux_NP": flux_NP})
    assert evaluate.main([str(run), "--data", "new/stars.h5", "--noise", "0"]) == 0
    raw: Any = pd.read_csv(run / "evaluate-new-stars-noise0" / "predictions.csv")["std_log_g"]
    kept: Any = pd.read_csv(run / "val_predictions.csv")
    error_n = np.sort(np.abs(kept["pred_log_g"] - kept["true_log_g"]) / kept["std_log_g"])
    assert len(error_n) == 48 and raw.nunique() > 90
    table = specvit.load(run).predict(flux_NP)
    np.testing.assert_allclose(table["log_g_high"] - table["log_g"], raw * error_n[rank(48, 0.9) - 1], rtol=1e-4)
    np.testing.assert_allclose(table["log_g_std"], raw * error_n[rank(48, 0.68) - 1], rtol=1e-4)


def make_rows(content: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the first rows of what `write_shard` takes."""
    return {name: values if name == "wave_P" else values[:rows] for name, values in content.items()}


@pytest.mark.parametrize("other", ["data.val_samples=900", "noise.noise_level=2"])
def test_runs_with_other_validation_rows_or_noise_have_none(
    finished: Path, reference_run: Any, words: list[str], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    specvit.load(finished, reference_run([*words, other]))
    said = capsys.readouterr().out
    assert "note: no error bars: the runs have different validation rows, or different noise in them" in said


def test_classes_have_probabilities_instead(trained_classes: Path, spectra: Any, capsys: Any) -> None:
    trained = specvit.load(trained_classes)
    assert not (trained_classes / "val_predictions.csv").exists() and "error bars" not in capsys.readouterr().out
    with pytest.raises(
        specvit.SpecvitError, match="level: has no effect without error bars: classes have probabilities"
    ):
        trained.predict(spectra["flux_NP"][:4], level=0.9)


@pytest.fixture(scope="session")
def fold_runs(reference_run: Any, shared: Path, stars: Any) -> Callable[..., Path]:
    """Return `fold_runs(fold, *more)`, the run of a fold of 150 stars; read only."""

    def write(folder: Path) -> None:
        write_with_ids(stars, list(range(150)), folder / "dataset.h5")

    path = once(shared / "error_bars_folds", write) / "dataset.h5"
    data = ["data=hdf5", *QUIET, f"data.file_path={path}", f"data.folds={FOLDS}", "noise.noise_level=0.3"]
    return lambda fold, *more: reference_run([*data, f"data.fold={fold}", *more])


def test_all_folds_together_are_calibrated_by_the_stars_that_each_tests(fold_runs: Any, stars: Any) -> None:
    """Of each label the ranks of prediction - error and prediction + error over all stars, by hand."""
    runs = [fold_runs(fold) for fold in range(FOLDS)]
    content = stars(500, seed=3)
    noise_NP = evaluation_noise(np.arange(500), 256, seed=7, split="new")
    flux_NP = content["flux_NP"] + 0.3 * content["error_NP"] * noise_NP
    table = specvit.load(*runs[::-1]).predict(flux_NP)
    low, high = [], []
    for run in runs:
        tested, single = pd.read_csv(run / "predictions.csv"), specvit.load(run).predict(flux_NP[7])
        error_n = np.abs(tested["pred_M_H"] - tested["true_M_H"])
        low += (single["M_H"][0] - error_n).tolist()
        high += (single["M_H"][0] + error_n).tolist()
    assert len(low) == 150
    assert table["M_H_low"][7] == pytest.approx(sorted(low, reverse=True)[rank(150, 0.9) - 1])
    assert table["M_H_high"][7] == pytest.approx(sorted(high)[rank(150, 0.9) - 1])
    assert table["M_H_std"][7] == pytest.approx((sorted(high)[102] - sorted(low, reverse=True)[102]) / 2)
    assert within(inside(table, content["labels"], "M_H").mean(), 0.9, 150, 500)


def test_seeds_of_a_fold_are_averaged_first(fold_runs: Any, spectra: Any) -> None:
    seeds = [fold_runs(0, f"train.seed={seed}") for seed in (42, 2)]
    table = specvit.load(*seeds, fold_runs(1), fold_runs(2)).predict(spectra["flux_NP"][:1], level=0.5)
    tested = [pd.read_csv(run / "predictions.csv") for run in seeds]
    error_n = np.abs((tested[0]["pred_M_H"] + tested[1]["pred_M_H"]) / 2 - tested[0]["true_M_H"])
    centre = np.mean([specvit.load(run).predict(spectra["flux_NP"][:1])["M_H"][0] for run in seeds])
    high = (centre + error_n).tolist()
    for run in (fold_runs(1), fold_runs(2)):
        of_fold = pd.read_csv(run / "predictions.csv")
        single = specvit.load(run).predict(spectra["flux_NP"][:1])["M_H"][0]
        high += (single + np.abs(of_fold["pred_M_H"] - of_fold["true_M_H"])).tolist()
    assert table["M_H_high"][0] == pytest.approx(sorted(high)[rank(150, 0.5) - 1])


def test_some_folds_or_folds_of_other_settings_have_none(fold_runs: Any, finished: Path, capsys: Any) -> None:
    for runs, said in (
        ([fold_runs(0), fold_runs(2)], "of 3 folds 1 is missing; name runs of all folds, or of one"),
        (
            [fold_runs(0), fold_runs(1), fold_runs(2, "model.num_alphas=7")],
            "the runs differ in their fold and in model.num_alphas",
        ),
    ):
        capsys.readouterr()
        specvit.load(*runs)
        assert f"note: no error bars: {said}" in capsys.readouterr().out
    assert specvit.load(fold_runs(1)).error_bars is not None, "one fold has its own validation rows"


def test_folds_of_files_that_have_changed_have_none(fold_runs: Any, tmp_path: Path, capsys: Any) -> None:
    runs = [Path(shutil.copytree(fold_runs(fold), tmp_path / fold_runs(fold).name)) for fold in range(FOLDS)]
    about = json.loads((runs[1] / "run.json").read_text())
    about["identity"]["data"]["val"]["labels"] = "0123456789abcdef"
    (runs[1] / "run.json").write_text(json.dumps(about))
    specvit.load(*runs)
    assert "note: no error bars: the files of the folds have changed between their runs" in capsys.readouterr().out
    (runs[2] / "predictions.csv").unlink()
    specvit.load(*runs)
    assert f"{runs[2]} has no predictions.csv" in capsys.readouterr().out
