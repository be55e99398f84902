"""`specvit analysis ablation`: counts, differences on the same seeds and verdicts, on runs whose answer is known."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import mixed_study
from scipy import stats

from specvit.analysis.ablation import best_first, combinations, stuck, tallies
from specvit.analysis.ablation_report import ablation_of, twin_sentences
from specvit.analysis.comparisons import differences, sentence
from specvit.analysis.figures import draw_ablation
from specvit.analysis.records import _independent, _joined, directions_of, read_runs, run_row
from specvit.analysis.records import run_table as table
from specvit.commands.analysis import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config, LightGBMConfig, NoiseConfig
from specvit.run.run import run
from specvit.study.results import Outcome
from specvit.study.schema import Definition, definition_of

CONFIG = Config()


def case(
    factors: dict[str, Any], seed: int = 1, *, state: str = "completed", r2: float | None = 0.5, **more: Any
) -> dict[str, Any]:
    """Return the columns of a run with one score; `rows` and `minutes` may be given."""
    rows = more.get("rows", [])
    summary = {} if r2 is None else {"test_r2": r2, "best_epoch": len(rows)}
    timing = [{"train_seconds": 60 * more.get("minutes", 1.0), "val_seconds": 0.0}]
    outcome = more.get("outcome", Outcome(summary, rows, timing))
    return run_row(f"{len(factors)}{seed:07d}", factors, seed, state, more.get("config", CONFIG), outcome)


def epochs(train: list[float], val: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": 10 * n, "epoch": n, "train_r2": t, "val_r2": v}
        for n, (t, v) in enumerate(zip(train, val, strict=True), 1)
    ]


def test_runs_are_counted_by_factor() -> None:
    cases = [
        case({"p": 16, "lr": 0.1}, minutes=2.0),
        case({"p": 16, "lr": 0.2}, state="early_stopped", minutes=4.0),
        case({"p": 32, "lr": 0.1}, state="plateau", minutes=50.0),
        case({"p": 32, "lr": 0.2}, state="diverged", r2=None),
        case({"p": 32, "lr": 0.3}, state="waiting", r2=None),
        case({"p": 32, "lr": 0.3}, state="preempted", r2=None),
        case({"p": 32, "lr": 0.3}, state="pruned", r2=None),
    ]
    found = {(tally.factor, tally.value): tally for tally in tallies(table(cases))}
    whole, wide = found["all", ""], found["p", "32"]
    assert (whole.total, whole.finished, whole.rate, whole.minutes) == (7, 2, 0.5, 3.0)
    assert (whole.unlearnt, whole.failed, whole.pruned, whole.open) == (1, 1, 1, 2)
    assert (wide.total, wide.finished, wide.unlearnt, wide.rate, wide.minutes) == (5, 0, 1, 0.0, None)
    assert wide.how == {"plateau": 1, "diverged": 1, "waiting": 1, "preempted": 1, "pruned": 1}
    assert found["lr", "0.3"].rate is None


def test_many_numbers_of_a_search_are_counted_by_quarters() -> None:
    cases = [case({"lr": 10.0**-n}) for n in range(12)]
    found = [tally for tally in tallies(table(cases)) if tally.factor == "lr"]
    assert len(found) == 4 and sum(tally.total for tally in found) == 12 and all(" to " in t.value for t in found)


def pairwise_of(cases: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(cases[::2], cases[1::2], strict=True))


def test_differences_are_between_runs_equal_in_all_else() -> None:
    """Patch 32 adds .1 whatever the rate and the seed; the rate, and the seed, move all by more."""
    rng = np.random.default_rng(0)
    cases = []
    for lr in (0.1, 0.2):
        for seed in (1, 2, 3):
            base = 0.4 + 2 * lr + 0.2 * seed
            for patch in (16, 32):
                r2 = base + 0.1 * (patch == 32) + 0.001 * rng.normal()
                cases.append(case({"patch": patch, "lr": lr}, seed, r2=r2))
    patch, lr = differences(table(cases), "test_r2")
    pairs = np.array([b["outcome"].summary["test_r2"] - a["outcome"].summary["test_r2"] for a, b in pairwise_of(cases)])
    assert (patch.factor, patch.base, patch.value, patch.pairs, patch.seeds) == ("patch", 16, 32, 6, 3)
    expected = stats.ttest_1samp(pairs.reshape(2, 3).mean(0), 0.0).confidence_interval(0.95)  # a rate a row
    assert (patch.low, patch.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert patch.mean == pytest.approx(0.1, abs=2e-3) and lr.mean == pytest.approx(0.2, abs=2e-3)
    assert patch.seed_sd == pytest.approx(0.2, rel=0.02)
    assert "smaller than the seed spread of 0.2" in sentence(patch, "test_r2")


def test_what_is_said_of_a_difference() -> None:
    def of(*values: tuple[float, float], metric: str = "test_r2") -> str:
        cases = [case({"p": p}, s, r2=pair[p]) for s, pair in enumerate(values) for p in (0, 1)]
        (found,) = differences(table(cases), "test_r2")
        return sentence(found, metric)

    assert of((0.1, 0.5), (0.11, 0.52), (0.12, 0.5)).endswith(": better")
    assert of((0.1, 0.5), (0.11, 0.52), (0.12, 0.5), metric="test_mae").endswith(": worse")
    assert of((0.1, 0.5), (0.11, 0.52), (0.12, 0.5), metric="test_bias").endswith(": more than chance")
    assert of((0.1, 0.5)).endswith("that says nothing of chance")
    assert of((0.1, 0.9), (0.2, 0.1), (0.15, 0.9)).endswith("may be chance")


def test_runs_without_a_partner_are_in_no_pair() -> None:
    cases = [case({"p": 1}, 1), case({"p": 2}, 2), case({"p": 2, "q": 1}, 1), case({"p": 2}, 1, r2=None)]
    assert all(found.factor != "p" for found in differences(table(cases), "test_r2"))


@pytest.mark.parametrize(
    ("train", "val", "test", "verdict", "among_trees", "under_bound"),
    [
        (0.9, 0.7, 0.7, "strongly overfit", "strongly overfit", "strongly overfit"),
        (0.78, 0.7, 0.7, "mildly overfit", "mildly overfit", "mildly overfit"),
        (0.77, 0.7, 0.7, "balanced", "balanced", "balanced"),
        (0.5, 0.5, 0.5, "balanced", "underfit", "balanced"),  # trees have .6
        (0.4, 0.4, 0.4, "balanced", "underfit", "underfit"),  # half of the bound is .45
    ],
)
def test_verdicts_are_rules_on_the_gap_and_against_trees_and_the_bound(
    train: float, val: float, test: float, verdict: str, among_trees: str, under_bound: str
) -> None:
    own = case({"p": 1}, r2=test, rows=epochs([0.0, train], [0.0, val]))
    assert [one.verdict for one in combinations(table([own]), "test_r2")] == [verdict]
    assert [one.verdict for one in combinations(table([own]), "test_r2", {own["run_id"]: 0.9})] == [under_bound]
    noisier = replace(CONFIG, noise=NoiseConfig(noise_level=2.0))
    for config, expected in ((CONFIG, among_trees), (noisier, verdict)):  # trees on other rows are no measure
        trees = case({"p": 2}, r2=0.6, config=replace(config, model=LightGBMConfig()))
        assert combinations(table([own, trees]), "test_r2")[0].verdict == expected


@pytest.mark.parametrize("state", ["plateau", "diverged", "pruned", "preempted", "running", "waiting", "crashed"])
def test_runs_that_did_not_finish_or_learn_get_no_verdict_and_are_in_no_gap(state: str) -> None:
    bad = case({"p": 1}, 1, state=state, rows=epochs([0.0, 0.9], [0.0, 0.1]))
    good = case({"p": 1}, 2, rows=epochs([0.0, 0.7], [0.0, 0.7]))
    (alone,), (both,) = combinations(table([bad]), "test_r2"), combinations(table([bad, good]), "test_r2")
    assert (alone.gap, alone.verdict, both.gap, both.verdict) == (None, "", 0.0, "balanced")


def test_steps_to_leave_the_plateau() -> None:
    rows = epochs([0.0] * 4, [0.0, 0.05, 0.2, 0.4])
    (found,) = combinations(table([case({}, 1, rows=rows), case({}, 2, rows=rows[:2])]), "test_r2")
    assert found.escapes == (30.0, None)


def test_steps_to_leave_the_plateau_are_a_metric_like_any_other() -> None:
    """Of a run that was out at its first look, too; a run that never was is in no mean, and a sentence says so."""

    def run_of(p: int, seed: int, *val: float, state: str = "early_stopped") -> dict[str, Any]:
        return case({"p": p}, seed, state=state, rows=epochs([0.0] * len(val), list(val)))

    cases = [run_of(1, 1, 0.0, 0.2), run_of(1, 2, 0.0, 0.3), run_of(2, 1, 0.4), run_of(2, 2, 0.3)]
    cases += [run_of(3, 1, 0.0, 0.0, 0.0, state="plateau"), run_of(3, 2, 0.0, 0.5)]
    combined = combinations(table(cases), "escape_step")
    assert [one.values for one in combined] == [(20.0, 20.0), (10.0, 10.0), (20.0,)]
    assert stuck(combined) == ["p=3: 1 of 2 runs left the plateau within 30 steps"]
    late = [run_of(4, 1, 0.2), run_of(4, 2, 0.05, 0.05)]  # it learnt, but never left the plateau: the other is no best
    ordered = best_first(combinations(table([*late, *cases]), "escape_step"), "escape_step")
    assert [one.factors["p"] for one in ordered] == [2, 1, 4, 3]
    first, second = differences(table(cases), "escape_step")
    assert (first.mean, first.pairs, second.mean, second.pairs, second.horizon) == (-10.0, 2, 5.0, 2, 30.0)
    assert sentence(first, "escape_step").endswith("may be chance"), "steps are known to the nearest look only"
    assert sentence(second, "escape_step") == (
        "p=3 against 1: escape_step +5 within 30 steps, 2 pairs, 2 seeds, "
        "1 of 2 left the plateau with 3; 2 of 2 left the plateau with 1: 2 seeds are too few to test it"
    )


def test_steps_off_the_plateau_need_five_seeds_where_some_runs_never_left_it() -> None:
    """All runs of one setting left at once, none of the other ever did."""

    def said_of(seeds: int) -> str:
        left, stuck = epochs([0.0], [0.5]), epochs([0.0] * 9, [0.0] * 9)
        cases = [case({"p": 1}, seed, state="plateau", rows=stuck) for seed in range(seeds)]
        cases += [case({"p": 2}, seed, rows=left) for seed in range(seeds)]
        return sentence(*differences(table(cases), "escape_step"), "escape_step")

    assert said_of(3).endswith("3 seeds are too few to test it") and said_of(5).endswith("better")


@pytest.mark.slow
def test_a_study_says_itself_what_its_metric_is_and_where_its_plateau_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = mixed_study(tmp_path)
    table = {"metric": "escape_step", "of": "val_r2", "above": 0.9999}
    about = json.loads(study.file("study.json").read_text())
    study.file("study.json").write_text(json.dumps({**about, "table": table}))
    assert main(["ablation", str(study.path), "--out", "here"]) == 0
    assert main(["report", str(study.path), "--out", "page"]) == 0
    whole = json.loads(Path("here/ablation.json").read_text())
    assert whole["metric"] == "escape_step" and "val_r2 > 0.9999" in whole["definitions"]["escape"]
    text = Path("page/report.md").read_text()
    assert "metric: escape_step" in text and "0 of " in text and "val_r2 > 0.9999" in text
    assert main(["ablation", str(study.path), "--out", "here", "--metric", "test_r2"]) == 0
    assert json.loads(Path("here/ablation.json").read_text())["metric"] == "test_r2"


def test_what_follows_from_other_factors_is_no_factor_of_its_own() -> None:
    grid = [{"cell": cell, "size": size, "epochs": 8 // size} for cell in ("a", "b") for size in (1, 2, 4)]
    assert _independent(grid) == [{"cell": row["cell"], "size": row["size"]} for row in grid]
    cells = [{"cell": "old", "init": "legacy"}, {"cell": "new", "init": "ours"}]
    assert _independent(cells) == [{"cell": "old"}, {"cell": "new"}]


def test_pairs_of_a_seed_count_once_however_many_they_are() -> None:
    """C1D and SW are twins here, so that each difference stands there twice and says no more for it."""
    r2 = {(16, 1): 0.51, (16, 2): 0.52, (32, 1): 0.61, (32, 2): 0.64}
    cases = [case({"p": p, "t": t}, s, r2=r2[p, s]) for t in ("c1d", "sw") for p in (16, 32) for s in (1, 2)]
    alone = [one for one in cases if one["factors"]["t"] == "sw"]
    twice, once = differences(table(cases), "test_r2")[0], differences(table(alone), "test_r2")[0]
    assert (twice.pairs, twice.seeds, once.pairs) == (4, 2, 2)
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))


def test_with_one_seed_the_interval_is_over_its_pairs() -> None:
    r2 = {16: [0.5, 0.6, 0.7], 32: [0.6, 0.72, 0.81]}
    cases = [case({"p": p, "lr": lr}, 7, r2=values[lr]) for p, values in r2.items() for lr in range(3)]
    found = differences(table(cases), "test_r2")[0]
    expected = stats.ttest_1samp([0.1, 0.12, 0.11], 0.0).confidence_interval(0.95)
    assert (found.pairs, found.seeds, found.low) == (3, 1, pytest.approx(expected.low))
    assert "3 pairs, 1 seed:" in sentence(found, "test_r2")


def test_twins_of_one_seed_are_no_evidence() -> None:
    """Runs with the same record, epoch by epoch; the same score alone makes no twins."""

    def pairs_of(*records: float) -> list[dict[str, Any]]:
        found = []
        for n, record in enumerate(records):
            for p, r2 in ((16, 0.5), (32, 0.6)):
                found.append(case({"p": p, "t": n}, r2=r2, rows=epochs([0.0, 0.0], [record, r2])))
        return found

    twins, others = (differences(table(pairs_of(*records)), "test_r2")[0] for records in ((0.1, 0.1), (0.1, 0.2)))
    assert (twins.pairs, twins.low) == (1, None) and "says nothing of chance" in sentence(twins, "test_r2")
    assert others.pairs == 2


def test_a_setting_that_explodes_on_two_of_three_seeds_does_not_win() -> None:
    cases = [case({"lr": "low"}, seed, r2=0.5 + 0.001 * seed) for seed in (1, 2, 3)]
    cases += [case({"lr": "high"}, 1, r2=0.6)]
    cases += [case({"lr": "high"}, seed, state="diverged", r2=None) for seed in (2, 3)]
    cases += [case({"lr": "higher"}, seed, state="plateau", r2=-14.0 - seed) for seed in (1, 2, 3)]
    combined = combinations(table(cases), "test_r2")
    assert [one.factors["lr"] for one in best_first(combined, "test_r2")] == ["low", "high", "higher"]
    high = combined[1]
    assert (high.score, high.mean, high.finished, len(high.records)) == (pytest.approx(0.2), 0.6, 1, 3)
    partly, _ = differences(table(cases), "test_r2")
    (wholly,) = differences(table([one for one in cases if one["factors"]["lr"] != "high"]), "test_r2")
    assert partly.mean == pytest.approx(0.2 - 0.502) and partly.seed_sd == pytest.approx(0.001)
    assert sentence(partly, "test_r2").endswith("3 seeds, 2 of 3 diverged with high, counted as R² 0: may be chance")
    assert wholly.mean == pytest.approx(-0.502)
    assert sentence(wholly, "test_r2").endswith("3 of 3 stayed on the plateau with higher, counted as R² 0: worse")


def test_a_setting_of_which_no_run_finished_is_last_however_bad_the_others_are() -> None:
    """As by R² of a label that the others do not predict: 0 for a failed run is more."""
    cases = [case({"lr": 1}, state="diverged", r2=None), case({"lr": 2}, r2=-0.1), case({"lr": 3}, r2=-0.3)]
    assert [one.factors["lr"] for one in best_first(combinations(table(cases), "test_r2"), "test_r2")] == [2, 3, 1]


def test_a_search_names_its_best_setting_and_pairs_no_sampled_rates() -> None:
    cases = [case({"lr": 10.0**-n, "size": n % 2}, r2=0.1 * n) for n in range(5)]
    cases.append(case({"lr": 3.0, "size": 1}, state="diverged", r2=None))
    found = ablation_of(table(cases), "test_r2", "toy", {}, search=True)
    (sentence,) = found.sentences
    assert sentence.startswith("best of 6 ended trials: lr=0.0001, size=0, test_r2 0.4 (1 of 1 runs finished; ")


def test_a_search_ranks_and_judges_by_the_direction_that_it_was_given(tmp_path: Path) -> None:
    """A bias has none of its own."""

    def bias(setting: str, seed: int, value: float) -> dict[str, Any]:
        return case({"opt": setting}, seed, outcome=Outcome({"val_bias": value}, [], []))

    cases = [bias(name, seed, at * (1 + 0.01 * seed)) for name, at in (("a", 0.5), ("b", 0.1)) for seed in range(4)]
    said = {"minimize": ("b", "better"), "maximize": ("a", "worse")}
    for direction, (best, word) in said.items():
        place = tmp_path / direction
        place.mkdir()
        (place / "study.json").write_text(json.dumps({"format": 1, "metrics": {"val_bias": direction}}))
        asked = directions_of([place])
        found = ablation_of(table(cases), "val_bias", "toy", {}, search=True, asked=asked)
        assert found.sentences[0].startswith(f"best of 8 ended trials: opt={best}, "), direction
        assert found.sentences[-1].endswith(f": {word}"), found.sentences
        labels = [text.get_text() for text in draw_ablation(found).axes[0].get_yticklabels()]
        assert labels[-1] == f"opt={best}", "the best is on top"
    assert directions_of([tmp_path / "minimize", tmp_path / "maximize"]) == {}


def test_no_verdict_by_a_metric_that_a_failed_run_does_not_have() -> None:
    def mae(lr: str, seed: int, value: float | None, state: str = "completed") -> dict[str, Any]:
        outcome = Outcome({"test_mae": value} if value else {}, [], [])
        return case({"lr": lr}, seed, state=state, outcome=outcome)

    cases = [mae("low", seed, 0.2 + 0.001 * seed) for seed in (1, 2, 3)]
    cases += [mae("high", 1, 0.1), mae("high", 2, 0.1), mae("high", 3, None, "oom")]
    ordered = best_first(combinations(table(cases), "test_mae"), "test_mae")
    assert [one.factors["lr"] for one in ordered] == ["low", "high"]
    (found,) = differences(table(cases), "test_mae")
    assert found.p is None and sentence(found, "test_mae").endswith(
        "1 of 3 ran out of memory with high: no verdict, since a run that has not learnt has no test_mae"
    )


@pytest.mark.parametrize("state", ["running", "queued", "preempted", "timeout", "waiting", "", "pruned", "cancelled"])
def test_a_run_that_has_not_ended_by_itself_is_compared_by_no_metric(state: str) -> None:
    rows = epochs([0.0, 0.4], [0.0, 0.4])
    cases = [case({"p": 1}, rows=rows), case({"p": 2}, state=state, r2=None, rows=rows)]
    for metric in ("val_r2", "test_r2", "train_seconds", "escape_step"):
        assert not differences(table(cases), metric) and not combinations(table(cases), metric)[1].ranked


def test_a_word_needs_all_comparisons_of_a_table_where_an_interval_needs_one() -> None:
    """Of eight settings that are all the same, one looks better than the first, by itself."""
    rng = np.random.default_rng(16)
    cases = [case({"p": p}, seed, r2=0.5 + 0.01 * rng.normal()) for p in range(8) for seed in range(5)]
    found = differences(table(cases), "test_r2")
    clear = [one for one in found if one.low is not None and one.high is not None and not one.low <= 0 <= one.high]
    assert clear and all(one.p is not None and one.p > 0.05 for one in clear)
    assert all(sentence(one, "test_r2").endswith("may be chance among 7 comparisons") for one in clear)


def test_equal_runs_are_one_run_in_means_and_tests() -> None:
    """C1D and SW without overlap; with overlap (stride 16) they are two."""
    cases = []
    for stride, tokenizer, patch, seed in itertools.product((32, 16), ("c1d", "sw"), (32, 64), (1, 2, 3)):
        r2 = 0.5 + 0.1 * (patch == 64) + 0.013 * seed * patch / 32 + 0.003 * (stride == 16) * (1 + (tokenizer == "sw"))
        cases.append(case({"s": stride, "t": tokenizer, "p": patch}, seed, r2=r2, rows=epochs([r2], [r2])))
    by_factor = {one.factor: one for one in differences(table(cases), "test_r2")}
    assert (by_factor["t"].pairs, by_factor["t"].twins) == (6, 6) and by_factor["t"].mean == pytest.approx(0.003)
    assert "6 pairs, 3 seeds, 6 more of equal runs" in sentence(by_factor["t"], "test_r2")
    assert by_factor["p"].pairs == 9, "of SW with overlap, C1D with it and either without it"
    alone = [one for one in cases if one["factors"]["s"] == 32]
    (twins, _) = differences(table(alone), "test_r2")
    assert sentence(twins, "test_r2") == "t=sw against c1d: the same runs to the last digit as c1d" and twins.tests == 1
    both = [{"t": f"{one['factors']['t']} {one['factors']['p']}"} for one in alone]
    twice = [one | {"factors": own, "setting": repr(own)} for one, own in zip(alone, both, strict=True)]
    again = differences(table(twice), "test_r2")[-1]
    assert (again.like, again.pairs, again.tests) == ("c1d 64", 0, 1), (
        "two values with the same runs are one comparison"
    )
    assert twin_sentences(combinations(table(alone), "test_r2")) == [
        "6 of 12 runs equal another to the last digit and count once (s=32, t=sw, p=32 and s=32, t=c1d, p=32)"
    ]


def test_settings_that_one_axis_moves_together_are_one_factor() -> None:
    """Or else no two runs would be equal in all but the patch."""
    grid = [{"t": t, "patch": p, "stride": s} for t in ("a", "b") for p, s in ((32, 32), (64, 32), (64, 64))]
    axes = {"t": ["a", "b"], "patch,stride": [[32, 32], [64, 32], [64, 64]]}

    def moved_by(*grids: dict[str, Any]) -> Definition:
        return definition_of({"grids": [{"axes": one} for one in grids]}, "toy", where="here")

    joined = _joined(grid, moved_by(axes))
    assert joined[:3] == [{"t": "a", "patch, stride": f"{p}, {s}"} for p, s in ((32, 32), (64, 32), (64, 64))]
    cases = [case(factors, seed, r2=0.1 * n + seed) for n, factors in enumerate(joined) for seed in (1, 2)]
    found = differences(table(cases), "test_r2")
    assert [(one.factor, one.value, one.pairs) for one in found] == [
        ("t", "b", 6),
        ("patch, stride", "64, 32", 4),
        ("patch, stride", "64, 64", 4),
    ]
    assert _joined(grid, moved_by(axes, {"patch": [16]})) == grid, "another grid moves the patch alone"
    assert _joined([*grid, {"t": "c"}], moved_by(axes)) == [*grid, {"t": "c"}], "nor where a run has neither"


def test_a_study_of_every_state_becomes_tables_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = mixed_study(tmp_path)
    assert main(["ablation", str(study.path), "--out", "here"]) == 0
    assert "written: here" in capsys.readouterr().out
    whole = json.loads(Path("here/ablation.json").read_text())
    states = [study.state(trial) for trial in study.trials()]
    of_all = whole["tallies"][0]
    assert of_all["total"] == len(states)
    assert of_all["finished"] == sum(state in ("completed", "early_stopped") for state in states) > 0
    assert of_all["failed"] > 0 and of_all["rate"] == of_all["finished"] / (of_all["finished"] + of_all["failed"])
    with Path("here/ablation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    ids = " ".join(row["run_ids"] for row in rows).split()
    assert sorted(ids) == sorted(trial.run_id for trial in study.trials())
    text = Path("here/ablation.md").read_text()
    assert all(run_id in text for run_id in ids)
    assert Path("here/ablation.pdf").read_bytes()[:5] == b"%PDF-" and Path("here/ablation.png").stat().st_size > 10_000


@pytest.mark.slow
def test_plain_runs_differ_by_their_settings(tiny: list[str], tmp_path: Path) -> None:
    for lr in ("1e-3", "2e-3"):
        run(build_config(compose([*tiny, f"opt.lr={lr}", "train.epochs=1", f"tracking.folder={tmp_path}"])))
    runs, notes = read_runs([tmp_path])
    assert sorted(factors["opt.lr"] for factors in runs.factors) == [0.001, 0.002] and notes == []
    assert all(set(factors) == {"opt.lr"} for factors in runs.factors)


def test_refusals_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed_study(tmp_path)
    Path("empty").mkdir()
    refused = {"nowhere": "is not a folder", "empty": "holds no run", "multirun/toy --metric test_r3": "test_r2"}
    for words, complaint in refused.items():
        assert main(["ablation", *words.split()]) == 2
        assert complaint in capsys.readouterr().err
