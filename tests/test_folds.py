"""Cross-validation over stars: which star is in which fold, what is refused, and the scores of all folds together."""

import csv
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from shared import once
from sklearn.metrics import mean_absolute_error, r2_score
from test_estimators import settings

from specvit.commands.analysis import main as analysis
from specvit.commands.evaluate import main as evaluate
from specvit.commands.sweep import main as sweep
from specvit.commands.train import main as train
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.folds import folds_of
from specvit.data.shards import write_shard
from specvit.data.splits import Splits, open_splits
from specvit.data.views import open_spectra
from specvit.run.context import locate
from specvit.run.run import run
from specvit.utils.errors import DataError
from specvit.utils.quantities import PARAMS

FOLDS, STARS = 4, 150
LABELS = ["log_g", "T_eff", "M_H"]
Ids = list[Any]


def write_with_ids(stars: Callable[..., dict[str, Any]], ids: Ids, path: Path) -> Path:
    """Write a spectrum an id; those of one star share its labels."""
    made = stars(len(ids))
    labels = made["labels"].assign(star_id=ids)
    labels[LABELS] = labels.groupby("star_id", dropna=False)[LABELS].transform("first")
    write_shard(path, **made)
    labels.to_hdf(path, key=PARAMS, mode="a", format="table")
    return path


