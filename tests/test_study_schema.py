"""A study's file: what it says, and one sentence that names file and key for what it may not say."""

from dataclasses import replace
from pathlib import Path

import pytest
from handmade import GRID, SEARCH, study
from refusals import refusal_of

from specvit.study.schema import Budget, Table, definition_of, read_definition
from specvit.utils.errors import ConfigError

# what a file says


def test_a_grid_is_read_whole() -> None:
    definition = study(GRID)
    (grid,) = definition.grids
    assert definition.overrides == {"data": "builtin", "opt.weight_decay": 1e-4}
    assert list(grid.cells) == ["plain", "wide"]
    assert [(axis.keys, axis.values, axis.when) for axis in grid.axes] == [
        (("model/tokenizer",), (("c1d",), ("sw",)), {}),
        (("model.patch_size",), ((16,), (32,)), {"model/tokenizer": "sw"}),
    ]
    assert (definition.seeds, definition.table, definition.budget) == ((1, 2), Table(), Budget())


def test_a_search_is_read_whole() -> None:
    search = study(SEARCH).search
    assert search is not None
    lr, layers, pair = search.space[2:]
    assert (lr.low, lr.high, lr.log, layers.step, layers.whole) == (1e-5, 1e-2, True, 2, True)
    assert pair.settings([64, 256]) == {"model.hidden_size": 64, "model.intermediate_size": 256}
    assert (pair.examples(), layers.examples(), lr.examples()) == ([[64, 256], [128, 512]], [2, 8], [1e-5, 1e-2])
    assert (search.sampler, search.sampler_options) == ("tpe", {"multivariate": True})
    assert (search.pruner, search.pruner_options, search.warmup_steps) == ("median", {"n_startup_trials": 3}, 100)


