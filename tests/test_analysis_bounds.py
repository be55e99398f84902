"""`specvit analysis ceiling`: what it writes about finished runs, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from bounds_fixtures import BUILTIN, ROWS, trained

from specvit.analysis.bounds.inputs import open_stars
from specvit.analysis.grouping import by_test_set
from specvit.analysis.published_points import read_reference
from specvit.analysis.records import Runs, read_runs, rows_of, with_predictions
from specvit.commands import evaluate
from specvit.commands.analysis import main
from specvit.commands.data import main as data_main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.metrics.scores import regression_scores
from specvit.physics.fisher import cramer_rao, information
from specvit.run_folder.folder import RunFolder
from specvit.study.store import StudyFolder, Trial
from specvit.utils.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(ceiling_runs: Path) -> Path:
    return ceiling_runs


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def log_g_runs(folders: list[Path]) -> tuple[Runs, list[str]]:
    """Return the finished runs that predict log_g, and all notes."""
    runs, notes = read_runs(folders)
    found, omitted = with_predictions(runs, "log_g")
    return found, notes + omitted


def test_a_folder_of_runs_becomes_tables_and_a_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("points.csv").write_text("name,snr,r2,source\nRidge,8.2,0.44,a paper\nRidge,4,0.2,a paper\n")
    assert main(["ceiling", str(runs), "--reference", "points.csv"]) == 0
    said, out = capsys.readouterr().out, runs / "ceiling"
    assert f"written: {out}" in said and "best R² of log_g, 160 stars" in said and "note:" not in said
    assert {path.name for path in out.iterdir()} == {f"ceiling.{end}" for end in ("csv", "md", "json", "png", "pdf")}
    assert (out / "ceiling.pdf").read_bytes()[:5] == b"%PDF-"
    from PIL import Image

    with Image.open(out / "ceiling.png") as image:
        assert round(image.info["dpi"][0]) == 300 and image.size[0] > 2000
        assert len(image.convert("RGB").getcolors(2**24)) > 100
    rows = lines_of(out / "ceiling.csv")
    assert [(row["name"], float(row["r2"])) for row in rows if row["kind"] == "reference"] == [
        ("Ridge", 0.44),
        ("Ridge", 0.2),
    ]
    whole = strict((out / "ceiling.json").read_text())
    assert whole["label"] == "log_g" and whole["stars_without_crlb"] == 0
    assert whole["reference"][0]["source"] == "a paper"
    assert {"r2", "snr", "van_trees", "crlb_mean", "crlb_median"} <= set(whole["definitions"])
    text = (out / "ceiling.md").read_text()
    for row in rows:
        if row["kind"] == "model" and row["by"] == "all":
            assert f"{float(row['r2']):.3f}" in text and row["run_ids"] in text
            assert "built-in" in row["test_set"] and row["snr_definition"].startswith("median over pixels")


def test_models_are_scored_in_bins_seed_by_seed(runs: Path) -> None:
    """Against predictions.csv itself, and against the bins of the runs' own summaries."""
    assert main(["ceiling", str(runs), "--out", "made/here"]) == 0
    whole = strict(Path("made/here/ceiling.json").read_text())
    assert [len(model["runs"]) for model in whole["models"]] == [2, 1]
    assert [model["name"].split("-")[0] for model in whole["models"]] == ["c1d", "sw"]
    for model in whole["models"]:
        for number, about in enumerate(model["runs"]):
            table = pd.read_csv(Path(about["folder"]) / "predictions.csv")
            summary = json.loads((Path(about["folder"]) / "summary.json").read_text())
            of_all, *bins = model["bins"]
            scores = regression_scores(table["true_log_g"].to_numpy(), table["pred_log_g"].to_numpy())
            assert of_all["r2"][number] == pytest.approx(scores["r2"])
            known = {("snr", row["low"], row["high"]): row["r2"] for row in summary["test_by_snr"]}
            known |= {("mag", row["low"], row["high"]): row["r2"] for row in summary["test_by_mag"]}
            for row in bins:
                assert row["r2"][number] == pytest.approx(known[row["by"], row["low"], row["high"]])
    first = whole["models"][0]["bins"][0]
    assert first["mean"] == pytest.approx(np.mean(first["r2"])) and first["sd"] == pytest.approx(
        np.std(first["r2"], ddof=1)
    )
    assert whole["models"][1]["bins"][0]["sd"] is None


