"""`specvit predict`: what it gives is what the trained model says of a spectrum as it is, and nothing else."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from scored_runs import LABELS

import specvit
from specvit.commands import evaluate, predict
from specvit.data.noise import evaluation_noise
from specvit.data.shards import open_shard, write_shard
from specvit.run.ensemble import FLAGS
from specvit.training import checkpoint
from specvit.utils.quantities import ERROR, FLUX, MASKED, OBSERVED

ESTIMATORS = {
    "ridge": ["model=ridge"],
    "lightgbm": ["model=lightgbm", "model.min_leaf_rows=9", "model.num_trees=12"],
    "template": ["model=template"],
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def run_of(reference_run: Any, scored: list[str], trained_labels: Path) -> Callable[..., Path]:
    """Return `run_of(kind, *overrides)`: a finished run of vit or of an estimator on the toy sets; read only."""

    def reference(kind: str, *overrides: str) -> Path:
        if kind == "vit":
            return reference_run([*scored, *overrides]) if overrides else trained_labels
        words = [word for word in scored if not word.startswith(("model.", "train.", "opt."))]
        return reference_run([*words, "train.threads=1", *ESTIMATORS[kind], *overrides])

    return reference


@pytest.fixture
def observed(stars: Any) -> tuple[Path, dict[str, Any]]:
    """Return a shard of 300 spectra, more than a batch, as noisy as those of the runs' training, and its content."""
    content = stars(300, seed=5)
    noise_NP = evaluation_noise(np.arange(300), 256, seed=1, split="observed")
    content["flux_NP"] = content["flux_NP"] + 0.5 * content["error_NP"] * noise_NP
    write_shard(Path("observed/stars.h5"), **content)
    return Path("observed/stars.h5"), content


def predicted(*words: object) -> pd.DataFrame:
    """Return what the command writes."""
    assert predict.main([*map(str, words), "--out", "out.csv"]) == 0
    return pd.read_csv("out.csv")


