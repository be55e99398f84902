"""Views of a cross-validation that score all of its folds together: growth, ceilings and reports; what is left out."""

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from shared import once
from sklearn.metrics import mean_absolute_error, r2_score

from specvit.analysis.bounds import r2_bounds as computing
from specvit.commands.analysis import main as analysis
from specvit.commands.data import main as data
from specvit.commands.train import main as train
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.run.run import run
from specvit.utils.quantities import PARAMS

FOLDS, STARS, SIZES, SEEDS = 4, 64, (16, 24), (1, 2)
TREES = ["model=lightgbm", "model.num_trees=20", "model.min_leaf_rows=4", "train.threads=1"]
pytestmark = pytest.mark.slow


def trained(file: Path, outputs: Path, *more: str, fold: int = 0) -> Path:
    """Fit trees on a fold of built-in spectra in a file; return the run's folder."""
    words = [*TREES, "data=hdf5", f"data.file_path={file}", f"data.folds={FOLDS}", f"data.fold={fold}"]
    words += ["tracking.progress=none", "tracking.live=false", f"tracking.folder={outputs}"]
    return run(build_config(compose([*words, *more]))).folder


@pytest.fixture(scope="session")
def made(shared: Path) -> Path:
    """Return a folder with `set.h5`, `STARS` built-in stars with ids, and runs of two sizes and seeds on it."""

    def make(folder: Path) -> None:
        assert data(["generate", "--out", str(folder), "--train", str(STARS), "--val", "1", "--test", "1"]) == 0
        (file,) = folder.glob("train_*/dataset.h5")
        file = file.rename(folder / "set.h5")
        name(file, np.random.default_rng(5).permutation(STARS).tolist())
        for size, seed, fold in itertools.product(SIZES, SEEDS, range(FOLDS)):
            trained(file, folder / "outputs", f"data.num_samples={size}", f"train.seed={seed}", fold=fold)

    return once(shared / "pooled_folds", make)


def name(file: Path, ids: list[int]) -> None:
    """Write the stars' ids into a file."""
    labels: Any = pd.read_hdf(file, PARAMS)
    labels.assign(star_id=ids).to_hdf(file, key=PARAMS, mode="a", format="table")


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs."""
    return Path(shutil.copytree(made / "outputs", tmp_path / "outputs"))


@pytest.fixture
def heard(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that gives what `specvit analysis` says, or its one sentence of refusal."""

    def ask(*words: Any) -> str:
        capsys.readouterr()
        code, said = analysis([*map(str, words)]), capsys.readouterr()
        assert code == 0 or (code == 2 and said.err.count("\n") == 1)
        return said.out + said.err

    return ask


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def predictions(runs: Path, ids: str) -> pd.DataFrame:
    """Return the predictions of all folds of a seed, by star."""
    paths = [path for run_id in ids.split() for path in runs.glob(f"*-{run_id}/predictions.csv")]
    assert len(paths) == FOLDS
    return pd.concat(map(pd.read_csv, paths)).set_index("star_id")[["true_log_g", "pred_log_g"]].sort_index()


def test_scores_by_size_are_those_of_all_stars_as_of_the_folds_command(runs: Path, heard) -> None:
    said = heard("scaling", runs)
    assert f"test set: {STARS} stars of " in said and "all 4 folds, noise 1, 16 runs\n" in said
    assert said.count("test set: ") == 1 and "left out" not in said
    heard("folds", runs)
    together = {row["data.num_samples"]: row for row in rows_of(runs / "folds" / "folds.csv")}
    rows = rows_of(runs / "scaling" / "scaling.csv")
    assert [(row["series"], row["rows"], row["seeds"]) for row in rows] == [("lightgbm", str(n), "1 2") for n in SIZES]
    for row in rows:
        seeds = [predictions(runs, " ".join(ids)) for ids in np.split(np.array(row["run_ids"].split()), len(SEEDS))]
        pairs = [stars.to_numpy().T for stars in seeds]
        assert all(len(stars) == STARS for stars in seeds)
        assert float(row["r2"]) == pytest.approx(np.mean([r2_score(*pair) for pair in pairs]), rel=1e-9)
        assert float(row["mae"]) == pytest.approx(np.mean([mean_absolute_error(*pair) for pair in pairs]), rel=1e-9)
        assert float(row["r2"]) == pytest.approx(float(together[row["rows"]]["r2"]), rel=1e-12)
        assert row["run_ids"] == together[row["rows"]]["run_ids"] and len(row["best_epochs"].split()) == 8
    whole = json.loads((runs / "scaling" / "scaling.json").read_text())
    assert "a row is a star" in whole["definitions"]["folds"]
    assert len(whole["models"][0]["sizes"]["16"]["run_ids"]) == FOLDS * len(SEEDS)


def test_a_seed_without_all_folds_is_left_out_and_named(runs: Path, made: Path, heard) -> None:
    (gone,) = runs.glob("lightgbm-*-24-f2of4-s2-*")
    shutil.rmtree(gone)
    for command in ("scaling", "folds"):
        assert "num_samples=24, seed 2: left out, 3 of 4 folds are tested" in heard(command, runs)
        rows = rows_of(runs / command / f"{command}.csv")
        assert [row["seeds"] for row in rows] == ["1 2", "1"]
    incomplete = [str(path) for path in runs.glob("lightgbm-*-24-*-s2-*")]
    said = heard("scaling", *incomplete, "--out", runs / "none")
    assert "has no setting with all folds: all, seed 2: left out, 3 of 4" in said


