"""Several studies in one analysis: what each of them fixes is a factor beside what they vary."""

from pathlib import Path

import pytest
from handmade import config, epochs, make_run, make_study

from specvit.analysis.comparisons import differences
from specvit.analysis.records import read_runs
from specvit.study.store import StudyFolder
from specvit.utils.errors import FolderError


def study_at(place: Path, level: float, scores: dict[tuple[int, int], float], name: str) -> StudyFolder:
    """Write a study of the patch, at one noise level; `scores` by patch and seed."""
    runs, factors = [], []
    for number, ((patch, seed), r2) in enumerate(scores.items()):
        plain = config(noise={"noise_level": level}, model={"patch_size": patch}, train={"seed": seed})
        rows = epochs(train_loss=[1.0, 0.5], val_r2=[0.1, r2])
        path = place / "outputs" / f"{name}-{name[0] * 4}{number:04d}"
        runs.append(make_run(path, "completed", rows=rows, summary={"test_r2": r2}, settings=plain))
        factors.append({"model.patch_size": patch, "train.seed": seed})
    return make_study(place / "multirun" / name, runs, factors)


def test_what_two_studies_fix_is_a_factor_of_both(tmp_path: Path) -> None:
    """At noise .2 patch 128 adds .1, at noise 1 it takes .2: pairs are made within a noise level."""
    quiet = {(64, 1): 0.80, (64, 2): 0.81, (128, 1): 0.90, (128, 2): 0.91}
    noisy = {(64, 1): 0.50, (64, 2): 0.51, (128, 1): 0.30, (128, 2): 0.31}
    studies = [study_at(tmp_path, 0.2, quiet, "bright"), study_at(tmp_path, 1.0, noisy, "dim")]
    runs, _ = read_runs([study.path for study in studies])
    assert {tuple(factors) for factors in runs.factors} == {("noise.noise_level", "model.patch_size")}
    found = {one.factor: one for one in differences(runs, "test_r2")}
    assert found["model.patch_size"].mean == pytest.approx((0.1 - 0.2) / 2)
    assert found["model.patch_size"].pairs == 4
    assert found["noise.noise_level"].mean == pytest.approx(((0.5 - 0.8) + (0.3 - 0.9)) / 2)
    alone, _ = read_runs([studies[0].path])
    assert {tuple(factors) for factors in alone.factors} == {("model.patch_size",)}


def test_runs_that_differ_in_no_setting_are_not_paired_at_random(tmp_path: Path) -> None:
    scores = {(64, 1): 0.8, (128, 1): 0.9}
    studies = [study_at(tmp_path, 0.2, scores, name) for name in ("before", "later")]
    with pytest.raises(FolderError, match="runs bbbb0000 and llll0000 have the same settings and seed"):
        differences(read_runs([study.path for study in studies])[0], "test_r2")