def bars_of(*labels: str) -> list[str]:
    """Return the names of the columns of error bars."""
    return [f"{name}_{kind}" for name in labels for kind in ("std", "low", "high")]


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the one sentence with which the command ends, with nothing written."""
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert predict.main([*map(str, words)]) == 2
    shown = capsys.readouterr()
    (*_, last) = shown.err.splitlines()
    assert re.fullmatch(r"specvit: [^\n]+[.?]", last) and "Traceback" not in shown.err + shown.out, shown
    assert sorted(Path().rglob("*")) == before and not shown.out
    return last


@pytest.mark.parametrize("kind", ["vit", "ridge", "lightgbm"])
def test_it_predicts_observed_flux_as_evaluate_does_and_as_python_does(
    kind: str, run_of: Any, observed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(run_of(kind), tmp_path / run_of(kind).name))
    source, content = observed
    assert evaluate.main([str(run), "--data", str(source), "--noise", "0"]) == 0
    expected = pd.read_csv(run / "evaluate-observed-stars-noise0" / "predictions.csv")
    table = predicted(run, source)
    trained = specvit.load(run)
    assert list(table) == ["file", "row", *trained.labels, *bars_of(*trained.labels), "flux_snr", "masked", *FLAGS]
    assert set(table["file"]) == {"stars.h5"} and table["row"].tolist() == list(range(300))
    for label in trained.labels:
        np.testing.assert_array_equal(table[label], expected[f"pred_{label}"])
    again = trained.predict(content["flux_NP"], content["error_NP"], content["wave_P"])
    pd.testing.assert_frame_equal(again, table[list(again)], check_exact=True, check_dtype=False)
    one = trained.predict(content["flux_NP"][7])
    assert len(one) == 1 and one[trained.labels[0]][0] == pytest.approx(table[trained.labels[0]][7], rel=1e-5)


MARKED = [("template", "file"), *((kind, mark) for kind in ("vit", "ridge") for mark in ("file", "run", "none"))]


@pytest.mark.parametrize(("kind", "mark"), MARKED)
def test_masked_pixels_and_the_mark_of_observed_flux_are_those_of_evaluate(
    kind: str, mark: str, run_of: Any, observed: Any, tmp_path: Path, capsys: Any
) -> None:
    """Flux below 0 stays where the file or the run says so; rows with too many masked pixels are empty."""
    override = ["data.observed=true", "noise=none"] if mark == "run" else []
    run = Path(shutil.copytree(run_of(kind, *override), tmp_path / f"{kind}-run"))
    source = observed[0]
    masked_NP = np.random.default_rng(0).uniform(size=(300, 256)) < np.where(np.arange(300) % 2, 0.1, 0)[:, None]
    with h5py.File(source, "r+") as file:
        file[FLUX][:, 40:44] = -0.2
        file[FLUX][()] = flux_NP = np.where(masked_NP, 7, file[FLUX][()])
        file[ERROR][()] = error_NP = np.where(masked_NP, 0, file[ERROR][()])
        file[MASKED] = masked_NP.sum(axis=1)
        if mark == "file":
            file[FLUX].attrs[OBSERVED] = True
    level = ["--noise", "0"] if mark == "none" else []
    assert evaluate.main([str(run), "--data", str(source), *level]) == 0
    scored = run / f"evaluate-observed-stars{'-noise0' if level else ''}" / "predictions.csv"
    table, expected = predicted(run, source), pd.read_csv(scored)
    assert "model sees the mean spectrum: 3" in capsys.readouterr().err
    assert not table["not_finite"].any()
    np.testing.assert_array_equal(table["log_g"], expected["pred_log_g"])
    seen_NP = np.ma.masked_array(flux_NP if level == [] else np.maximum(flux_NP, 0), masked_NP)
    trained = specvit.load(run)
    again = trained.predict(seen_NP, error_NP)
    pd.testing.assert_frame_equal(again, table[list(again)], check_exact=True, check_dtype=False)
    seen_NP[2, :60] = np.ma.masked
    assert np.flatnonzero(trained.predict(seen_NP, error_NP)["not_finite"]).tolist() == [2]


def test_runs_that_cannot_fill_masked_pixels_or_differ_in_the_mark_are_refused(
    run_of: Any, observed: Any, capsys: Any
) -> None:
    run, marked = run_of("ridge"), run_of("ridge", "data.observed=true", "noise=none")
    assert "runs differ in data.observed" in refusal(capsys, run, marked, observed[0])
    with h5py.File(observed[0], "r+") as file:
        file[FLUX][3, 5] = np.nan
        file[MASKED] = (np.arange(300) == 3).astype(int)
    raw = run_of("ridge", "data.flux_norm=none")
    assert "stars.h5 row 3: has masked pixels, and the run kept no mean" in refusal(capsys, raw, observed[0])


def test_templates_weigh_by_the_errors_of_the_source(
    run_of: Any, observed: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `evaluate` predicts of clean flux with its own noise is what this predicts of the noisy flux."""
    run = Path(shutil.copytree(run_of("template"), tmp_path / "template-run"))
    content = observed[1]
    clean = Path(evaluate.read_config(run).data.test_path[0])
    shard = open_shard(clean)
    flux_NP, error_NP = (np.array(array.open()) for array in (shard.flux, shard.error))
    assert evaluate.main([str(run), "--noise", "1"]) == 0
    expected = pd.read_csv(run / "evaluate-test-noise1" / "predictions.csv")
    noisy_NP = flux_NP + error_NP * evaluation_noise(np.arange(64), 256, seed=42, split="test")
    trained = specvit.load(run)
    table = trained.predict(noisy_NP, error_NP)
    kept = (noisy_NP >= 0).all(axis=1)  # observed flux below 0 is clipped
    assert kept.sum() > 30
    np.testing.assert_allclose(table["log_g"][kept], expected["pred_log_g"][kept], atol=2e-3)
    flawed_NP = np.where(np.arange(256) % 5 == 3, 0, error_NP)
    table = trained.predict(noisy_NP, flawed_NP)
    masked = trained.predict(np.ma.masked_array(noisy_NP, flawed_NP == 0), error_NP)
    pd.testing.assert_frame_equal(table, masked, check_exact=True)
    assert set(table["masked"]) == {51 / 256} and not table["not_finite"].any()
    np.savez("bare.npz", wave=content["wave_P"], flux=content["flux_NP"])
    said = refusal(capsys, run, "bare.npz", "--unit", "A")
    assert "has no errors, by which model=template weighs pixels; name them by --error-name" in said
    with pytest.raises(specvit.SpecvitError, match="error: is needed"):
        trained.predict(noisy_NP)


def test_classes_have_probabilities(trained_classes: Path, observed: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_classes, tmp_path / trained_classes.name))
    source, content = observed
    assert evaluate.main([str(run), "--data", str(source), "--noise", "0"]) == 0
    expected = pd.read_csv(run / "evaluate-observed-stars-noise0" / "predictions.csv")["pred_class"]
    table = predicted(run, source)
    names = ["< 2", "2 to 3", "3 to 4", "≥ 4"]
    shares = table[[f"log_g_p_{name}" for name in names]].to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert [names.index(name) for name in table["log_g_class"]] == expected.tolist() == shares.argmax(axis=1).tolist()
    broken = np.where(np.arange(300)[:, None] < 256, np.nan, content["flux_NP"])
    assert specvit.load(run).predict(broken)["log_g_class"].isna().sum() == 256