def test_ceilings_are_those_of_the_bounds_and_in_order(runs: Path) -> None:
    """The Cramér-Rao rows are mean and median over the bin; fainter is harder; no trained model is above van Trees."""
    assert main(["ceiling", str(runs)]) == 0
    whole = strict((runs / "ceiling" / "ceiling.json").read_text())
    (run_one, *_) = rows_of(log_g_runs([runs])[0])
    stars = open_stars(run_one.config, None)
    variance_N = cramer_rao(information(stars.observe, stars.place_NL).free_amplitude(), 1) * 16
    label_N, mag_N = stars.labels_of("log_g"), stars.mag_N
    np.testing.assert_allclose(stars.signal_to_noise(), run_one.snr_N, rtol=1e-4)
    for row in whole["ceilings"]:
        if row["by"] == "snr":
            continue
        inside_N = np.ones(ROWS, bool) if row["by"] == "all" else (mag_N >= row["low"]) & (mag_N < row["high"])
        assert row["rows"] == inside_N.sum() and row["label_variance"] == pytest.approx(label_N[inside_N].var())
        assert row["crlb_mean_r2"] == pytest.approx(1 - variance_N[inside_N].mean() / label_N[inside_N].var())
        assert row["crlb_median"] == pytest.approx(np.median(variance_N[inside_N]))
    medians = [row["crlb_median_r2"] for row in whole["fixed_magnitudes"]]
    assert medians == sorted(medians, reverse=True) and medians[0] > 0.95
    for model in whole["models"]:
        for row, ceiling in zip(model["bins"], whole["ceilings"], strict=True):
            if ceiling["van_trees_r2"] is not None and row["mean"] is not None:
                assert row["mean"] < ceiling["van_trees_r2"] <= 1
    assert whole["ceilings"][0]["van_trees_r2"] > 0.5


def test_only_the_first_rows_if_asked(runs: Path) -> None:
    assert main(["ceiling", str(runs), "--rows", "50"]) == 0
    whole = strict((runs / "ceiling" / "ceiling.json").read_text())
    assert whole["ceilings"][0]["rows"] == 50
    for model in whole["models"]:
        table = pd.read_csv(Path(model["runs"][0]["folder"]) / "predictions.csv")[:50]
        scores = regression_scores(table["true_log_g"].to_numpy(), table["pred_log_g"].to_numpy())
        assert model["bins"][0]["r2"][0] == pytest.approx(scores["r2"])


@pytest.mark.slow
def test_other_noise_has_ceilings_of_its_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(runs, *BUILTIN, "noise.noise_level=0.5")
    trained(runs, *BUILTIN, "noise=none")
    assert main(["ceiling", str(runs), "--rows", "80"]) == 0
    said = capsys.readouterr().out
    assert "1 run left out: tested without noise" in said and "each of the 2 has its own folder" in said
    found = {}
    for name in ("noise1", "noise0.5"):
        (path,) = (runs / "ceiling").glob(f"*-{name}/ceiling.json")
        found[name] = strict(path.read_text())["ceilings"][0]
    assert found["noise1"]["crlb_median"] == pytest.approx(4 * found["noise0.5"]["crlb_median"], rel=1e-6)
    assert found["noise0.5"]["snr"] == pytest.approx(2 * found["noise1"]["snr"], rel=1e-6)
    assert found["noise0.5"]["van_trees"] < found["noise1"]["van_trees"]


