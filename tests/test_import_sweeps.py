"""Sweep files of W&B become study files; what a study cannot say is named."""

from pathlib import Path
from typing import Any

import pytest
from import_files import answers

from specvit.cli import main
from specvit.importing.translation import CHANGES, UNKNOWN
from specvit.study.schema import read_definition

GRID = """
program: train.py
method: grid
project: vit
description: which tokenizer?
metric: {name: val/r2, goal: maximize}
parameters:
  proj_fn: {values: [CNN, SW]}
  hidden_size: {values: [64, 96]}
  num_heads: {values: [4, 6]}
  lr: {values: ["1e-4", 3e-4]}
  seed: {values: [1, 2, 3]}
  epochs: {value: 2}
  batch_size: 64
"""
BAYES = """
method: bayes
metric: {name: test_mae, goal: minimize, target: 0.3}
early_terminate: {type: hyperband, max_iter: 27, s: 2, eta: 3}
run_cap: 30
command: ["${env}", python, train.py, "--epochs=5", "${args}"]
parameters:
  optimizer:
    parameters:
      lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-2}
      weight_decay: {distribution: log_uniform, min: -9.2103403, max: -2.3025851}
  dropout: {distribution: q_uniform, min: 0, max: 0.3, q: 0.1}
  num_layers: {min: 2, max: 8}
  architecture: {values: [p16_h64_a4, p32_h128_a4]}
  loss: {values: [mse, L1], probabilities: [0.3, 0.7]}
"""


def imported_study(imported: Any, text: str) -> str:
    assert imported(text, "study.yaml")[0] == 0
    return Path("sweeps/study.yaml").read_text()


@pytest.mark.slow
def test_a_wandb_grid_becomes_a_grid(imported: Any) -> None:
    code, message = imported(GRID, "grid.yaml")
    assert code == 0, message
    study = read_definition(Path("sweeps/grid.yaml"))
    assert study.question == "which tokenizer?" and study.seeds == (1, 2, 3)
    named = {"tracking.experiment": "vit", "tracking.notes": "which tokenizer?"}
    assert study.overrides == {"train.epochs": 2, "train.batch_size": 64, **named}
    [grid] = study.grids
    assert {axis.keys: axis.values for axis in grid.axes} == {
        ("model.proj_fn",): (("C1D",), ("SW",)),
        ("model.hidden_size", "model.intermediate_size"): ((64, 256), (96, 384)),
        ("model.num_attention_heads",): ((4,), (6,)),
        ("opt.lr",): ((1e-4,), (3e-4,)),
    }
    assert grid.forbid == ({"model.hidden_size": 64, "model.num_attention_heads": 6},)
    assert "points that cannot be runs, forbidden: {'model.hidden_size': 64" in message
    assert main(["train", "sweeps=grid", "sweep.dry_run=true"]) == 0


@pytest.mark.slow
def test_a_wandb_search_becomes_a_search(imported: Any) -> None:
    code, message = imported(BAYES, "bayes.yaml")
    assert code == 0, message
    study = read_definition(Path("sweeps/bayes.yaml"))
    search = study.search
    assert search is not None and study.overrides == {"train.epochs": 5}
    assert (search.trials, search.sampler, search.metrics) == (30, "gp", {"val_mae": "minimize"})
    assert (search.pruner, search.pruner_options) == ("hyperband", {"min_resource": 3, "reduction_factor": 3})
    space = {dimension.key: dimension for dimension in search.space}
    lr, decay, layers = (space[key] for key in ("opt.lr", "opt.weight_decay", "model.num_hidden_layers"))
    assert (lr.low, lr.high, lr.log, space["model.dropout"].step) == (1e-5, 1e-2, True, 0.1)
    assert (decay.low, decay.high, decay.log) == (1e-4, 0.1, True)
    assert (layers.low, layers.high, layers.whole) == (2, 8, True)
    tied = "model.patch_size, model.hidden_size, model.num_attention_heads, model.intermediate_size"
    assert space[tied].choices == ([16, 64, 4, 256], [32, 128, 4, 512]) and space["loss.name"].choices == ("mse", "l1")
    for name, wanted in {
        "loss.probabilities": f"{CHANGES}: all values are equally likely",
        "metric.name": f"{CHANGES}: settings are chosen by validation: val_mae",
        "metric.target": f"{CHANGES}: a search runs all its trials",
    }.items():
        assert answers(message, name, wanted), (name, message)
    assert main(["train", "sweeps=bayes", "sweep.dry_run=true"]) == 0


@pytest.mark.slow
def test_what_a_wandb_sweep_has_and_a_study_lacks_is_named(imported: Any) -> None:
    random = (
        "{method: random, early_terminate: hyperband, parameters: {lr: {min: 1e-5, max: 1e-3}, foo: {values: [1, 2]}, "
    )
    random += "dropout: {distribution: normal, mu: 0.1, sigma: 0.1}}}"
    code, message = imported(random)
    assert code == 1 and "how many trials? 20 are written" in message
    assert answers(message, "early_terminate", f"{UNKNOWN}: write search.pruner")
    random = (
        "{method: random, metric: val_loss, parameters: {optimizer: {values: [adam, sgd]}, lr: {min: 0.1, max: 1.0}}}"
    )
    assert "metrics: {val_loss: minimize}" in imported_study(imported, random)
    assert "opt.type, opt.weight_decay, opt.momentum:" in imported_study(imported, random)
    assert answers(message, "foo", f"{UNKNOWN}: no key") and answers(
        message, "dropout", f"{UNKNOWN}: is not a range here"
    )
    various = "{method: grid, parameters: {optimizer: {values: [AdamW, sgd]}, hidden_act: {values: [gelu, relu]}}, "
    _, message = imported(various + "command: [train.py, --epochs, 5, --train_data, /d/t.h5]}", "various.yaml")
    study = read_definition(Path("sweeps/various.yaml"))
    [axis] = study.grids[0].axes
    assert axis.keys == ("opt.type", "opt.momentum", "opt.weight_decay")
    assert axis.values == (("AdamW", 0.9, 0.01), ("SGD", 0.0, 0.0)) and study.overrides["train.epochs"] == 5
    assert answers(message, "hidden_act", f"{CHANGES}: the activation is GELU")
    assert message.endswith("sweeps=various data.val_path=FILE data.test_path=FILE sweep.dry_run=true\n")
    refused = {
        "{method: grid, parameters: {lr: {min: 1e-5, max: 1e-3}}}": "opt.lr: has a range, from which a grid takes no",
        "{method: sobol, parameters: {lr: {min: 1e-5, max: 1e-3}}}": "'sobol' is not one of grid, random, bayes",
        "{method: random, run_cap: many, parameters: {lr: {min: 1, max: 2}}}": "trials: expects a whole number",
        "{method: random, parameters: {lr: {min: 1, max: 1}}}": "needs low < high",
        "{method: random, parameters: {dropout: {min: 0.0, max: 1.0}}}": "a range: model.dropout expects",
        "{method: random, parameters: {lr: {distribution: log_uniform, min: 0, max: 800}}}": "a range: opt.lr expects",
        "{method: random, parameters: {lr: {values: []}}}": "has no value",
        "{method: random, parameters: [lr, wd]}": "parameters: expects keys with values",
        "{method: random, parameters: {lr: 1e-3}}": "has no parameter that varies",
        "{method: random, parameters: {lr: {values: [1, 2]}, learning_rate: {values: [3, 4]}}}": "which lr sets, too",
    }
    for text, words in refused.items():
        code, message = imported(text, "refused.yaml")
        assert code == 2 and words in message and not Path("sweeps/refused.yaml").exists(), message
