"""Files of published points: the packaged one, scores by size as other scripts write them, a sentence a fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from specvit.analysis.published_points import read_reference
from specvit.utils.errors import DataError

SCORES = {"50k": {"test_r2": 0.434, "test_mae": 0.61, "best_epoch": 57}, "1M": {"test_r2": 0.711, "best_epoch": 96}}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(content: Any, name: str = "points.json") -> str:
    """Write text as it is, anything else as JSON; return the name."""
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def test_the_packaged_points_are_those_of_the_reference_set() -> None:
    by_rows = {(p["name"], p["rows"]): p["r2"] for p in read_reference("published", "rows")}
    sizes = (50_000, 100_000, 200_000, 500_000, 1_000_000)
    expected = {"ViT": (0.434, 0.596, 0.673, 0.709, 0.711), "LightGBM": (0.488, 0.553, 0.547, 0.574, 0.614)}
    expected["Ridge"] = (0.442, 0.475, 0.474, 0.490, 0.496)
    for model, scores in expected.items():
        assert tuple(by_rows[f"{model} (published)", size] for size in sizes) == scores
    by_snr = read_reference("published", "snr")
    vit = [(p["snr"], p["r2"]) for p in by_snr if p["name"] == "ViT (published)"]
    assert vit == [(3, 0.46), (4, 0.46), (5, 0.54), (6, 0.64), (7, 0.71), (10, 0.8), (15, 0.89), (21, 0.91)]
    binned = [p for p in by_snr if p["r2_low"]]
    assert len(binned) == 14 and all(float(p["r2_low"]) < p["r2"] < float(p["r2_high"]) for p in binned)
    written("name,rows,r2\nown,10,0.1\n", "published")
    assert len(read_reference("published", "rows")) == len(by_rows)
    assert [p["name"] for p in read_reference("./published", "rows")] == ["own"]


def test_scores_by_size_are_points_with_the_files_name_or_the_models() -> None:
    flat = read_reference(written(SCORES, "vit_run.json"), "rows")
    assert [(p["name"], p["rows"], p["r2"]) for p in flat] == [
        ("vit_run", 50_000, 0.434),
        ("vit_run", 1_000_000, 0.711),
    ]
    assert flat[0]["best_epoch"] == 57
    nested = read_reference(written({"ViT": SCORES, "Ridge": {"100000": {"test_r2": 0.475}}}), "rows")
    assert [(p["name"], p["rows"]) for p in nested] == [("ViT", 50_000), ("ViT", 1_000_000), ("Ridge", 100_000)]


def test_sizes_may_be_short_in_every_form() -> None:
    table = read_reference(
        written("# remark\n# another\nname, rows, r2\nViT, 50k, 0.4\nViT,1M,0.7\nViT,2e5,0.6\n"), "rows"
    )
    listed = read_reference(written([{"name": "ViT", "rows": size, "r2": 0.4} for size in ("50k", "1m", 2e5)]), "rows")
    assert [p["rows"] for p in table] == [p["rows"] for p in listed] == [50_000, 1_000_000, 200_000]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("# remark\nname,rows,r2\nViT,50k,0.4\nViT,fifty,0.4\n", "points.json line 4: rows or r2 is not a number"),
        ("# remark\n", "holds no point"),
        ('{"50k": {"test_r2": 0.4}, "50k": {"test_r2": 0.5}}', "has '50k' twice"),
        ({"50k": {"test_mae": 0.4}}, "points.json 50k: has no test_r2"),
        ({"50k": 0.4}, "points.json 50k: has no test_r2"),
        ({"50k": {"test_r2": None}}, "points.json 50k: needs name, rows, r2"),
        ({"50k": {"test_r2": True}}, "points.json 50k: rows or r2 is not a number"),
        ({"50k": {"test_r2": 43.4}}, "points.json 50k: rows 50000 with r2 43.4 is impossible"),
        ({"0.5M": {"test_r2": 0.4}}, "points.json 0.5M: is not a number of rows such as 50k or 1M"),
        ({"ViT": {"fifty": {"test_r2": 0.4}}}, "points.json ViT, fifty: is not a number of rows such as 50k or 1M"),
        ({"ViT": {"50k": {"r2": 0.4}}}, "points.json ViT, 50k: has no test_r2"),
        ({"ViT": 0.4}, "points.json ViT: is neither a number of rows such as 50k nor a model"),
        ({}, "holds no point"),
        ("[" * 100_000, "is not JSON (maximum recursion depth"),
        ([{"name": "ViT", "rows": 10**400, "r2": 0.4}], "points.json point 1: rows or r2 is not a number"),
        ("name,rows,r2\nViT,50k,0,43\n", "points.json line 2: has more cells than the 3 columns"),
        ("name,rows,r2,r2\nViT,50k,0.4,0.5\n", "has 'r2' twice"),
        (f"name,rows,r2\n{'V' * 200_000},50k,0.4\n", "is not CSV (field larger"),
    ],
)
def test_faults_name_their_place(content: Any, complaint: str) -> None:
    with pytest.raises(DataError) as fault:
        read_reference(written(content), "rows")
    assert complaint in str(fault.value) and "\n" not in str(fault.value)


def test_points_by_rows_are_none_by_snr() -> None:
    with pytest.raises(DataError, match="holds no point with snr"):
        read_reference(written(SCORES), "snr")