def test_folds_of_other_spectra_or_tested_twice_are_not_pooled(made: Path, runs: Path, tmp_path: Path, heard) -> None:
    """The file changes between two folds of a seed, and then a fold is run again."""
    file = Path(shutil.copy(made / "set.h5", tmp_path / "set.h5"))
    outputs = tmp_path / "changing"
    for fold in range(FOLDS):
        trained(file, outputs, fold=fold)
        if fold == 1:
            labels: Any = pd.read_hdf(file, PARAMS)
            labels.assign(log_g=labels["log_g"] + 0.1).to_hdf(file, key=PARAMS, mode="a", format="table")
    assert "seed 42: left out, its folds are of different spectra or labels" in heard("scaling", outputs)
    trained(file, outputs, fold=0)
    assert "fold 0 is tested by several runs; name the folders of the runs" in heard("folds", outputs)


def test_ceilings_are_of_the_stars_of_all_folds(
    made: Path, runs: Path, heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the same stars as one test set, in bins of S/N in which the runs are scored."""
    said = heard("ceiling", runs)
    assert f"{STARS} stars: " in said
    whole = json.loads((runs / "ceiling" / "ceiling.json").read_text())
    alone = "data.folds=0", "data.fold=0", f"data.val_path={made}/val_1/dataset.h5", f"data.test_path={made}/set.h5"
    other = Path(shutil.copy(made / "set.h5", tmp_path / "train.h5"))
    one = trained(other, tmp_path / "one", *alone)
    heard("ceiling", one)
    expected = json.loads((one / "ceiling" / "ceiling.json").read_text())["ceilings"]
    assert [row["rows"] for row in whole["ceilings"]] == [row["rows"] for row in expected]
    for row, same in zip(whole["ceilings"], expected, strict=True):
        assert [row[key] for key in ("crlb_mean_r2", "snr")] == pytest.approx(
            [same[key] for key in ("crlb_mean_r2", "snr")]
        )
    for model in whole["models"]:
        ids = [entry["run_id"] for entry in model["runs"]]
        stars = predictions(runs, " ".join(ids[:FOLDS]))
        assert model["bins"][0]["r2"][0] == pytest.approx(r2_score(*stars.to_numpy().T))
    heard("scaling", runs, "--ceilings", runs / "ceiling" / "ceiling.json")
    assert "no ceilings" not in heard("scaling", runs)


def test_a_star_of_several_spectra_has_no_ceiling(made: Path, tmp_path: Path, heard) -> None:
    file = Path(shutil.copy(made / "set.h5", tmp_path / "set.h5"))
    name(file, [n // 2 for n in range(STARS)])
    for fold in range(FOLDS):
        trained(file, tmp_path / "outputs", fold=fold)
    assert "has 2 spectra of star 0; a cross-validation scores the mean" in heard("ceiling", tmp_path / "outputs")
    assert f"{STARS // 2} stars ({STARS} spectra) of" in heard("scaling", tmp_path / "outputs")


def test_a_label_whose_runs_have_not_finished_does_not_hide_the_others(runs: Path, made: Path, heard) -> None:
    other = trained(made / "set.h5", runs, "data.param=M_H", "data.num_samples=16")
    status = json.loads((other / "status.json").read_text())
    (other / "status.json").write_text(json.dumps({**status, "state": "preempted"}))
    said = heard("folds", runs)
    assert "note: no finished run that predicts M_H" in said and "written: " in said


def test_settings_of_two_files_are_two_rows(made: Path, runs: Path, tmp_path: Path, heard) -> None:
    """Though no key of the configuration but the path differs."""
    file = Path(shutil.copy(made / "set.h5", tmp_path / "other.h5"))
    name(file, list(range(1000, 1000 + STARS)))
    for fold in range(FOLDS):
        trained(file, runs, "data.num_samples=16", "train.seed=1", fold=fold)
    said = heard("folds", runs)
    assert "left out" not in said and "not compared, since their stars or labels differ" in said
    rows = rows_of(runs / "folds" / "folds.csv")
    assert len(rows) == 3 and len({row["data.file_path"] for row in rows}) == 2


def test_the_report_of_a_study_has_the_figure_by_size(made: Path, tmp_path: Path, monkeypatch, heard) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()
    axes = f"{{data.num_samples: [{SIZES[0]}, {SIZES[1]}], data.fold: [0, 1, 2, 3]}}"
    trees = "model: lightgbm, model.num_trees: 20, model.min_leaf_rows: 4"
    fixed = f"{{{trees}, data: hdf5, data.file_path: {made / 'set.h5'}, data.folds: {FOLDS}, tracking.live: false}}"
    Path("sweeps/toy.yaml").write_text(f"overrides: {fixed}\ngrids: [{{axes: {axes}}}]\nseeds: [1]\n")
    assert train(["sweeps=toy"]) == 0
    heard("report", "toy")
    assert "figures/scaling.png" in Path("multirun/toy/report/report.md").read_text()


@pytest.fixture(autouse=True)
def few_stars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bounds fast."""
    monkeypatch.setattr(computing, "FIXED_STARS", 20)
