"""What `specvit analysis ceiling` refuses, each in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(ceiling_runs: Path) -> Path:
    return ceiling_runs


@pytest.fixture
def refused(ceiling_refused: Callable[..., str]) -> Callable[..., str]:
    return ceiling_refused


def test_no_run_no_table(runs: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: holds no run" in refused("empty")
    assert "nowhere: is not a folder" in refused("nowhere")
    one = next(runs.iterdir())
    (one / "status.json").write_text(json.dumps({"state": "crashed"}))
    (one / "summary.json").unlink()
    assert "is not a finished run: crashed" in refused(one)
    assert not (tmp_path / "ceiling").exists() and not (one / "ceiling").exists()


def test_labels_that_have_no_ceilings(runs: Path, refused: Callable[..., str]) -> None:
    assert "did you mean log_g" in refused(runs, "--label", "log_h")
    assert "no prediction of T_eff" in refused(runs, "--label", "T_eff")
    assert "no ceilings for 'mag'" in refused(runs, "--label", "mag")


def test_odd_counts(runs: Path, refused: Callable[..., str]) -> None:
    for rows in ("1", "0", "-5", "some"):
        assert "--rows" in refused(runs, f"--rows={rows}")


def test_spectra_on_other_pixels_have_no_ceilings(finished: Path, refused: Callable[..., str]) -> None:
    assert "its pixels are not those of the built-in model" in refused(finished)
    assert not (finished / "ceiling").exists()


def test_a_test_set_that_has_changed_is_noticed(runs: Path, refused: Callable[..., str]) -> None:
    path = next(runs.iterdir()) / "predictions.csv"
    table = pd.read_csv(path)
    table.loc[7, "true_log_g"] += 0.01
    for changed in (table, table[:100]):
        changed.to_csv(path, index=False)
        assert "is not that of the test set" in refused(path.parent)


REFERENCES = [
    ("name,snr\nRidge,8\n", "line 2: needs name, snr, r2"),
    ("name,snr,r2\nRidge,eight,0.5\n", "line 2: snr or r2 is not a number"),
    ("name,snr,r2\nRidge,8,0.5\nRidge,9,1.5\n", "line 3: snr 9 with r2 1.5 is impossible"),
    ("name,snr,r2\nRidge,nan,0.5\n", "is impossible"),
    ("name,snr,r2\n", "holds no point"),
    ("", "holds no point"),
    ('[{"name": "Ridge", "snr": 8}]', "point 1: needs"),
    ('{"name": "Ridge"}', "points name: is neither a number of rows such as 50k nor a model"),
    ("[1, 2", "is not JSON"),
    ("[1, 2]", "point 1: needs"),
]


def test_bad_reference_files(runs: Path, refused: Callable[..., str]) -> None:
    for text, refusal in REFERENCES:
        Path("points").write_text(text)
        assert refusal in refused(runs, "--reference", "points")


def test_reference_files_that_are_none(runs: Path, refused: Callable[..., str]) -> None:
    assert "no such file" in refused(runs, "--reference", "nowhere.csv")
    Path("binary").write_bytes(bytes(range(128, 256)))
    assert "is not a text file" in refused(runs, "--reference", "binary")
    assert refused(runs, "--reference", runs)  # a folder
