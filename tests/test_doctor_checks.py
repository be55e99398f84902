"""`specvit doctor [overrides]`: sound runs have no fault, and each rule names the fault that is planted for it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specvit.checks import linear, training
from specvit.checks.checkup import Checkup, check_up
from specvit.checks.network import network_checks
from specvit.checks.rules import FAULT, RULES, Measure, findings
from specvit.commands.doctor import main as doctor
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import Config
from specvit.data.noise import fit_flux_norm
from specvit.data.shards import write_shard
from specvit.data.splits import open_splits
from specvit.run.train_network import build_learner, train_data
from specvit.training.step import Learner

CPU = torch.device("cpu")
CLASSES = ["model.task_type=cls", "loss=ce", "data.class_edges=[3]", "train.early_stopping.monitor=val_accuracy"]
OLD_SW = ["model.init=legacy", "model/tokenizer=sw", "data.flux_norm=none"]


def silent(*_: Any) -> None:
    """Report nothing."""


def checked(words: list[str], *, trains: bool = False) -> Checkup:
    """Return the checks of a configuration."""
    return check_up(build_config(compose(words)), silent, silent, trains=trains)


def subject_of(config: Config) -> training.Subject:
    """Return the data of a configuration, for copies of its network to learn."""
    splits = open_splits(config, silent)
    return training.Subject(splits, None, CPU, fit_flux_norm(splits.train, config.data.flux_norm, config.noise))


def broken(found: Checkup) -> set[str]:
    """Return the rules that are broken."""
    return {one.rule for one in findings(found.measures)}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sound_run_has_no_fault_and_leaves_no_folder(tiny: list[str], tmp_path: Path) -> None:
    found = checked(tiny)
    assert not [one for one in findings(found.measures) if RULES[one.rule].severity == FAULT]
    assert found.spectra == {"train": 192, "val": 48, "test": 64} and not list(tmp_path.iterdir())
    assert found.network and found.network.components["head"] == 17
    blocks = found.network.cost.parameters["blocks"] - found.network.components["norm"]
    assert sum(count for name, count in found.network.components.items() if name.startswith("each")) == blocks
    assert found.network.stages["tokenizer"].shape == (15, 8, 16)


SETTINGS = {
    "token_scale": OLD_SW,
    "gradient_norm": ["data.label_norm=none", "data.param=T_eff"],
    "prediction": [*OLD_SW, "noise=none"],
    "first_loss": ["data.label_norm=none", "data.param=T_eff"],
    "clip": ["train.gradient_clip=1e-4"],
    "memory": ["model.hidden_size=16384", "model.intermediate_size=1"],
    "unread": ["model.patch_size=48"],
    "label_scale": ["data.label_norm=none", "data.param=T_eff"],
    "input_mean": ["data.flux_norm=none"],
    "input_scale": ["data.flux_norm=none", "noise=none"],
    "class_share": [
        "model.task_type=cls",
        "loss=ce",
        "data.class_edges=[1.05]",
        "train.early_stopping.monitor=val_accuracy",
    ],
    "lr_few_rows": ["opt.lr=1e-2"],
    "decay_few_rows": ["opt.weight_decay=0.1"],
    "dropout_few_rows": ["model.dropout=0.9"],
}
"""Settings that break a rule."""


@pytest.mark.parametrize("rule", [name for name in SETTINGS if name != "memory"])
def test_settings_that_break_a_rule_are_named(rule: str, tiny: list[str]) -> None:
    assert rule in broken(checked([*tiny, *SETTINGS[rule]]))


Plant = Callable[[dict[str, Any], dict[str, Any]], None]
"""Spoils a training set and a test set, as `write_shard` takes them."""


def _same_stars(train: dict[str, Any], test: dict[str, Any]) -> None:
    for name in ("flux_NP", "error_NP"):
        test[name][:4] = train[name][:4]
    test["labels"].iloc[:4] = train["labels"].iloc[:4]


def _constant(train: dict[str, Any], test: dict[str, Any]) -> None:
    test["labels"]["log_g"] = 3.0


def _sentinel(train: dict[str, Any], test: dict[str, Any]) -> None:
    train["labels"].loc[3, "log_g"] = -9999.0


def _beyond(train: dict[str, Any], test: dict[str, Any]) -> None:
    test["labels"]["log_g"] += 1.0


def _rounded(train: dict[str, Any], test: dict[str, Any]) -> None:
    train["labels"]["log_g"] = train["labels"]["log_g"].round()


def _shuffled(train: dict[str, Any], test: dict[str, Any]) -> None:
    train["labels"]["log_g"] = np.random.default_rng(1).permutation(train["labels"]["log_g"])


def _noise_by_label(train: dict[str, Any], test: dict[str, Any]) -> None:
    train["error_NP"] = np.broadcast_to(0.01 * train["labels"][["log_g"]].to_numpy(), train["flux_NP"].shape)


def _brighter(train: dict[str, Any], test: dict[str, Any]) -> None:
    test["flux_NP"] += 0.1


DATA: dict[str, tuple[Plant, str]] = {
    "duplicates": (_same_stars, "train and test"),
    "label_spread": (_constant, "log_g, test"),
    "label_bounds": (_sentinel, "log_g"),
    "label_outlier": (_sentinel, "log_g"),
    "label_range": (_beyond, "log_g"),
    "label_rounding": (_rounded, "log_g"),
    "linear_signal": (_shuffled, "log_g"),
    "leak_snr": (_noise_by_label, "log_g"),
    "leak_error": (_noise_by_label, "log_g"),
    "drift": (_brighter, "test"),
}
"""What is done to the spectra, and where the rule says that it is."""


@pytest.mark.parametrize("rule", list(DATA))
def test_faults_of_the_spectra_are_named(rule: str, tiny: list[str], stars: Any, tmp_path: Path) -> None:
    train, val, test = stars(192, seed=5), stars(64, seed=6), stars(64, seed=7)
    plant, where = DATA[rule]
    plant(train, test)
    for name, one in {"train_0": train, "val": val, "test": test}.items():
        write_shard(tmp_path / "sets" / name / "dataset.h5", **one)
    found = checked([*tiny, f"data.root={tmp_path / 'sets'}"])
    assert (rule, where) in {(one.rule, one.where) for one in findings(found.measures)}


def _freeze(learner: Learner) -> None:
    learner.module.get_submodule("blocks").requires_grad_(False)


def _detach(learner: Learner) -> None:
    learner.module.get_submodule("norm").register_forward_hook(lambda *hooked: hooked[-1].detach())


def _freeze_tokens(learner: Learner) -> None:
    learner.module.get_submodule("tokenizer").requires_grad_(False)


def _kill_tokens(learner: Learner) -> None:
    with torch.no_grad():
        for parameter in learner.module.get_submodule("tokenizer").parameters():
            parameter.mul_(1e-6)


def _infinite(learner: Learner) -> None:
    with torch.no_grad():
        learner.module.get_submodule("head").get_parameter("bias").fill_(torch.inf)


def _grow(learner: Learner) -> None:
    with torch.no_grad():
        learner.module.get_submodule("blocks.0.feed_forward.down").get_parameter("weight").fill_(1e4)


NETWORK: dict[str, list[Callable[[Learner], None]]] = {
    "no_gradient": [_freeze, _detach],
    "token_scale": [_kill_tokens],
    "finite": [_infinite],
    "activation": [_grow],
    "gradient_share": [_freeze_tokens],
}
"""What is done to the network."""


@pytest.mark.parametrize(("rule", "plant"), [(rule, one) for rule, plants in NETWORK.items() for one in plants])
def test_faults_of_the_network_are_named(rule: str, plant: Callable[[Learner], None], tiny: list[str]) -> None:
    config = build_config(compose(tiny))
    splits = open_splits(config, silent)
    learner, _, flux_norm = build_learner(config, splits, None, CPU)
    before = [parameter.clone() for parameter in learner.module.parameters()]
    batch = train_data(config, splits, flux_norm, CPU).batch(0)
    sound = network_checks(config, learner, batch)[1]
    assert rule not in {one.rule for one in findings(sound)}
    assert all(map(torch.equal, before, learner.module.parameters()))
    plant(learner)
    assert rule in {one.rule for one in findings(network_checks(config, learner, batch)[1])}


def test_a_step_that_does_not_fit_is_a_fault(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specvit.checks.network.free_memory", lambda: 10**5)
    assert "memory" in broken(checked(tiny))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reg", "cls"])
def test_a_sound_network_overfits_a_few_rows(task: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "OVERFIT_SECONDS", 1e9)
    found = checked([*tiny, "model.hidden_size=32", *(CLASSES if task == "cls" else [])], trains=True)
    assert found.training and found.training.overfit_score > 0.99 and found.training.overfit_steps <= 300
    assert not broken(found) & {"overfit", "overfit_classes"}
    assert found.training.hours == pytest.approx(24 * found.training.step_seconds / 3600)


def _spoilt_overfit(config: Any, plant: Callable[[Learner], None], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the rules that a spoilt network breaks in its training checks."""

    def build(*words: Any, **named: Any) -> Any:
        built = build_learner(*words, **named)
        plant(built[0])
        return built

    monkeypatch.setattr(training, "build_learner", build)
    monkeypatch.setattr(training, "OVERFIT_STEPS", 30)
    return {one.rule for one in findings(training.training_checks(config, subject_of(config))[1])}


