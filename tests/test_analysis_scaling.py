"""`specvit analysis scaling`: tables, laws and figure of runs on growing parts of a toy set, and what it refuses."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import mean_absolute_error, r2_score
from test_estimators import settings

from specvit.analysis.fit_verdict import bounds_of
from specvit.analysis.grouping import Series, TestSet, by_test_set, series_of
from specvit.analysis.records import read_runs, with_predictions
from specvit.analysis.scaling import Line, Point, Scaling, Score, pairs_of
from specvit.analysis.single_panel import draw_single
from specvit.commands.analysis import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.run.run import run
from specvit.study.store import StudyFolder, Trial

SIZES = (24, 48, 96, 192)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Return ridge with four sizes and two seeds, templates with two sizes, and a ViT whose epochs go with the size."""
    place = tmp_path_factory.mktemp("growing") / "outputs"
    common = [f"tracking.folder={place}", "tracking.progress=none"]
    for size in SIZES:
        for seed in (1, 2):
            words = settings(tiny, "ridge", f"data.num_samples={size}", f"train.seed={seed}", *common)
            run(build_config(compose(words)))
    for size in SIZES[1:3]:
        run(build_config(compose(settings(tiny, "template", f"data.num_samples={size}", *common))))
        epochs = f"train.epochs={192 // size}"
        run(build_config(compose([*tiny, f"data.num_samples={size}", epochs, *common])))
    return place


@pytest.fixture
def runs(growing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(growing, tmp_path / "outputs")).relative_to(tmp_path)


def predictions(run_id: str) -> pd.DataFrame:
    (path,) = Path("outputs").glob(f"*-{run_id}/predictions.csv")
    return pd.read_csv(path)


def written(place: Path, name: str = "scaling.json") -> Any:
    return json.loads((place / name).read_text())


def test_every_number_is_that_of_the_runs_it_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(runs)]) == 0
    out = runs / "scaling"
    assert f"written: {out}" in capsys.readouterr().out
    with (out / "scaling.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["series"], int(row["rows"])) for row in rows if row["series"] == "ridge"] == [
        ("ridge", size) for size in SIZES
    ]
    for row in rows:
        tables = [predictions(run_id) for run_id in row["run_ids"].split()]
        scores = [r2_score(table["true_log_g"], table["pred_log_g"]) for table in tables]
        errors = [mean_absolute_error(table["true_log_g"], table["pred_log_g"]) for table in tables]
        assert float(row["r2"]) == pytest.approx(np.mean(scores), rel=1e-9)
        assert float(row["mae"]) == pytest.approx(np.mean(errors), rel=1e-9)
        assert len(tables) == len(row["seeds"].split()) == (2 if row["series"] == "ridge" else 1)
        if len(tables) > 1:
            assert float(row["r2_sd"]) == pytest.approx(np.std(scores, ddof=1), rel=1e-6)
        assert float(row["r2_low"]) < float(row["r2"]) < float(row["r2_high"])
        assert (row["label"], row["unit"], row["noise_level"]) == ("log_g", "dex", "1.0") and "64 rows" in row[
            "test_set"
        ]


def test_the_json_is_by_size_as_other_scripts_read_it(runs: Path) -> None:
    main(["scaling", str(runs), "--out", "here"])
    sizes = written(Path("here"), "scaling_ridge.json")
    assert list(sizes) == [str(size) for size in SIZES]
    assert {"test_r2", "test_mae", "best_epoch", "run_ids", "seeds"} <= set(sizes["96"])
    whole = written(Path("here"))
    (ridge,) = (model for model in whole["models"] if model["name"] == "ridge")
    assert ridge["sizes"] == sizes
    low, high = ridge["law"]["limit"]["interval"]
    assert low <= ridge["law"]["limit"]["value"] <= high <= 1
    assert all(model["law"] is None for model in whole["models"] if model["name"] != "ridge")
    text = (Path("here") / "scaling.md").read_text()
    assert f"{sizes['96']['test_r2']:.3f}" in text and all(run_id in text for run_id in sizes["96"]["run_ids"])


def test_what_goes_with_the_size_makes_one_series(runs: Path) -> None:
    (found,) = by_test_set(with_predictions(read_runs([runs])[0], "log_g")[0])
    series = {one.name: one.sizes for one in series_of(found)}
    assert series == {"ridge": list(SIZES), "template": [48, 96], "vit c1d p32 h16 L1": [48, 96]}


def test_two_settings_at_one_size_are_two_series(runs: Path, tiny: list[str]) -> None:
    words = [*tiny, "data.num_samples=48", "train.epochs=3", f"tracking.folder={runs}", "tracking.progress=none"]
    run(build_config(compose(words)))
    (found,) = by_test_set(with_predictions(read_runs([runs])[0], "log_g")[0])
    names = [one.name for one in series_of(found) if one.name.startswith("vit")]
    assert len(names) == len(set(names)) == 3 and all("train.epochs=" in name for name in names)