@pytest.mark.slow
def test_a_group_that_has_no_ceilings_costs_itself_alone(
    runs: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ceiling", str(finished), str(runs), "--rows", "40"]) == 0
    assert "note: no ceilings for 64 rows of " in capsys.readouterr().out
    assert len(list(Path("ceiling").glob("*/ceiling.png"))) == 1


@pytest.mark.slow
def test_a_file_of_built_in_spectra_has_their_cramer_rao_bound(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no van Trees bound, since a file does not say how its stars were drawn."""
    assert data_main(["generate", "--out", "set", "--train", "128", "--val", "32", "--test", str(ROWS)]) == 0
    files = ["data=hdf5", "data.root=set", "data.file_path=train_*/dataset.h5", "data.val_path=val_32/dataset.h5"]
    of_file = trained(Path("filed"), *files, f"data.test_path=test_{ROWS}/dataset.h5")
    assert main(["ceiling", str(of_file)]) == 0
    assert main(["ceiling", str(runs)]) == 0
    filed, made = (strict((folder / "ceiling" / "ceiling.json").read_text())["ceilings"] for folder in (of_file, runs))
    assert filed[0]["crlb_median"] == pytest.approx(made[0]["crlb_median"], rel=1e-3)
    assert filed[0]["crlb_mean"] == pytest.approx(made[0]["crlb_mean"], rel=1e-3)
    assert all(row["van_trees"] is None for row in filed) and all(made[0][name] for name in ("van_trees", "snr"))
    assert "no van Trees bound" in (of_file / "ceiling" / "ceiling.md").read_text()


@pytest.mark.slow
def test_stars_that_move_and_one_sigma_a_spectrum(runs: Path) -> None:
    """The redshift is one unknown more, and may be the label; noise without a shape has ceilings, too."""
    moving = trained(Path("moving"), *BUILTIN, "data.max_redshift=0.001", "noise=homoscedastic", "data.param=redshift")
    assert main(["ceiling", str(moving), "--label", "redshift", "--rows", "60"]) == 0
    whole = strict((moving / "ceiling" / "ceiling.json").read_text())
    assert "redshifts up to 0.001" in whole["test_set"] and "one sigma a spectrum" in whole["test_set"]
    of_all = whole["ceilings"][0]
    assert 0.5 < of_all["van_trees_r2"] < 1 and 0.5 < of_all["crlb_median_r2"] < 1


@pytest.mark.slow
def test_stars_at_nodes_have_the_cramer_rao_bound_of_their_own_population(runs: Path) -> None:
    """The van Trees bound integrates over a density, which labels at nodes do not have."""
    at_nodes = trained(Path("nodes"), *BUILTIN, "data.label_prior=published")
    assert main(["ceiling", str(at_nodes)]) == 0
    whole = strict((at_nodes / "ceiling" / "ceiling.json").read_text())
    assert "published distribution of labels" in whole["test_set"] and whole["stars_without_crlb"] == 0
    assert all(row["van_trees"] is None for row in whole["ceilings"])
    assert 0.5 < whole["ceilings"][0]["crlb_median_r2"] < 1
    for row in whole["fixed_magnitudes"]:
        assert row["label_variance"] == pytest.approx(16 / 12 + 0.8 * 0.5**2 / 6)
    assert "no van Trees bound: it needs labels with a density" in (at_nodes / "ceiling" / "ceiling.md").read_text()


def test_a_study_is_a_folder_of_runs(runs: Path) -> None:
    study = StudyFolder(Path("multirun/mine"))
    study.create()
    for number, folder in enumerate(sorted(runs.iterdir())):
        run_id = folder.name.rpartition("-")[2]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        study.write_trial(Trial(number, folder.name, {}, "", config, run_id, str(folder.resolve())))
    found, notes = log_g_runs([study.path, runs])
    assert len(found) == 3 and notes == []


@pytest.mark.slow
def test_settings_of_one_name_are_distinguished(runs: Path) -> None:
    for lr in ("1e-3", "2e-3"):
        trained(runs, *BUILTIN, f"opt.lr={lr}")
    (one,) = by_test_set(log_g_runs([runs])[0])
    names = [setting.name for setting in one.settings]
    assert len(set(names)) == len(names) == 4 and sum("opt.lr=" in name for name in names) == 3


def test_runs_that_do_not_belong_are_named_and_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = sorted(runs.iterdir())
    status = json.loads((second / "status.json").read_text())
    (second / "status.json").write_text(json.dumps({**status, "state": "preempted"}))
    about = json.loads((third / "run.json").read_text())
    about["identity"]["data"]["test"]["builtin"] = 1
    (third / "run.json").write_text(json.dumps(about))
    assert RunFolder(second, "").state() == "preempted"
    found, notes = log_g_runs([runs])
    assert [folder.name for folder in found.folder] == [first.name]
    assert any("1 run left out: preempted" in note for note in notes) and any(
        "another specvit" in note for note in notes
    )


def test_both_forms_of_a_reference_file_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("name,snr,r2\nViT,8.2,0.75\n")
    (tmp_path / "b").write_text('[{"name": "ViT", "snr": 8.2, "r2": 0.75}]')
    assert read_reference(tmp_path / "a", "snr") == read_reference(tmp_path / "b", "snr")


def test_a_file_without_the_models_labels_or_out_of_its_grid(runs: Path) -> None:
    """As a file's stars, which are checked before anything is computed."""
    assert data_main(["generate", "--out", "set", "--train", "16", "--val", "16", "--test", "16"]) == 0
    test = Path("set/test_16/dataset.h5")
    whole = pd.read_hdf(test)
    config = build_config(
        compose(["data=hdf5", f"data.file_path={test}", f"data.val_path={test}", f"data.test_path={test}"])
    )
    changes = {"has no column C_M": whole.drop(columns="C_M"), "T_eff is 9000": whole.assign(T_eff=9000.0)}
    for refusal, table in changes.items():
        table.to_hdf(test, key="dataset/params", mode="a", format="table")
        with pytest.raises(DataError, match=refusal):
            open_stars(config, None)


def test_a_refusal_needs_no_torch(runs: Path) -> None:
    code = "import sys; from specvit.commands.analysis import main; main(['ceiling', 'nowhere']); "
    code += "sys.exit('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr


def test_an_evaluated_run_is_still_its_own(runs: Path) -> None:
    """What `evaluate` writes into a run folder does not become a run."""
    one = next(runs.iterdir())
    assert evaluate.main([str(one)]) == 0
    assert len(log_g_runs([runs])[0]) == 3 and len(log_g_runs([one])[0]) == 1