def test_the_question_comes_from_the_comment(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(f"# Question: is it so?\n# Cost: none\n{GRID}")
    definition = read_definition(path)
    assert (definition.name, definition.question) == ("toy", "is it so?")
    assert definition_of(definition.source, "toy", where="") == replace(definition, question="")


BAD = [
    ("grids: [", "", "is not valid YAML"),
    ("grid: []", "grid", "unknown key; did you mean grids?"),
    ("[1]", "", "expects keys with values, not [1]"),
    ("0", "", "expects keys with values, not 0"),
    ("", "", "needs either grids or a search"),
    ("grids: []", "", "needs either grids or a search"),
    (f"grids: [{{}}]\n{SEARCH}", "", "needs either grids or a search"),
    (f"{SEARCH}seeds: [1]", "seeds", "need grids"),
    ("grids: {}", "grids", "expects a list"),
    ("grids: [{axis: {}}]", "grids[0].axis", "did you mean axes?"),
    ("grids: [{}, {cells: [a]}]", "grids[1].cells", "expects keys with values"),
    ("grids: [{cells: {a: 3}}]", "grids[0].cells.a", "expects keys with values, not 3"),
    ("grids: [{cells: {a: {}, a: {}}}]", "", "'a' is given twice"),
    ("grids: [{axes: {opt.lr: 3}}]", "grids[0].axes.opt.lr", "expects a list, not 3"),
    ("grids: [{axes: {opt.lr: []}}]", "grids[0].axes.opt.lr", "has no values"),
    ("grids: [{axes: {opt.lr: {value: [1]}}}]", "grids[0].axes.opt.lr.value", "did you mean values?"),
    ("grids: [{axes: {opt.lr: {values: [1], when: 3}}}]", "grids[0].axes.opt.lr.when", "expects keys with values"),
    ('grids: [{axes: {"a,b": [[1, 2], [3]]}}]', "grids[0].axes.a,b", "[3] does not give 2 values"),
    ('grids: [{axes: {"a,b": [1]}}]', "grids[0].axes.a,b", "1 does not give 2 values"),
    ("grids: [{forbid: {opt.lr: 1}}]", "grids[0].forbid", "expects a list"),
    ("grids: [{forbid: [3]}]", "grids[0].forbid[0]", "expects keys with values"),
    ("grids: [{}]\nseeds: 3", "seeds", "expects a list, not 3"),
    ("grids: [{}]\nseeds: [true]", "seeds", "expects a whole number of at least 0, not True"),
    ("grids: [{}]\nseeds: [-1]", "seeds", "expects a whole number of at least 0, not -1"),
    ("grids: [{}]\nbudget: {hour: 1}", "budget.hour", "did you mean hours?"),
    ("grids: [{}]\nbudget: {hours: a}", "budget.hours", "expects a number above 0, not 'a'"),
    ("grids: [{}]\nbudget: {hours: 0}", "budget.hours", "expects a number above 0, not 0"),
    ("grids: [{}]\nhypotheses: {H1: {claim: a}}", "hypotheses.H1.criterion", "is not set"),
    ("grids: [{}]\nhypotheses: {H1: a}", "hypotheses.H1", "expects keys with values"),
    ("grids: [{}]\nhealth_minutes: 0", "health_minutes", "expects a number above 0, not 0"),
    ("grids: [{}]\nbudget: {hours: .inf}", "budget.hours", "expects a number"),
    ("grids: [{}]\nbudget: {failures: 0}", "budget.failures", "at least 1"),
    ("grids: [{}]\ntable: {metric: [a]}", "table.metric", "expects text"),
    ("grids: [{}]\ntable: {above: high}", "table.above", "expects a number"),
    ("grids: [{}]\ntable: {metric: escape_step, of: val_r2}", "table", "needs `of` and `above`"),
    ("search: {metrics: {val_r2: maximize}, trials: 3}", "search", "needs a space and metrics"),
    ("search: {space: {opt.lr: [1]}, trials: 3}", "search", "needs a space and metrics"),
]
BAD_SEARCH = [
    ("trials: 20", "trials: 0", "search.trials", "at least 1, not 0"),
    ("trials: 20", "trials: null", "search.trials", "not None"),
    ("trials: 20", "trial: 20", "search.trial", "did you mean trials?"),
    ("maximize", "max", "search.metrics.val_r2", "'max' is not one of minimize, maximize; did you mean maximize?"),
    ("name: tpe, ", "", "search.sampler.name", "needs the name of the sampler beside its options"),
    ("name: median, ", "", "search.pruner.name", "write {name: median, ...}"),
    ("name: tpe", "name: tp", "search.sampler", "did you mean tpe?"),
    ("name: median", "name: [a]", "search.pruner", "['a'] is not one of"),
    ("warmup_steps: 100", "warmup_steps: -1", "search.pruner.warmup_steps", "at least 0"),
    ("{val_r2: maximize}", "{val_r2: maximize, val_mae: minimize}", "search.pruner", "needs a search by one metric"),
    ("low: 1e-5, ", "", "search.space.opt.lr", "needs low < high"),
    ("low: 1e-5", "low: 1", "search.space.opt.lr", "needs low < high"),
    ("low: 1e-5", "low: 0", "search.space.opt.lr", "with log needs low above 0"),
    ("low: 1e-5", "low: small", "search.space.opt.lr.low", "expects a number, not 'small'"),
    ("high: 1.0e-2", "high: .nan", "search.space.opt.lr.high", "expects a number"),
    ("log: true", "log: 1", "search.space.opt.lr.log", "expects true or false, not 1"),
    ("log: true", "logs: true", "search.space.opt.lr.logs", "did you mean log?"),
    ("step: 2", "step: 0", "search.space.model.num_hidden_layers.step", "expects a number above 0, not 0"),
    ("step: 2", "step: 0.5", "search.space.model.num_hidden_layers", "is to be whole"),
    ("choices: [16, 32]", "choices: []", "search.space.model.patch_size", "has no values"),
    ("choices: [16, 32]", "choices: [16], low: 1", "search.space.model.patch_size", "nothing beside them"),
    ("[128, 512]]", "128]", "search.space.model.hidden_size, model.intermediate_size", "does not give 2 values"),
    ("[[64, 256], [128, 512]]", "{low: 1, high: 2}", "search.space.model.hidden_size, model", "needs choices"),
    ("start: [{opt.lr: ", "start: [{opt.lrr: ", "search.start[0].opt.lrr", "did you mean opt.lr?"),
    ("start: [{opt.lr: 1e-4", "start: [{opt.lr: 1", "search.start[0].opt.lr", "1 is outside of the space"),
]


def test_a_fault_names_file_and_key(tmp_path: Path) -> None:
    file, wrong = tmp_path / "toy.yaml", []
    for text, key, words in BAD:
        file.write_text(text)
        refusal = refusal_of(read_definition, file)
        if (
            refusal.where != f"{file}" + (f": {key}" if key else "")
            or words not in str(refusal)
            or "\n" in str(refusal)
        ):
            wrong.append((text, str(refusal)))
    assert wrong == []


def test_a_fault_in_a_search_names_file_and_key() -> None:
    wrong = []
    for right, bad, key, words in BAD_SEARCH:
        assert SEARCH.count(right) == 1, right
        refusal = refusal_of(study, SEARCH.replace(right, bad))
        if not refusal.where.startswith(f"toy.yaml: {key}") or words not in str(refusal):
            wrong.append((bad, str(refusal)))
    assert wrong == []


def test_all_faults_of_a_file_are_reported_together() -> None:
    faults = refusal_of(study, "grid: []\ngrids: [{axis: {}, cells: {a: 3}}, 4]\nseeds: [-1]\nbudget: {hour: 1}").parts
    keys = ["grid", "grids[0].axis", "grids[0].cells.a", "grids[1]", "seeds", "budget.hour"]
    assert [fault.where for fault in faults] == [f"toy.yaml: {key}" for key in keys]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_bytes(b"grids: [\xff]")
    with pytest.raises(ConfigError, match=r"toy\.yaml: is not valid YAML"):
        read_definition(tmp_path / "toy.yaml")


# what must not change


SAME = [
    ("seeds: [1, 2]", "seeds: [1, 2]\nbudget: {hours: 3}"),
    ("seeds: [1, 2]", "seeds: [1, 2]\nhealth_minutes: 7"),
    ("seeds: [1, 2]", "seeds: [1, 2]\ntable: {metric: val_mae}"),
    ("{data: builtin, opt.weight_decay: 1e-4}", "{opt.weight_decay: 1e-4, data: builtin}"),
]
OTHER = [
    ("seeds: [1, 2]", "seeds: [1, 2, 3]"),
    ("seeds: [1, 2]", "seeds: [2, 1]"),
    ("1e-4", "1e-3"),
    ("dropout: 0.0", "dropout: 0.1"),
    ("plain: {}\n      wide: {model.hidden_size: 128}", "wide: {model.hidden_size: 128}\n      plain: {}"),
    ("[c1d, sw]", "[sw, c1d]"),
    ("when: {model/tokenizer: sw}", "when: {model/tokenizer: c1d}"),
    ("[32, 64]", "[64]"),
    ("seeds: [1, 2]", "seeds: [1, 2]\nhypotheses: {H1: {claim: sw leads, criterion: R2 +.02}}"),
]
OTHER_SEARCH = [
    ("trials: 20", "trials: 20\n  seed: 3"),
    ("multivariate: true", "multivariate: false"),
    ("median", "percentile"),
    ("warmup_steps: 100", "warmup_steps: 10"),
    ("high: 1.0e-2", "high: 1.0e-3"),
    ("maximize", "minimize"),
    ("start: [{opt.lr: 1e-4", "start: [{opt.lr: 1e-3"),
    ("model.patch_size: 32}]", "model.patch_size: 16}]"),
]


def test_the_digest_changes_with_what_decides_the_runs() -> None:
    same = [*((GRID, *pair) for pair in SAME), (SEARCH, "trials: 20", "trials: 50")]
    other = [*((GRID, *pair) for pair in OTHER), *((SEARCH, *pair) for pair in OTHER_SEARCH)]
    assert [text.count(old) for text, old, _ in (*same, *other)] == [1] * len((*same, *other))
    equal = [
        new for text, old, new in (*same, *other) if study(text.replace(old, new)).digest() == study(text).digest()
    ]
    assert equal == [new for _, _, new in same]


def test_a_date_has_a_digest() -> None:
    assert study("overrides: {tracking.notes: 2026-01-01}\ngrids: [{}]").digest()