@pytest.mark.parametrize(("words", "rule"), [([], "overfit"), (CLASSES, "overfit_classes")])
def test_a_network_that_cannot_overfit_is_named(
    words: list[str], rule: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rule in _spoilt_overfit(build_config(compose([*tiny, *words])), _deafen, monkeypatch)


def _deafen(learner: Learner) -> None:
    """The network's first part gives the same for all spectra."""
    learner.module.get_submodule("tokenizer").register_forward_hook(lambda *hooked: torch.zeros_like(hooked[-1]))


def test_a_step_without_memory_is_a_fault(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "step_seconds", fail)
    monkeypatch.setattr(training, "OVERFIT_STEPS", 10)
    config = build_config(compose(tiny))
    facts, measures = training.training_checks(config, subject_of(config))
    assert ("memory", "out of memory in a step") in {(one.rule, one.where) for one in findings(measures)}
    assert not facts.curves


@pytest.mark.slow
def test_the_learning_rate_test_is_drawn(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_figures: None, capsys: Any
) -> None:
    monkeypatch.setattr(training, "OVERFIT_STEPS", 10)
    monkeypatch.setattr(training, "RATE_SECONDS", 1e9)
    doctor([*tiny, "--out", "figure.png"])
    said = capsys.readouterr().out
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert re.search(r"loss after 24 steps: 0.01: [\d.]+, 0.003: ", said) and "a step takes" in said
    assert re.search(r"overfit test: score -?[\d.]+ after 10 steps", said)


def test_the_learning_rate_is_judged_by_the_fall_of_the_loss() -> None:
    curves = {1e-2: [1.0] * 4 + [float("inf")] * 4, 1e-3: [1.0, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.3], 1e-4: [1.0] * 8}
    (small,), (good,), (large,) = (training.judge_rate(rate, curves) for rate in (1e-4, 1e-3, 1e-2))
    assert good.kept and not small.kept and not large.kept
    assert small.where == "0.0001 is too small; least loss at 0.001" and small.remedy == "opt.lr=0.001"
    assert "too large" in large.where
    assert training.judge_rate(1e-4, {1e-4: [1.0] * 8, 1e-3: [1.0] * 8}) == []


def test_a_curve_is_that_of_the_run_and_infinite_where_it_explodes(tiny: list[str]) -> None:
    config = build_config(compose([*tiny, "opt.lr=1e-3", "opt.lr_sch=constant", "opt.warmup_epochs=0"]))
    subject = subject_of(config)
    curve = training.loss_curve(config, subject, rate=1e-3, steps=3)
    learner, state, flux_norm = build_learner(config, subject.splits, None, CPU)
    data, before = train_data(config, subject.splits, flux_norm, CPU), 0.0
    for loss in curve:
        learner.step(data.batch(state.step), state)
        state.step += 1
        assert loss == pytest.approx(state.sums["loss"].item() - before)
        before = state.sums["loss"].item()
    assert training.loss_curve(config, subject, rate=1e30, steps=4)[-1] == float("inf")


def test_every_rule_has_a_test() -> None:
    many = {"lr_many_rows", "decay_many_rows", "dropout_many_rows", "masked", "overfit", "overfit_classes", "lr_test"}
    assert {*SETTINGS, *DATA, *NETWORK, *many} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "sound", "unsound"),
    [
        ("lr_many_rows", 1e-3, 1e-4),
        ("decay_many_rows", 1e-4, 1e-2),
        ("dropout_many_rows", 0.1, 0.2),
        ("masked", 0, 0.1),
    ],
)
def test_a_value_is_held_against_its_range(rule: str, sound: float, unsound: float) -> None:
    assert Measure(rule, sound).kept and not Measure(rule, unsound).kept and not Measure(rule, float("nan")).kept


