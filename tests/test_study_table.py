"""A study's table from run folders alone: mean, spread and count over seeds, in three forms."""

import csv
import io
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from handmade import ended, epochs, make_run, make_study, trial_of

from specvit.study.results import Outcome, escape_step, has_direction, is_r2, lower_is_better, outcome_of, value_of
from specvit.study.schema import Table
from specvit.study.store import StudyFolder
from specvit.study.table import factor_names, factors_of, render, table_rows
from specvit.utils.errors import ConfigError

SCORES = {("c1d", 1): 0.5, ("c1d", 2): 0.7, ("c1d", 3): 0.9, ("sw", 1): 0.25, ("sw", 2): None, ("sw", 3): None}


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Return two tokenizers times three seeds; of the second one, one run crashed and one never began."""
    runs, factors = [], []
    for number, ((tokenizer, seed), score) in enumerate(SCORES.items()):
        path = tmp_path / "outputs" / f"toy-0000000{number}"
        summary = {"test_r2": score, "test_mae": 1000.5 + seed, "best_epoch": 1} if score else None
        rows = epochs(val_r2=[0.0, 0.2 * seed], val_mae=[3.0 + seed, 2.0])
        state = "completed" if score else "crashed" if seed == 2 else ""
        runs.append(make_run(path, state, rows=rows, seconds=[2.0, 3.0], summary=summary))
        factors.append({"model/tokenizer": tokenizer, "train.seed": seed})
    made = make_study(
        tmp_path / "multirun" / "toy", runs, factors, table={"metric": "test_r2", "of": "val_r2", "above": 0.3}
    )
    ended(made, 4, "crashed", cause="it broke")
    return made


def read_csv(study: StudyFolder, *asked: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(*table_rows(study, *asked), "csv"))))


# values of a run


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("test_r2", 0.5),
        ("val_r2", 0.1),
        ("val_mae", 4.0),
        ("best_epoch", 2.0),
        ("train_seconds", 6.5),
        ("escape_step", None),
        ("test_bias", None),
        ("state", None),
        ("nothing", None),
    ],
)
def test_a_metric_is_the_summarys_or_the_best_epochs(metric: str, value: float | None, tmp_path: Path) -> None:
    rows = epochs(val_r2=[0.0, 0.1, 0.3], val_mae=[5.0, 4.0, 3.0])
    summary = {"test_r2": 0.5, "test_bias": float("nan"), "best_epoch": 2, "state": "completed"}
    run = make_run(tmp_path / "toy-00000001", "completed", rows=rows, seconds=[1.0, 2.5, 3.0], summary=summary)
    assert value_of(outcome_of(run), metric) == value


def test_an_unfinished_run_speaks_by_its_last_epoch_and_an_empty_one_not_at_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "toy-00000001", "running", rows=epochs(val_r2=[0.0, 0.1]))
    with open(run.file("metrics.jsonl"), "a") as stream:
        stream.write('{"step": 30, "val_r2": 0.')  # cut off in writing
    run.file("summary.json").write_text("[1]")
    assert value_of(outcome_of(run), "val_r2") == 0.1
    empty = outcome_of(make_run(tmp_path / "toy-00000002"))
    assert empty == Outcome({}, [], [])
    assert (empty.best_row, value_of(empty, "val_r2"), value_of(empty, "train_seconds")) == ({}, None, None)


@pytest.mark.parametrize(
    ("curve", "above", "step"),
    [
        ([0.0, 0.1, 0.2, 0.1, 0.3], 0.1, 30.0),
        ([0.0, 0.1], 0.1, None),
        ([0.2], 0.1, 10.0),
        ([None, 0.2], 0.1, 20.0),
        ([-0.5, 0.0, 0.1], 0.0, 30.0),
        ([], 0.1, None),
    ],
)
def test_a_run_escapes_at_the_first_step_above(curve: list[float | None], above: float, step: float | None) -> None:
    outcome = Outcome({}, epochs(val_r2=curve), [])
    table = Table("escape_step", of="val_r2", above=above)
    assert escape_step(outcome, table) == value_of(outcome, "escape_step", table) == step


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("test_r2", False),
        ("val_accuracy", False),
        ("val_mae", True),
        ("test_mae_T_eff", True),
        ("val_loss", True),
        ("best_val_loss", True),
        ("best_val_r2", False),
        ("test_p90", True),
        ("escape_step", True),
        ("train_seconds", True),
    ],
)
def test_less_of_an_error_is_better(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower
    assert lower_is_better(metric, {metric: "maximize"}) is False
    assert lower_is_better(metric, {metric: "minimize"}) is True
    assert has_direction(metric) and is_r2(metric) is ("r2" in metric) and not has_direction("test_bias")


# rows


def test_a_row_is_one_setting_over_its_seeds(study: StudyFolder) -> None:
    metric, (c1d, sw) = table_rows(study)
    assert metric == "test_r2"
    assert (c1d.factors, len(c1d.run_ids), c1d.values, c1d.states) == (
        {"model/tokenizer": "c1d"},
        3,
        [0.5, 0.7, 0.9],
        {"completed": 3},
    )
    assert (sw.factors, len(sw.run_ids), sw.values, sw.failed) == ({"model/tokenizer": "sw"}, 3, [0.25], 1)
    assert sw.ranked == [0.25, 0.0], "a run that crashed counts as R² 0, one that waits does not count"
    assert sw.states == {"completed": 1, "crashed": 1, "waiting": 1}


def test_rows_may_be_grouped_by_other_factors(study: StudyFolder) -> None:
    _, rows = table_rows(study, by=["train.seed"])
    assert [(row.factors, row.values) for row in rows] == [
        ({"train.seed": 1}, [0.5, 0.25]),
        ({"train.seed": 2}, [0.7]),
        ({"train.seed": 3}, [0.9]),
    ]
    _, rows = table_rows(study, by=["train.seed", "model/tokenizer"])
    assert [len(row.run_ids) for row in rows] == [1] * 6


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            ("test_r3",),
            "test_r3: is a metric that no finished run has; there are best_epoch, test_mae, test_r2, val_mae, val_r2",
        ),
        ((None, ["seed"]), "seed: is not varied by this study; it varies model/tokenizer, train.seed"),
    ],
)
def test_what_no_run_has_is_refused(asked: tuple[Any, ...], words: str, study: StudyFolder) -> None:
    with pytest.raises(ConfigError) as refusal:
        table_rows(study, *asked)
    assert words in str(refusal.value)


def test_a_run_that_has_not_escaped_has_no_value(study: StudyFolder) -> None:
    _, rows = table_rows(study, "escape_step")
    assert [(row.values, len(row.run_ids)) for row in rows] == [([20.0, 20.0], 3), ([], 3)]
    study.create(**{**study.about(), "table": {"metric": "test_r2", "of": None, "above": None}})
    with pytest.raises(ConfigError, match="escape_step: needs a threshold"):
        table_rows(study, "escape_step")


@pytest.mark.parametrize(
    ("metrics", "asked", "best"),
    [
        ({"test_r2": "maximize"}, None, "c1d"),
        ({"test_r2": "minimize"}, None, "sw"),
        ({"test_r2": "minimize"}, "val_r2", "c1d"),
        ({"test_r2": "maximize"}, "test_mae", "c1d"),  # sw has the lesser error, where it did not crash
    ],
)
def test_a_search_has_its_best_first(metrics: dict, asked: str | None, best: str, study: StudyFolder) -> None:
    study.create(**{**study.about(), "metrics": metrics})
    metric, rows = table_rows(study, asked, ["model/tokenizer"])
    assert metric == (asked or "test_r2")
    assert rows[0].factors == {"model/tokenizer": best}


def test_a_cell_is_a_factor_and_what_a_grid_does_not_vary_is_a_dash(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"toy-0000000{n}", "completed", summary={"test_r2": 0.1 * n}) for n in range(3)]
    factors = [{"cell": "old"}, {"cell": "old", "opt.lr": 1e-3}, {"cell": "new", "opt.lr": [1, 2]}]
    study = make_study(tmp_path / "toy", runs, factors)
    assert factor_names(map(factors_of, study.trials())) == ["cell", "opt.lr"]
    assert factors_of(trial_of(1, runs[1], factors[1])) == factors[1]
    assert [(row["cell"], row["opt.lr"]) for row in read_csv(study)] == [
        ("old", "-"),
        ("old", "0.001"),
        ("new", "[1, 2]"),
    ]


def test_without_a_finished_run_the_table_is_empty(tmp_path: Path) -> None:
    study = make_study(tmp_path / "toy", [make_run(tmp_path / "toy-00000001")], [{"opt.lr": 1}])
    (row,) = read_csv(study)
    assert (row["test_r2"], row["sd"], row["runs"], row["other"]) == ("", "", "0/1", "1 waiting")
    assert render(*table_rows(make_study(tmp_path / "none", [])), "text").split() == [
        "test_r2",
        "sd",
        "min",
        "max",
        "runs",
        "other",
    ]


# forms


def test_csv_parses_back_exactly(study: StudyFolder) -> None:
    c1d, sw = read_csv(study)
    values = [0.5, 0.7, 0.9]
    assert float(c1d["test_r2"]) == statistics.fmean(values)
    assert float(c1d["sd"]) == statistics.stdev(values)
    assert (float(c1d["min"]), float(c1d["max"]), c1d["runs"], c1d["other"]) == (0.5, 0.9, "3/3", "")
    assert sw == {
        "model/tokenizer": "sw",
        "test_r2": "0.125",
        "of the finished": "0.25",
        "sd": "",
        "min": "0.25",
        "max": "0.25",
        "runs": "1/3",
        "other": "1 crashed, 1 waiting",
    }


def test_markdown_has_one_cell_a_column(study: StudyFolder) -> None:
    assert render(*table_rows(study), "markdown").splitlines() == [
        "| model/tokenizer | test_r2 | of the finished | sd | min | max | runs | other |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| c1d | 0.7 | 0.7 | 0.2 | 0.5 | 0.9 | 3/3 |  |",
        "| sw | 0.125 | 0.25 |  | 0.25 | 0.25 | 1/3 | 1 crashed, 1 waiting |",
    ]


def test_text_is_aligned(study: StudyFolder) -> None:
    assert render(*table_rows(study, "test_mae"), "text").splitlines() == [
        "model/tokenizer  test_mae  sd  min    max    runs  other",
        "c1d              1,002     1   1,002  1,004  3/3",
        "sw               1,002         1,002  1,002  1/3   1 crashed, 1 waiting",
    ]


def test_a_cell_named_as_a_formula_or_with_a_pipe_stays_a_name(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "outputs" / f"toy-0000000{n}", "completed", summary={"test_r2": -0.5}) for n in (0, 1)]
    names = ["=HYPERLINK(1)", "a|b\nc"]
    study = make_study(tmp_path / "multirun" / "toy", runs, [{"cell": name, "train.seed": 1} for name in names])
    assert [(row["cell"], row["test_r2"]) for row in read_csv(study)] == [
        ("'=HYPERLINK(1)", "-0.5"),
        (names[1], "-0.5"),
    ]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in render(*table_rows(study), "markdown").splitlines()] == [
        8
    ] * 4
    assert len(render(*table_rows(study), "text").splitlines()) == 3