@pytest.mark.slow
def test_seeds_are_averaged_and_their_spread_is_given(run_of: Any, observed: Any) -> None:
    runs = [run_of("vit", 'data.param="log_g,T_eff,M_H"', f"train.seed={seed}") for seed in (1, 2, 3)]
    single = [predicted(run, observed[0]) for run in runs]
    table = predicted(*runs, observed[0])
    for label in LABELS:
        values = np.stack([one[label] for one in single])
        np.testing.assert_allclose(table[label], values.mean(axis=0))
        np.testing.assert_allclose(table[f"{label}_run_sd"], values.std(axis=0, ddof=1))
    spreads = [f"{name}_run_sd" for name in LABELS]
    assert list(table) == ["file", "row", *LABELS, *spreads, *bars_of(*LABELS), "flux_snr", "masked", *FLAGS]
    assert (table[[*FLAGS]] >= single[0][[*FLAGS]]).all(axis=None)


def test_runs_that_do_not_fit_each_other_are_refused(
    run_of: Any, trained_classes: Path, reference_run: Any, write_set: Any, observed: Any, tmp_path: Path, capsys: Any
) -> None:
    run, source = run_of("vit"), observed[0]
    other = run_of("ridge")
    assert "predicts log_g, and the first run log_g, T_eff, M_H" in refusal(capsys, run, other, source)
    assert "predicts log_g in classes < 2, 2 to 3, 3 to 4, ≥ 4" in refusal(capsys, run, trained_classes, source)
    assert "is named twice; name each run once" in refusal(capsys, run, other, run, source)
    for split, rows in (("train", 64), ("val", 20), ("test", 20)):
        write_set(tmp_path / "short" / split, rows, pixels=128)
    data = [f"data.{key}={tmp_path}/short/{split}/dataset.h5" for key, split in zip(KEYS, SPLITS, strict=True)]
    short = reference_run(["data=hdf5", *data, "model=ridge", "tracking.live=false", "train.threads=1"])
    said = refusal(capsys, other, short, source)
    assert "has 128 pixels, 7100.00-7163.50 Å, 0.5 Å apart in vacuum; the first run was trained on 256 pixels" in said


KEYS, SPLITS = ("file_path", "val_path", "test_path"), ("train", "val", "test")


def test_runs_that_failed_or_learnt_nothing_are_known(run_of: Any, observed: Any, tmp_path: Path, capsys: Any) -> None:
    run = Path(shutil.copytree(run_of("ridge"), tmp_path / run_of("ridge").name))
    before = predicted(run, observed[0])
    for state, cause, expected in (
        ("diverged", "the loss is not finite", "ended as diverged: the loss is not finite, and a failed run predicts"),
        ("plateau", "it learnt nothing: val R² was 0.01", "WARNING: {} is a plateau: it learnt nothing"),
        ("preempted", "", "WARNING: {} has not finished (preempted); its best weights so far are used"),
    ):
        (run / "status.json").write_text(json.dumps({"state": state, "cause": cause}))
        if state == "diverged":
            assert expected in refusal(capsys, run, observed[0])
            continue
        pd.testing.assert_frame_equal(predicted(run, observed[0]), before)
        assert expected.format(run.name) in capsys.readouterr().err
    (run / "best.ckpt").unlink()
    assert "has no trained model yet" in refusal(capsys, run, observed[0])
    assert "is not a known run" in refusal(capsys, "ghost", observed[0])
    assert "names no run" in refusal(capsys, observed[0])
    said = refusal(capsys, run, observed[0], observed[0])
    assert f"{observed[0]}: is a file, not a run; name one source" in said, "a glob without quotes"
    assert f"a glob in quotes such as '{Path(observed[0]).parent}/*{Path(observed[0]).suffix}'" in said


def test_spectra_unlike_the_training_set_are_flagged(run_of: Any, observed: Any, tmp_path: Path, capsys: Any) -> None:
    trained = specvit.load(run_of("vit"))
    content = observed[1]
    flux_NP, error_NP = content["flux_NP"], content["error_NP"]
    usual = trained.predict(flux_NP[:64])
    assert not usual["not_finite"].any() and usual[["flux_outside"]].mean().item() < 0.1
    assert trained.predict(3 * flux_NP)["flux_outside"].all(), "flux in another unit"
    assert trained.predict(flux_NP[:, ::-1])["flux_outside"].mean() > 0.5, "other spectra"
    loud = flux_NP + 0.4 * evaluation_noise(np.arange(300), 256, seed=2, split="loud")
    assert trained.predict(loud)["snr_outside"].all() and (trained.predict(loud)["flux_snr"] < 5).all()
    holes = flux_NP[:64].copy()
    holes[3, :52], holes[9] = np.nan, np.inf
    table = trained.predict(holes, error_NP[:64])
    assert np.flatnonzero(table["not_finite"]).tolist() == [3, 9]
    assert table.loc[[3, 9], [*LABELS, "flux_snr"]].isna().all(axis=None)
    assert not table.loc[[3, 9], ["flux_outside", "snr_outside"]].any(axis=None)
    rest = [row for row in range(64) if row not in (3, 9)]
    pd.testing.assert_frame_equal(table.loc[rest], usual.loc[rest], check_exact=True)
    assert trained.predict(flux_NP[:5], np.where(np.arange(256) < 52, np.inf, error_NP[:5]))["not_finite"].all()