@pytest.fixture
def write_stars(stars: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Return `write(ids, name)`, which writes a set."""
    return lambda ids, name="set": write_with_ids(stars, ids, tmp_path / name / "dataset.h5")


def on_folds(tiny: list[str], path: Path, *more: str) -> list[str]:
    """Return the overrides of a run on one file without other sets."""
    kept = [text for text in tiny if "_path" not in text and "data.root" not in text]
    return [*kept, f"data.file_path={path}", f"data.folds={FOLDS}", *more]


@pytest.fixture
def words(tiny: list[str]) -> Callable[..., list[str]]:
    """Return `words(path, *more)`, the overrides of a ViT on folds."""
    return lambda path, *more: on_folds(tiny, path, *more)


def opened(overrides: list[str]) -> Splits:
    return open_splits(build_config(compose(overrides)), lambda *_: None)


def star_sets(splits: Splits) -> list[set[Any]]:
    return [set(view.labels()["star_id"]) for view in (splits.train, splits.val, splits.test)]


def test_each_star_is_tested_in_one_fold_and_never_in_two_sets_of_a_run(write_stars, words) -> None:
    ids = [int(n) for n in np.random.default_rng(0).integers(STARS, size=2 * STARS)]
    path = write_stars(ids)
    sets = [star_sets(opened(words(path, f"data.fold={fold}"))) for fold in range(FOLDS)]
    tested = [star for _, _, test in sets for star in test]
    assert sorted(tested) == sorted(set(ids))
    for number, (of_train, val, test) in enumerate(sets):
        assert of_train | val | test == set(ids) and len(of_train) + len(val) + len(test) == len(set(ids))
        assert val == sets[(number + 1) % FOLDS][2]
        assert 0.15 < len(test) / len(set(ids)) < 0.35


def test_the_fold_of_a_star_is_that_of_its_id_for_good(write_stars) -> None:
    numbers = [int(n) for n in range(1, 13)]
    forms: list[Ids] = [numbers, [float(n) for n in numbers], [str(n) for n in numbers], [f" {n}" for n in numbers]]
    found = [folds_of(open_spectra([write_stars(ids, f"set{n}")], -1), 5).tolist() for n, ids in enumerate(forms)]
    assert all(other == found[0] for other in found)
    assert found[0] == EXPECTED
    reversed_ids = folds_of(open_spectra([write_stars(numbers[::-1], "reversed")], -1), 5).tolist()
    assert reversed_ids == found[0][::-1]


EXPECTED = [0, 2, 1, 1, 0, 0, 0, 4, 0, 0, 4, 0]


def test_rows_may_be_a_part_of_each_split(write_stars, words) -> None:
    path = write_stars(list(range(STARS)))
    whole = opened(words(path))
    part = opened(words(path, "data.num_samples=40", "data.test_samples=10"))
    assert (len(part.train), len(part.val), len(part.test)) == (40, len(whole.val), 10)
    assert part.train.rows_N.tolist() == whole.train.rows_N[:40].tolist()
    chosen = opened(words(path, "data.num_samples=40", "data.subset=random")).train.rows_N
    assert set(chosen) < set(whole.train.rows_N) and chosen.tolist() != part.train.rows_N.tolist()


def test_a_fold_is_part_of_what_a_run_is(write_stars, words) -> None:
    path = write_stars(list(range(STARS)))
    folders = [locate(build_config(compose(words(path, f"data.fold={n}"))), lambda *_: None).folder for n in (0, 1, 1)]
    names = [folder.path.name for folder in folders]
    assert names[0].startswith("c1d-p32-h16-log_g-hdf5-all-f0of4-s42-") and names[0] != names[1] == names[2]


REFUSED = {
    "data.folds=5": ["data.folds: is set, but data=builtin makes other stars for each split"],
    "data.fold=1": ["data.fold: is 1, but data.folds=0 means no cross-validation"],
    "data=hdf5 data.file_path=a.h5 data.folds=2": ["data.folds: is 2, but training, validation and test take a fold"],
    "data=hdf5 data.file_path=a.h5 data.folds=3 data.fold=3": ["data.fold: is 3", "numbered from 0 to 2"],
    "data=hdf5 data.folds=5": ["data.file_path: is not set"],
    "data=hdf5 data.file_path=a.h5 data.folds=5 data.test_path=b.h5": ["data.test_path: is set, but data.folds=5"],
    "data=hdf5 data.file_path=a.h5 data.folds=5 data.val_path=b.h5": ["data.val_path: is set, but data.folds=5"],
}


@pytest.mark.parametrize("line", REFUSED)
def test_settings_that_do_not_go_with_folds_are_refused(line: str, refused: Callable[[list[str]], str]) -> None:
    said = refused(line.split())
    assert all(part in said for part in REFUSED[line])


def test_files_that_do_not_say_the_star_are_refused(write_set, write_stars, words, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column star_id, by which"):
        opened(words(write_set(tmp_path / "without", 40)))
    with pytest.raises(DataError, match=r"dataset.h5 row 2: has no star_id; give the star"):
        opened(words(write_stars([1.0, 2.0, float("nan"), 4.0], "gap")))
    with pytest.raises(DataError, match="leaves no star for the val set of fold 0"):
        opened(words(write_stars([3] * 40, "one"), "data.fold=0"))


SEEDS, LEVELS = (1, 2), (0.2, 1.0)


@pytest.fixture(scope="session")
def validated(shared: Path, stars: Any, tiny: list[str]) -> Path:
    """Return a folder of cross-validated runs of ridge; of the second seed at noise 1 a fold is missing."""

    def make(folder: Path) -> None:
        ids = [int(n) for n in np.random.default_rng(1).permutation(np.repeat(np.arange(60), 2))]
        path = write_with_ids(stars, ids, folder / "set" / "dataset.h5")
        for level, seed, fold in itertools.product(LEVELS, SEEDS, range(FOLDS)):
            if (level, seed, fold) != (1.0, 2, 3):
                more = [f"noise.noise_level={level}", f"data.fold={fold}", f"train.seed={seed}"]
                more += [f"tracking.folder={folder / 'outputs'}", 'data.param="log_g,M_H"']
                run(build_config(compose(settings(on_folds(tiny, path), "ridge", *more))))

    return once(shared / "validated", make) / "outputs"


@pytest.mark.slow
def test_scores_are_those_of_all_folds_together_over_stars(validated: Path, tmp_path: Path, capsys) -> None:
    made = tmp_path / "made"
    assert analysis(["folds", str(validated), "--out", str(made)]) == 0
    said = capsys.readouterr().out
    assert "seed 2: left out, 3 of 4 folds are tested" in said
    with (made / "folds.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted((row["label"], row["noise.noise_level"], row["seeds"]) for row in rows) == [
        ("M_H", "0.2", "1 2"),
        ("M_H", "1.0", "1"),
        ("log_g", "0.2", "1 2"),
        ("log_g", "1.0", "1"),
    ]
    for row in rows:
        scores = []
        for seed in row["seeds"].split():
            paths = [path for name in row["run_ids"].split() for path in validated.glob(f"*-s{seed}-{name}")]
            assert len(paths) == FOLDS
            whole = pd.concat([pd.read_csv(path / "predictions.csv") for path in paths])
            by_star = whole.groupby("star_id")[[f"true_{row['label']}", f"pred_{row['label']}"]].mean()
            assert len(by_star) == 60 == int(row["stars"])
            pair = by_star.to_numpy().T
            scores.append((r2_score(*pair), mean_absolute_error(*pair)))
        assert (float(row["r2"]), float(row["mae"])) == pytest.approx(tuple(np.mean(scores, axis=0)), rel=1e-9)
        assert float(row["r2_low"]) < float(row["r2"]) < float(row["r2_high"])
        assert (row["r2_sd"] != "") == (len(scores) > 1)
    pattern = r"log_g, noise.noise_level=\S+ against \S+: R² [+-]0.\d+ \[.*\], 60 stars; seeds 1( 2)? against 1( 2)?\n"
    assert re.search(pattern, said)
    facts = json.loads((made / "folds.json").read_text())
    worst = facts["worst"]["log_g"]
    errors = [abs(star["error"]) for star in worst]
    assert errors == sorted(errors, reverse=True) and len(errors) == 10
    for star in worst[:2]:
        assert star["predicted"] - star["true"] == pytest.approx(star["error"])
    assert "| star_id | true | predicted |" in (made / "folds.md").read_text()


@pytest.mark.slow
def test_stars_that_a_table_reader_would_take_for_one_are_two(write_stars, words, tmp_path: Path) -> None:
    """Also those named like a missing number; a setting on other stars is not compared, and the report says so."""
    ids = ["007", "7", "1e1", "10", "NA", "null", *(f"HD {n}" for n in range(54))]
    outputs = f"tracking.folder={tmp_path / 'outputs'}"
    for (name, level), fold in itertools.product((("a", 0.2), ("b", 1.0)), range(FOLDS)):
        path = tmp_path / name / "dataset.h5"
        path = path if path.exists() else write_stars(ids if name == "a" else ids[6:], name)
        more = [f"noise.noise_level={level}", f"data.fold={fold}", "train.seed=1", outputs]
        run(build_config(compose(settings(words(path), "ridge", *more))))
    assert analysis(["folds", str(tmp_path / "outputs"), "--out", str(tmp_path)]) == 0
    with (tmp_path / "folds.csv").open(newline="") as stream:
        assert sorted(row["stars"] for row in csv.DictReader(stream)) == ["54", "60"]
    assert "not compared, since their stars or labels differ" in (tmp_path / "folds.md").read_text()


@pytest.mark.slow
def test_one_id_for_several_stars_gets_a_note(write_stars, words, tmp_path: Path, capsys) -> None:
    path = write_stars([n // 2 for n in range(60)])
    labels = open_spectra([path], -1).labels()
    labels.loc[0, "log_g"] += 1.0
    labels.to_hdf(path, key=PARAMS, mode="a", format="table")
    for fold in range(FOLDS):
        more = [f"data.fold={fold}", f"tracking.folder={tmp_path / 'outputs'}"]
        run(build_config(compose(settings(words(path), "ridge", *more))))
    assert analysis(["folds", str(tmp_path / "outputs"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("note: 1 of 30 stars has spectra of different log_g") == 1


@pytest.mark.slow
def test_folds_of_one_seed_are_not_independent(validated: Path, tmp_path: Path) -> None:
    """They share training stars: an interval over them would be too narrow."""
    runs = [str(path) for path in validated.glob("ridge-*-s1-*")]
    assert len(runs) == 2 * FOLDS and analysis(["ablation", *runs, "--out", str(tmp_path)]) == 0
    (difference,) = json.loads((tmp_path / "ablation.json").read_text())["differences"]
    assert (difference["pairs"], difference["seeds"], difference["low"]) == (FOLDS, 1, None)


@pytest.mark.slow
def test_an_ablation_pairs_folds_with_folds(validated: Path, tmp_path: Path) -> None:
    assert analysis(["ablation", str(validated), "--out", str(tmp_path)]) == 0
    (difference,) = json.loads((tmp_path / "ablation.json").read_text())["differences"]
    assert (difference["pairs"], difference["seeds"]) == (7, 2)
    by_seed: dict[int, list[float]] = {1: [], 2: []}
    for seed, fold in itertools.product(SEEDS, range(FOLDS)):
        scores = {}
        for path in validated.glob(f"ridge-*-f{fold}of4-s{seed}-*/summary.json"):
            summary = json.loads(path.read_text())
            scores[summary["noise_level"]] = summary["test_r2"] if summary["state"] == "completed" else 0.0
        if len(scores) == 2:
            by_seed[seed].append(scores[difference["value"]] - scores[difference["base"]])
    assert difference["mean"] == pytest.approx(np.mean([np.mean(values) for values in by_seed.values()]))


@pytest.mark.slow
def test_a_network_is_cross_validated_by_a_study_whose_table_has_a_row_a_setting(
    write_stars, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_stars(list(range(60)))
    (tmp_path / "sweeps").mkdir()
    axes = "{data.fold: [0, 1, 2, 3], model/tokenizer: [c1d, sw]}"
    (tmp_path / "sweeps" / "toy.yaml").write_text(f"grids: [{{axes: {axes}}}]\nseeds: [1]\n")
    assert train(["sweeps=toy", *words(path)]) == 0
    capsys.readouterr()
    assert sweep(["table", "toy"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "fold" not in head and [row.split()[0] for row in rows] == ["c1d", "sw"]
    assert all(re.search(r" [0-4]/4", row) for row in rows)
    for more, name, said in (
        ([], "report.md", "- cross-validation over stars: 4 folds; scores and ± here are over folds and seeds"),
        (
            ["--template", "owner_zh"],
            "owner_zh.md",
            "| Noise level | 1 |\n| Cross-validation | 按恒星分为 4 折 |\n| Seeds",
        ),
    ):
        assert analysis(["report", "toy", "--out", "out", *more]) == 0
        assert said in (tmp_path / "out" / name).read_text()
    capsys.readouterr()
    assert analysis(["folds", "toy"]) == 0
    assert "log_g, model/tokenizer=sw against c1d: R²" in capsys.readouterr().out
    (first, *_) = sorted((tmp_path / "multirun" / "toy").glob("**/*f0of4*/best.ckpt"))
    assert evaluate([str(first.parent), "--data", str(path)]) == 0
    tested = len(pd.read_csv(first.with_name("predictions.csv")))
    assert f"note: {60 - tested} of 60 spectra are of stars that this fold trained" in capsys.readouterr().out
    assert evaluate([str(first.parent)]) == 0
    assert "of stars that this fold" not in capsys.readouterr().out


@pytest.mark.slow
def test_runs_without_folds_are_refused(reference_run, tiny, capsys) -> None:
    assert analysis(["folds", str(reference_run(tiny))]) == 2
    assert "holds no run of a cross-validation; train with data.folds=5" in capsys.readouterr().err
