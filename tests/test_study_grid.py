"""From a study to its runs: cells x axes x seeds, and each setting as Hydra reads it."""

from pathlib import Path
from typing import Any

import pytest
from handmade import GRID, SEARCH, study
from hypothesis import given
from hypothesis import strategies as st

from specvit.config.compose import Composer
from specvit.config.compose import compose as compose_once
from specvit.config.overrides import parse
from specvit.study.grid import Point, as_overrides, as_text, points_of, product_grid, replaced_axes
from specvit.study.plan import plan_grid, try_space
from specvit.study.schema import Definition
from specvit.study.store import StudyFolder
from specvit.study.yaml_schema import Settings, Typed, matches
from specvit.utils.errors import ConfigError

compose = Composer()


def axes(text: str) -> list[Point]:
    return points_of(study(f"grids: [{{axes: {{{text}}}}}]"))


def factors(points: list[Point]) -> list[Settings]:
    return [point.factors for point in points]


def test_cells_times_axes_times_seeds_in_order_without_what_is_forbidden() -> None:
    points = points_of(study(GRID))
    assert [point.cell for point in points] == ["plain"] * 6 + ["wide"] * 4
    sw = {"model/tokenizer": "sw"}
    chosen = [{"model/tokenizer": "c1d"}, {**sw, "model.patch_size": 16}, {**sw, "model.patch_size": 32}]
    assert factors(points[:6]) == [{**point, "train.seed": seed} for point in chosen for seed in (1, 2)]
    assert factors(points[6:]) == [{**point, "train.seed": seed} for point in chosen[:2] for seed in (1, 2)]
    base = {"data": "builtin", "opt.weight_decay": 1e-4, "model.dropout": 0.0}
    assert points[9].settings == {**base, "model.hidden_size": 128, **chosen[1], "train.seed": 2}


def test_keys_of_one_axis_move_together() -> None:
    assert factors(axes('"a, b": [[1, x], [2, y]], c: [3, 4]')) == [
        {"a": a, "b": b, "c": c} for a, b in ((1, "x"), (2, "y")) for c in (3, 4)
    ]


def test_an_inner_setting_outdoes_an_outer_one() -> None:
    text = "overrides: {a: 1, b: 1, c: 1, d: 1}\ngrids: [{overrides: {b: 2, c: 2, d: 2}, cells: {x: {c: 3, d: 3}}, "
    (point,) = points_of(study(f"{text} axes: {{d: [4]}}}}]"))
    assert point.settings == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_a_number_means_the_same_however_it_is_written() -> None:
    rule = "forbid: [{opt.lr: [0.0001, 3.0e-4]}]"
    points = points_of(study(f"grids: [{{axes: {{opt.lr: [1e-4, 2E-4, 3e-4]}}, {rule}}}]"))
    assert factors(points) == [{"opt.lr": 2e-4}]
    assert study("grids: [{axes: {a: [1e-4]}}]").digest() == study("grids: [{axes: {a: [1.0e-4]}}]").digest()


def test_a_choice_means_the_same_however_it_is_spelt() -> None:
    written = "grids: [{axes: {opt.type: [AdamW, SGD]}, forbid: [{opt.type: %s, opt.lr: 2}]}]"
    for rule in ("SGD", "sgd", "[RMSprop, Sgd]"):
        points = points_of(study(written % rule), {"opt.lr": Typed("2")})
        assert factors(points) == [{"opt.type": "AdamW"}], rule
        with pytest.raises(ConfigError, match="all are forbidden"):
            points_of(study(written % rule), {"opt.lr": Typed("2"), "opt.type": Typed("sGd")})
    assert matches({"loss.name": Typed("MAE")}, {"loss.name": "l1"}) and matches(
        {"loss.name": "L1"}, {"loss.name": "mae"}
    )
    assert matches({"train.precision": Typed("32")}, {"train.precision": "32"})
    assert matches({"model.proj_fn": "cnn"}, {"model.proj_fn": "c1d"})
    assert not matches({"data.name": "A"}, {"data.name": "a"}) and not matches(
        {"opt.type": "adam"}, {"opt.type": "SGD"}
    )


def test_a_typed_spelling_keeps_the_axis_that_depends_on_it() -> None:
    text = "grids: [{axes: {loss.name: [l1, mse], opt.lr: {values: [1, 2], when: {loss.name: l1}}}}]"
    points = points_of(study(text), {"loss.name": Typed("L1")})
    assert factors(points) == [{"opt.lr": 1}, {"opt.lr": 2}]


