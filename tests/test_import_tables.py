"""Tables of runs of W&B and MLflow: states, settings and scores in our words, and beside our own runs."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import epochs, make_run

from specvit.cli import main
from specvit.importing.run_table import read_run_table, summary


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(rows: list[dict[str, Any]], name: str = "runs.csv") -> Path:
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_ALL)
    table.writeheader()
    table.writerows(rows)
    Path(name).write_text("\ufeff" + stream.getvalue(), encoding="utf-8")
    return Path(name)


def wandb_rows() -> list[dict[str, Any]]:
    """Return the runs of an old sweep as W&B exports them: 94, of which 67 failed."""
    rows = []
    for number in range(94):
        ended = number % 7 in (0, 3) and number < 94 - 1
        about = {"Name": f"run-{number}", "State": "finished" if ended else ("failed", "crashed", "killed")[number % 3]}
        about |= {"Notes": "-", "User": "me", "Tags": "", "Created": "2025-12-01", "Runtime": 1328 if ended else 344}
        settings = {"model.proj_fn": ("CNN", "SW")[number % 2], "num_layers": 6, "lr": ("3e-4", 1e-3)[number % 4 // 2]}
        settings |= {
            "seed": number % 3 + 1,
            "loss": "MSE",
            "image_size": 4096,
            "scheme": ("old", "new")[number % 5 // 3],
        }
        scores = {"epoch": 50 if ended else 11, "val/R2": 0.5 + number / 1000 if ended else "", "mape": number / 7}
        rows.append({**about, **settings, **scores, "_step": number})
    return rows


def test_a_wandb_table_is_read_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    path = written(wandb_rows())
    table = read_run_table(path)
    assert summary(table).startswith("94 runs: 27 finished, 67 failed (")
    first, second = table.rows[:2]
    assert (first["state"], second["state"], first["seed"]) == ("completed", "crashed", 1)
    assert first["factors"] == {"model.proj_fn": "C1D", "opt.lr": 3e-4, "scheme": "old"}
    assert first["scores"] == {"val_r2": 0.5} and second["scores"] == {}
    assert main(["import", "runs.csv", "--out", "ours.csv"]) == 0
    said = capsys.readouterr().out
    assert "val/R2 -> val_r2" in said and "left out, neither a key nor a score here: mape" in said
    assert said.splitlines()[-1] == "beside your runs:  specvit analysis ablation outputs --table ours.csv"
    ours = read_run_table(Path("ours.csv"))
    assert [{**row, "seconds": 0} for row in ours.rows] == [{**row, "seconds": 0} for row in table.rows]
    assert main(["import", "runs.csv", "--out", "ours.csv"]) == 0  # the same again
    written(wandb_rows()[:9])
    assert main(["import", "runs.csv", "--out", "ours.csv"]) == 2


def test_an_mlflow_table_is_read_in_our_words() -> None:
    rows = [
        {
            "Run ID": "a",
            "Name": "x",
            "Status": "FINISHED",
            "model.patch_size": 16,
            "test_r2": 0.7,
            "Duration": "1.2min",
        },
        {"Run ID": "b", "Name": "y", "Status": "KILLED", "model.patch_size": 32, "test_r2": "", "Duration": "3s"},
        {"Run ID": "c", "Name": "z", "Status": "RUNNING", "model.patch_size": 64, "test_r2": "nan", "Duration": ""},
    ]
    table = read_run_table(written(rows))
    assert [row["state"] for row in table.rows] == ["completed", "cancelled", "running"]
    assert [row["factors"] for row in table.rows] == [{"model.patch_size": size} for size in (16, 32, 64)]
    assert [row["scores"] for row in table.rows] == [{"test_r2": 0.7}, {}, {}]


def test_what_stands_before_a_name_is_left_out() -> None:
    row = {"run_id": "a", "experiment_id": 0, "status": "FINISHED", "metrics.val_r2": 0.5, "params.lr": 0.1}
    rows = [row | {"tags.mlflow.runName": "x"}, row | {"params.lr": 0.2, "tags.mlflow.runName": "y"}]
    text = written(rows).read_text(encoding="utf-8-sig").replace(",", ";")
    Path("runs.csv").write_text(text, encoding="utf-8")
    first, second = read_run_table(Path("runs.csv")).rows
    assert (first["name"], first["factors"], first["scores"]) == ("x", {"opt.lr": 0.1}, {"val_r2": 0.5})
    assert (second["name"], second["factors"]) == ("y", {"opt.lr": 0.2})


def test_the_ablation_shows_a_table_beside_our_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, lr in enumerate((1e-3, 3e-4)):
        rows = epochs(train_r2=[0.2, 0.6], val_r2=[0.2, 0.5])
        settings = {"opt.lr": lr}
        make_run(
            place / "outputs" / f"toy-aaaa000{number}", "completed", rows=rows, summary={"test_r2": 0.5, **settings}
        )
    written(wandb_rows())
    assert main(["analysis", "ablation", "outputs", "--table", "runs.csv"]) == 0
    said = capsys.readouterr().out
    assert "2 runs: 2 finished" in said and "runs.csv: 94 runs: 27 finished, 67 failed" in said
    assert "it has no test_r2; its runs are ranked by val_r2, which is another score" in said
    assert "70 runs of the settings and seed of another, each counted as another seed" in said
    page = (place / "outputs/ablation/ablation.md").read_text()
    ours, theirs = page.split("## runs.csv")
    assert "94" not in ours.split("- finished:")[0] and "none is compared with those above" in theirs
    assert "| all |  | 94 | 27 | 0 | 67 |" in theirs and "| model.proj_fn | SW | 47 |" in theirs
    facts = json.loads((place / "outputs/ablation/ablation.json").read_text())
    assert facts["tables"][0]["metric"] == "val_r2" and len(facts["tables"][0]["settings"]) == 8
    lines = list(csv.DictReader((place / "outputs/ablation/ablation.csv").read_text().splitlines()))
    assert [line["table"] for line in lines].count("runs.csv") == 8


DAMAGED: dict[str, str] = {
    "has no rows below its header": "Name,State\n",
    "has no column State or Status": "Name,lr\na,1\n",
    "names a column twice: lr": "State,lr,lr\nfinished,1,2\n",
    "row 2: has 1 cells where the header has 2": "State,lr\nfinished\n",
    "row 2: has val/r2='50%', not a number": "State,val/r2\nfinished,50%\n",
    "row 2: has columns val/r2 and val_r2, both val_r2, that differ": "State,val/r2,val_r2\nfinished,0.5,0.6\n",
    "row 2: has the state 'dancing'": "State,lr\ndancing,1\n",
}


@pytest.mark.parametrize("words", DAMAGED)
def test_a_damaged_table_is_one_sentence(words: str, refused_import: Callable[[bytes], str]) -> None:
    assert words in refused_import(DAMAGED[words].encode())


def test_what_is_not_text_is_one_sentence(refused_import: Callable[[bytes], str]) -> None:
    assert "is not a CSV table" in refused_import(b"\x89HDF\r\n\x1a\n\xff\xfe")


@pytest.fixture
def refused_import(capsys: pytest.CaptureFixture[str]) -> Callable[[bytes], str]:
    """Return a function that imports a table and returns the sentence of its refusal."""

    def ask(content: bytes) -> str:
        Path("damaged.csv").write_bytes(content)
        assert main(["import", "damaged.csv"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("specvit: damaged.csv") and said.count("\n") == 1
        return said

    return ask