def test_pairs_are_distinguished_from_chance(runs: Path) -> None:
    main(["scaling", str(runs), "--out", "here"])
    pairs = {(pair["ahead"], pair["behind"]): pair for pair in written(Path("here"))["overtaking"]}
    assert len(pairs) == 3
    for (ahead, behind), pair in pairs.items():
        assert pair["sizes"] == [48, 96]
        assert re.search(rf"{re.escape(ahead)} (is ahead of|overtakes) {re.escape(behind)} at ", pair["said"])
        assert "not counted" not in pair["said"]
    status = next(runs.glob("ridge-*-192-*")) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "diverged"}))
    assert main(["scaling", str(runs), "--out", "here"]) == 0
    for pair in written(Path("here"))["overtaking"]:
        named = "not counted, since they failed before the test: 1 of ridge" in pair["said"]
        assert named == ("ridge" in (pair["ahead"], pair["behind"])), pair


def test_runs_that_have_not_finished_stand_as_what_they_are(runs: Path) -> None:
    ridge = sorted(runs.glob("ridge*"))
    study = StudyFolder(Path("multirun/mine"))
    study.create()
    for number, folder in enumerate(ridge):
        config, run_id = yaml.safe_load((folder / "config.yaml").read_text()), folder.name.rpartition("-")[2]
        study.write_trial(Trial(number, folder.name, {}, "", config, run_id, str(folder.resolve())))
    gone = [folder for folder in ridge if "-192-" in folder.name]
    for folder in gone:
        shutil.rmtree(folder)
    assert len(gone) == 2 and main(["scaling", "multirun/mine", "--out", "here"]) == 0
    (model,) = written(Path("here"))["models"]
    assert list(model["sizes"]) == ["24", "48", "96"] and model["missing"] == {"192": {"waiting": 2}}
    assert "2 waiting" in (Path("here") / "scaling.md").read_text()


def test_published_points_and_ceilings_lie_under_the_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("points.csv").write_text("name,rows,snr,r2\nRidge (paper),100,,0.44\nRidge (paper),,8.2,0.2\n")
    (found,) = by_test_set(with_predictions(read_runs([runs])[0], "log_g")[0])
    ceiling = {
        "test_set": found.description,
        "label": "log_g",
        "ceilings": [{"van_trees_r2": 0.995, "crlb_mean_r2": -3.0}],
    }
    Path("ceiling.json").write_text(json.dumps(ceiling))
    words = ["scaling", str(runs), "--out", "here", "--reference", "points.csv", "--ceilings", "ceiling.json"]
    assert main(words) == 0
    whole = written(Path("here"))
    assert [point["r2"] for point in whole["reference"]] == [0.44] and whole["limit_at_most"] == 0.995
    table, _ = read_runs([runs])
    assert bounds_of([runs], table) == {}, "the verdict on a setting takes a bound from the folder alone"
    (runs / "ceiling").mkdir()
    shutil.move("ceiling.json", runs / "ceiling")
    assert bounds_of([runs], table) == dict.fromkeys(table.run_id, 0.995)
    assert "note" not in capsys.readouterr().out
    from PIL import Image

    with Image.open("here/scaling.png") as image:
        assert round(image.info["dpi"][0]) == 300 and len(image.convert("RGB").getcolors(2**24)) > 100
    assert Path("here/scaling.pdf").read_bytes()[:5] == b"%PDF-"