def test_a_grid_of_nothing_is_one_run() -> None:
    assert points_of(study("grids: [null]")) == points_of(study("grids: [{}]"))


def test_a_study_that_forbids_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="toy: has no runs: all are forbidden"):
        points_of(study("grids: [{axes: {opt.lr: [1]}, forbid: [{opt.lr: 1}]}]"))


@pytest.mark.parametrize("key", ["model.hidden_size", "++model.hidden_size", "++train.seed", "+model.patch_size"])
def test_what_a_cell_sets_cannot_be_typed_nor_an_axis_be_appended(key: str) -> None:
    with pytest.raises(ConfigError, match="is given one value, and varied, too") as refusal:
        points_of(study(GRID), {key: Typed("1")})
    assert refusal.value.where == key


def test_a_typed_value_replaces_those_of_its_axis_and_of_the_seeds() -> None:
    typed = {"model/tokenizer": Typed("sw"), "train.seed": Typed("7")}
    points = points_of(study(GRID), typed)
    assert [(point.cell, point.factors) for point in points] == [
        ("plain", {"model.patch_size": 16}),  # the condition on the tokenizer sees the typed one
        ("plain", {"model.patch_size": 32}),
        ("wide", {"model.patch_size": 16}),
    ]
    assert all(typed.items() <= point.settings.items() for point in points)
    assert replaced_axes(study(GRID), typed) == [
        "model/tokenizer=sw replaces model/tokenizer=c1d,sw of the study",
        "train.seed=7 replaces train.seed=1,2 of the study",
    ]


def test_typed_settings_hold_for_all_runs_and_in_conditions() -> None:
    points = points_of(study(GRID), {"model.dropout": Typed("0.5"), "train.epochs": Typed("3")})
    assert {point.settings["model.dropout"] for point in points} == {"0.5"}
    assert {point.settings["train.epochs"] for point in points} == {"3"}
    assert "model.dropout" not in points[0].factors
    assert matches({"a": Typed("32")}, {"a": 32}) and matches({"a": Typed("1e-4")}, {"a": [1e-4]})
    assert matches({"a": Typed("sw")}, {"a": "sw"}) and not matches({"a": Typed("c1d")}, {"a": ["sw", "linear"]})


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("forbid: [{model/tokeniser: sw}]", "model/tokeniser: unknown group; did you mean model/tokenizer?"),
        ("forbid: [{model/tokenizer: [sw, sww]}]", "model/tokenizer: has no option 'sww'; did you mean sw?"),
        ("axes: {opt.lr: {values: [1], when: {opt.tipe: SGD}}}", "opt.tipe: unknown key; did you mean opt.type?"),
    ],
)
def test_a_condition_that_could_never_hold_is_refused(rule: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        plan_grid(study(f"grids: [{{{rule}}}]"), {}, StudyFolder(tmp_path / "toy"), compose)
    assert words in str(refusal.value)


def test_a_plain_grid_is_a_product() -> None:
    definition = Definition("grid", grids=(product_grid({"a": [1, 2], "b": [[3], [4]]}),))
    assert factors(points_of(definition)) == [{"a": a, "b": [b]} for a in (1, 2) for b in (3, 4)]


# how a setting is typed


KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=6)


@given(VALUES)
def test_a_value_comes_back_from_hydras_grammar(value: Any) -> None:
    (text,) = as_overrides({"tracking.notes": value})
    found = parse(text).value()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["null", "True", "1e-4", "007", "~/data", "", "R² of\n'a' \"b\" \\", "a,b", "[a]", "-"]
)
def test_text_stays_text_through_composition(text: str) -> None:
    for one in (compose, compose_once):
        assert one(as_overrides({"tracking.notes": text, "model/size": "tiny"}))["tracking"]["notes"] == text


def test_what_was_typed_is_read_as_typed() -> None:
    assert [as_text(value) for value in (Typed("[a, b]"), Typed("1e-4"))] == ["[a, b]", "1e-4"]
    assert (
        compose(as_overrides({"opt.lr": Typed("1e-4"), "model.stride_size": Typed("${.patch_size}")}))["opt"]["lr"]
        == 1e-4
    )


# before a study starts