def test_ridge_on_the_other_half_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(3)
    columns = rng.standard_normal((200, 30))
    target_N1 = columns[:, :1] + 0.1 * rng.standard_normal((200, 1))
    halves = np.array_split(np.random.default_rng(0).permutation(200), 2)
    scaled = (columns - columns.mean(0)) / columns.std(0)
    predicted_N1 = linear.cross_fitted([columns], target_N1)
    errors = []
    for alpha in np.logspace(-4, 3, 60):
        fitted = Ridge(alpha=alpha, fit_intercept=False).fit(
            scaled[halves[0]], target_N1[halves[0]] - target_N1[halves[0]].mean()
        )
        other = fitted.predict(scaled[halves[1]]).reshape(-1) + target_N1[halves[0]].mean()
        errors.append(np.abs(other - predicted_N1[halves[1], 0]).max())
    assert min(errors) < 0.02
    assert linear.r2([columns], target_N1)[0] > 0.95
    assert linear.r2([rng.standard_normal((200, 30))], target_N1)[0] < 0.1
    area, error = linear.auc([columns], np.arange(200) < 100)
    assert abs(area - 0.5) < 3 * error


def test_an_estimator_has_its_data_checked(tiny: list[str]) -> None:
    data = [word for word in tiny if word.startswith(("data", "tracking"))]
    found = checked([*data, "model=ridge"])
    assert found.network is None and {"leak_snr", "drift"} <= {one.rule for one in found.measures}


