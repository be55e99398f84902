"""The report of a search: its best setting with its values, what matters, and Optuna's own figures."""

from pathlib import Path

import optuna
import pytest
from handmade import ended, epochs, make_run, make_study, study
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from specvit.analysis.records import run_row, run_table
from specvit.analysis.study_report import _design
from specvit.commands.analysis import main
from specvit.config.schema import Config
from specvit.study.optuna_study import create, open_storage, search_figures
from specvit.study.results import Outcome
from specvit.study.status import status_lines
from specvit.study.store import StudyFolder

SEARCH = """
search:
  space: {opt.lr: {low: 1.0e-5, high: 1.0, log: true}, model/tokenizer: [c1d, sw]}
  metrics: {val_r2: maximize}
  trials: 6
"""
RATES = (0.0001, 0.006062205196547231, 0.02, 0.03, 0.05, 0.9)
SCORES = (0.2, 0.7, 0.6, 0.5, 0.4, -3.0)


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """Return a search of six trials, the last of which was pruned, with its record in Optuna."""
    monkeypatch.chdir(tmp_path)
    defined, runs = study(SEARCH), []
    factors = [{"opt.lr": rate, "model/tokenizer": "c1d"} for rate in RATES]
    for number, score in enumerate(SCORES):
        rows = epochs(train_loss=[1.0, 0.9], val_r2=[0.1, score])
        state, summary = ("completed", {"test_r2": score, "best_epoch": 2}) if score > -1 else ("pruned", {})
        runs.append(make_run(tmp_path / "outputs" / f"toy-aaaa000{number}", state, rows=rows, summary=summary))
    facts = {"kind": "search", "metrics": defined.search.metrics, "definition": defined.source}
    made = make_study(tmp_path / "multirun" / "toy", runs, factors, **facts)
    create(made, made.about(), defined)
    space = {
        "opt.lr": FloatDistribution(1e-5, 1.0, log=True),
        "model/tokenizer": CategoricalDistribution(["c1d", "sw"]),
    }
    for number, score in enumerate(SCORES):
        state, value = (TrialState.COMPLETE, score) if score > -1 else (TrialState.PRUNED, None)
        told = create_trial(params=factors[number], distributions=space, state=state, value=value)
        of_optuna(made).add_trial(told)
        ended(made, number, "completed" if score > -1 else "pruned")
    return made


def of_optuna(made: StudyFolder) -> optuna.Study:
    storage = open_storage(made, None)
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)


def test_optuna_knows_the_metrics_name_also_in_a_search_that_began_without_it(searched: StudyFolder) -> None:
    assert of_optuna(searched).metric_names == ["val_r2"]
    journal = searched.file("journal.log")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if "metric_names" not in line))
    assert of_optuna(searched).metric_names is None
    create(searched, searched.about(), study(SEARCH))
    assert of_optuna(searched).metric_names == ["val_r2"]
    assert len(of_optuna(searched).trials) == 6
    size = journal.stat().st_size
    create(searched, searched.about(), study(SEARCH))
    assert "metric_names" not in journal.read_text()[size:]


def test_the_design_lists_values_in_full_that_are_the_same_in_short() -> None:
    def design(*rates: float) -> str:
        rows = [
            run_row(f"{n:08d}", {"opt.lr": rate}, 1, "completed", Config(), Outcome({}, [], []))
            for n, rate in enumerate(rates)
        ]
        return next(_design({}, run_table(rows), "val_r2"))

    assert design(0.006062205196547231, 0.02) == "- opt.lr: 0.00606, 0.02"
    assert design(0.006062205196547231, 0.006062205196547239) == (
        "- opt.lr: 0.006062205196547231, 0.006062205196547239"
    )


@pytest.mark.slow
def test_the_report_has_the_best_setting_what_matters_and_three_more_figures(searched: StudyFolder) -> None:
    assert main(["report", "toy", "--out", "out"]) == 0
    text = Path("out/report.md").read_text()
    assert "best of 5 ended trials: opt.lr=0.00606, model/tokenizer=c1d, val_r2 0.7 (1 of 1 runs finished; " in text
    assert "share in reaching the best tenth of val_r2 (PED-ANOVA): " in text and "0.0060622" not in text
    for name in ("history", "importances", "parallel", "ablation", "curves"):
        assert f"![{name}](figures/{name}.png)" in text
        assert Path(f"out/figures/{name}.png").stat().st_size > 5000
    assert "5 finished, 1 pruned" in text


def test_a_search_without_its_record_in_optuna_is_reported_without_those_figures(searched: StudyFolder) -> None:
    searched.file("journal.log").unlink()
    assert search_figures(searched) == ({}, "")
    assert not searched.file("journal.log").exists()
    assert main(["report", "toy", "--out", "out"]) == 0
    assert "![ablation]" in Path("out/report.md").read_text() and not Path("out/figures/history.png").exists()


def test_status_has_the_settings_of_the_best_trial(searched: StudyFolder) -> None:
    *_, last = status_lines(searched)
    assert last == "best: val_r2 0.7  toy-aaaa0001  opt.lr=0.00606, model/tokenizer=c1d"