def planned(text: str, place: Path, typed: Settings | None = None) -> list[tuple[str, Settings]]:
    trials = plan_grid(study(text), typed or {}, StudyFolder(place / "toy"), compose)
    return [(trial.cell, trial.factors) for trial in trials]


def test_points_that_are_the_same_run_become_one_trial(tmp_path: Path) -> None:
    text = "grids: [{axes: {opt.lr: [1.0e-3, 1e-3, 2e-3]}}, {cells: {same: {opt.lr: 0.001}}}]"
    assert planned(text, tmp_path) == [("", {"opt.lr": 1e-3}), ("", {"opt.lr": 2e-3})]
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_tagged_with_study_and_cell(tmp_path: Path) -> None:
    (trial,) = plan_grid(study("grids: [{cells: {a cell: {}}}]"), {}, StudyFolder(tmp_path / "toy"), compose)
    assert trial.config["tracking"]["tags"] == {"study": "toy", "cell": "a cell", "setting": "a cell"}
    assert Path(trial.folder).name == trial.name and trial.name.endswith(trial.run_id)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{cells: {a: {opt.lrr: 1}}}", "opt.lrr: unknown key; did you mean opt.lr?"),
        ("{axes: {opt.lr: [1, fast]}}", "1 of 2 runs cannot be made: opt.lr: expects a number above 0, not 'fast'; "),
        (
            "{axes: {train.epochs: [0, -1], train.seed: [1, 2]}}",
            "4 of 4 runs cannot be made: train.epochs: expects a whole",
        ),
        ("{axes: {train.epochs: [1, 0], train.seed: [1, 2]}}", "(epochs=0, seed=1 and 1 more); nothing was started"),
    ],
)
def test_every_fault_is_reported_before_anything_starts(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        planned(f"grids: [{text}]", tmp_path)
    assert words in str(refusal.value)


def test_a_search_is_tried_from_its_start_point(tmp_path: Path) -> None:
    trial = try_space(study(SEARCH), {"train.epochs": Typed("3")}, StudyFolder(tmp_path / "toy"), compose)
    assert (trial.config["opt"]["lr"], trial.config["model"]["intermediate_size"]) == (1e-4, 256)
    assert trial.config["train"]["epochs"] == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("val_r2", "val_r", "search.metrics.val_r: is a metric that no run has; did you mean val_r2?"),
        ("val_r2", "val_nll", "search.metrics.val_nll: is a metric that no run has"),
        ("val_r2", "train_seconds", "search.metrics.train_seconds: is a metric that no epoch has, to prune by"),
        ("val_r2", "test_r2", "search.metrics.test_r2: would choose settings by the test rows"),
        ("tokenizer: [c1d, sw]", "tokenizer: [c1d, swe]", "model/tokenizer: has no option 'swe'"),
        ("model.num_hidden_layers", "model.layers", "model.layers: unknown key"),
        ("when: {model/tokenizer: sw}", "when: {model/tokenizer: s}", "model/tokenizer: has no option 's'"),
        ("forbid: [{model/tokenizer: sw, ", "forbid: [{tokenizer: sw, ", "tokenizer: unknown key"),
    ],
)
def test_a_search_with_a_typo_never_starts(right: str, wrong: str, words: str, tmp_path: Path) -> None:
    assert SEARCH.count(right) == 1
    with pytest.raises(ConfigError) as refusal:
        try_space(study(SEARCH.replace(right, wrong)), {}, StudyFolder(tmp_path / "toy"), compose)
    assert words in str(refusal.value)


def test_a_search_without_a_pruner_may_ask_for_figures_of_the_whole_run_but_never_for_test_scores(
    tmp_path: Path,
) -> None:
    text = SEARCH.replace("{name: median, n_startup_trials: 3, warmup_steps: 100}", "none")

    def tried(metrics: str) -> str:
        asked = study(text.replace("{val_r2: maximize}", metrics))
        return try_space(asked, {}, StudyFolder(tmp_path / "toy"), compose).run_id

    assert tried("{val_mae: minimize, train_seconds: minimize}")
    with pytest.raises(ConfigError, match=r"search\.metrics\.test_mae: .*; search by val_mae"):
        tried("{val_r2: maximize, test_mae: minimize}")


def test_what_a_search_varies_cannot_be_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.intermediate_size: is given one value, and varied, too"):
        try_space(study(SEARCH), {"model.intermediate_size": Typed("64")}, StudyFolder(tmp_path / "toy"), compose)