def test_the_exit_code_and_the_text_name_the_fault(tiny: list[str], capsys: Any) -> None:
    assert doctor([*tiny, "--quick"]) == 0
    assert re.search(r"^0 faults, ", capsys.readouterr().out, re.MULTILINE)
    assert doctor([*tiny, *OLD_SW, "--quick"]) == 1
    said = capsys.readouterr().out
    assert "fault token_scale: std of tokens over spectra / RMS of positions is " in said
    assert "at least 0.05 is sound; remedy: model.init=specvit data.flux_norm=standard" in said
    assert doctor([*tiny, *OLD_SW, "--quick", "--json"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.hiden_size=8"], "model.hiden_size: unknown key; did you mean model.hidden_size?"),
        (["--quick", "--out", "a.png"], "--out: does not go with --quick"),
        (["--quik"], "unrecognized arguments: --quik"),
        (["sweeps=tokenization_small"], "sweeps=tokenization_small: is a study; give the overrides of one run"),
        (["data=hdf5", "data.file_path=x.h5"], "data.val_path: is not set"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(words: list[str], said: str, capsys: Any) -> None:
    assert doctor(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err


def test_the_table_in_the_documentation_is_that_of_the_rules() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "doctor.md").read_text()
    rows = [f"| `{r.id}` | {r.severity} | {r.measures} | {r.range} | {r.source} | {r.remedy} |" for r in RULES.values()]
    assert "\n".join(rows) in text