def test_a_clean_source_is_flagged_by_a_run_that_was_trained_with_noise(run_of: Any, stars: Any, capsys: Any) -> None:
    write_shard(Path("clean/stars.h5"), **stars(40, seed=5))
    assert predicted(run_of("vit", "noise.noise_level=2"), "clean/stars.h5")["snr_outside"].all()
    said = capsys.readouterr()
    assert "note: 40 of 40 spectra have less or more noise than any training spectrum (snr_outside)" in said.err
    assert "predicted 40 spectra: out.csv" in said.out
    assert not predicted(run_of("vit", "noise=none"), "clean/stars.h5")["snr_outside"].any()


def test_a_run_of_an_older_specvit_predicts_without_flags_of_the_range(
    run_of: Any, observed: Any, tmp_path: Path, capsys: Any
) -> None:
    run = Path(shutil.copytree(run_of("ridge"), tmp_path / "older-run"))
    new = predicted(run, observed[0])
    content = checkpoint.load(run / "best.ckpt")
    del content["training_range"]
    checkpoint.save(run / "best.ckpt", content)
    pd.testing.assert_frame_equal(predicted(run, observed[0]), new.drop(columns=["flux_outside", "snr_outside"]))
    assert "older-run: an older specvit trained it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_predicts_by_all_seeds_of_its_best_setting(study: Any, observed: Any, capsys: Any) -> None:
    made = study({"grids": [{"axes": {"opt.lr": [3e-3, 1e-6]}}], "seeds": [1, 2]}, {"opt.eta_min": 0})
    code, said = made.run()
    assert code == 0, said
    table = predicted("--study", made.folder.path, observed[0])
    said = capsys.readouterr().err
    assert "best setting of toy by test_r2: opt.lr=0.003" in said and "2 run(s)" in said
    assert "log_g_run_sd" in table
    trained = specvit.load(made.folder.path)
    assert len(trained.runs) == 2 and {run.config.opt.lr for run in trained.runs} == {3e-3}
    pd.testing.assert_series_equal(trained.predict(observed[1]["flux_NP"])["log_g"], table["log_g"])
    assert "does not go with runs" in refusal(capsys, "--study", made.folder.path, "run", observed[0])


def test_arrays_that_do_not_fit_are_one_sentence(run_of: Any, observed: Any) -> None:
    trained, content = specvit.load(run_of("ridge")), observed[1]
    flux_NP, wave_P = content["flux_NP"][:4], content["wave_P"]
    for arguments, said in (
        ((flux_NP[:, 1:],), "flux: has 255 pixels a spectrum, the run was trained on 256"),
        ((flux_NP, flux_NP[:2]), "error: has shape (2, 256), the flux (4, 256)"),
        ((flux_NP[None],), "flux: has shape (1, 4, 256) and type float64"),
        (([["a"] * 256],), "flux: has shape (1, 256) and type <U1"),
        ((flux_NP, None, wave_P / 10), "wave: has 256 pixels, 710.00-722.75 Å, 0.05 Å apart in vacuum; the run was"),
        (
            (flux_NP, None, wave_P + 0.02 * (np.arange(256) == 99)),
            "(up to 0.02 Å apart); bring the spectra to the run's pixels, its .wave.",
        ),
        ((flux_NP, None, 5.0), "wave: has 1 pixels"),
        ((flux_NP, None, flux_NP), "wave: has shape (4, 256) and type float64; give numbers, (pixels,)."),
        ((flux_NP, None, ["a"] * 256), "wave: has shape (256,) and type <U1"),
        (([[1, 2], [3]],), "flux: has rows of different lengths; give numbers, (spectra, pixels), or"),
    ):
        with pytest.raises(specvit.SpecvitError, match=re.escape(said)):
            trained.predict(*arguments)
    assert list(trained.predict(flux_NP[:0])) == list(trained.predict(flux_NP))
    assert trained.labels == ("log_g",) and trained.config.model.kind == "ridge"
    np.testing.assert_array_equal(trained.wave, wave_P)


def test_without_out_the_table_goes_to_standard_output(run_of: Any, observed: Any, capsys: Any) -> None:
    expected = predicted(run_of("ridge"), observed[0])
    capsys.readouterr()
    assert predict.main([str(run_of("ridge")), str(observed[0])]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(capsys.readouterr().out)), expected)
    assert predict.main([str(run_of("ridge")), str(observed[0]), "--out", "out.parquet"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("out.parquet"), expected)