def test_the_difference_of_slopes_is_in_all_files(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", str(runs), "--out", "here"]) == 0
    shown, whole, text = capsys.readouterr().out, written(Path("here")), (Path("here") / "scaling.md").read_text()
    sizes = {model["name"]: model["sizes"] for model in whole["models"]}
    for pair in whole["overtaking"]:
        found = pair["slopes"]
        for line in ("ahead", "behind"):
            two = [sizes[pair[line]][str(size)]["test_r2"] for size in pair["sizes"]]
            assert found[line] == pytest.approx((two[1] - two[0]) / np.log10(2))
        assert found["difference"] == pytest.approx(found["ahead"] - found["behind"])
        assert found["low"] < found["difference"] < found["high"]
        assert found["paired"] == ("ridge" not in pair.values()), "of which there are two seeds"
        assert found["said"] in shown and found["said"] in text


def scaling_with(means: dict[str, list[float]]) -> Scaling:
    """Return three sizes of each kind of model, with R² as given."""
    lines = []
    for kind, values in means.items():
        model = build_config(compose([f"model={kind}"])).model
        run = SimpleNamespace(config=SimpleNamespace(model=model), seed=1, run_id=kind)
        points = [
            Point(
                rows,
                (run,),
                {"r2": Score(mean, None, mean - 0.05, mean + 0.05)},
                (1,),
                np.full(9, mean),
                {1: np.full(9, mean)},
            )
            for rows, mean in zip((50_000, 100_000, 200_000), values, strict=True)
        ]
        lines.append(Line(Series(kind, kind, {}), points, None, None))
    return Scaling("log_g", TestSet("a test set", "test", ()), lines, pairs_of(lines), 1.0)


def test_the_single_panel_has_its_form_hides_no_point_and_marks_a_crossing() -> None:
    curves = {"ridge": [0.44, 0.47, 0.48], "vit": [-4.0, 0.6, 0.9], "lightgbm": [0.49, 0.55, 0.57]}
    reference = [{"name": "ViT (published)", "rows": 5e5, "r2": 0.98}, {"name": "other", "rows": 1e6, "r2": 0.2}]
    axis = draw_single(scaling_with(curves), reference).axes[0]
    named = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert list(named) == ["ViT (p64_h64_L3)", "LightGBM", "Ridge", "ViT (published)", "other"]
    assert [line.get_color() for line in named.values()][:4] == ["#FFA500", "#2E8B57", "#4169E1", "#FFA500"]
    assert [line.get_marker() for line in named.values()][:4] == ["o", "s", "^", "o"]
    assert (axis.get_title(), axis.get_xscale()) == ("ViT vs Traditional ML Scaling Curve", "log")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["50k", "100k", "200k", "500k", "1M"]
    low, high = axis.get_ylim()
    assert low < -1.0 and high > 0.98 and axis.get_ylabel() == "Test R², ▼ below -1"
    crossing = np.exp(np.interp(0, [-4.49, 0.05], np.log([50_000, 100_000])))
    assert [text.get_text() for text in axis.texts] == [f"ViT > LGBM @{float(f'{crossing:.2g}') / 1000:g}k"]


def test_the_single_panel_keeps_its_range_and_marks_nothing_without_a_crossing() -> None:
    axis = draw_single(scaling_with({"vit": [0.5, 0.6, 0.65], "lightgbm": [0.4, 0.5, 0.6]}), []).axes[0]
    assert axis.get_ylim() == (0.3, 0.75) and list(axis.texts) == [] and axis.get_ylabel() == "Test R²"
    turned = draw_single(scaling_with({"vit": [0.5, 0.5, 0.5], "lightgbm": [0.4, 0.55, 0.6]}), []).axes[0]
    assert [text.get_text()[:11] for text in turned.texts] == ["LGBM > ViT "]
    scaling = scaling_with({"vit": [0.5, 0.5, 0.6], "lightgbm": [0.4, 0.55, 0.59]})
    (pair,) = scaling.pairs
    unsure = replace(pair, crossover=replace(pair.crossover, high=np.inf))
    (mark,) = draw_single(replace(scaling, pairs=[unsure]), []).axes[0].texts
    assert mark.get_text().startswith("ViT > LGBM @") and mark.get_text().endswith("k, not certain")


def test_published_scores_under_runs_at_another_noise_get_a_note(
    runs: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    quieter = ["data.num_samples=48", "noise.noise_level=0.2", "tracking.folder=quieter", "tracking.progress=none"]
    run(build_config(compose(settings(tiny, "ridge", *quieter))))
    note = "note: the published scores are those at noise level 1\n"
    for folder, noted in (("quieter", True), (str(runs), False)):
        assert main(["scaling", folder, "--out", "here", "--reference", "published"]) == 0
        assert (note in capsys.readouterr().out) == noted


def test_the_command_draws_it_in_300_dpi_and_as_pdf(runs: Path) -> None:
    assert main(["scaling", str(runs), "--out", "here", "--style", "single", "--reference", "published"]) == 0
    from PIL import Image

    with Image.open("here/scaling.png") as image:
        assert round(image.info["dpi"][0]) == 300 and image.width > 1.2 * image.height
    assert Path("here/scaling.pdf").read_bytes()[:5] == b"%PDF-"
    assert len(written(Path("here"))["reference"]) == 19


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["outputs", "--style", "singel"], "invalid choice: 'singel'"),
        (["outputs", "--label", "T_eff", "--reference", "published"], "has scores of log_g, not of T_eff"),
        (["nowhere"], "nowhere: is not a folder"),
        (["outputs", "--label", "T_eff"], "no finished run that predicts T_eff"),
        (["outputs", "--reference", "empty.csv"], "holds no point"),
        (["outputs", "--reference", "snr.csv"], "holds no point with rows"),
        (["outputs", "--ceilings", "empty.csv"], "holds no ceilings"),
    ],
)
def test_refusals_are_sentences(
    runs: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.csv").write_text("")
    Path("snr.csv").write_text("name,snr,r2\nViT,8,.7\n")
    assert main(["scaling", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("outputs/scaling").exists()
