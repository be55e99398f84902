"""Composing many runs: the composer of studies gives what the one door gives, from a study's own copy of the files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specvit.config.compose import Composer
from specvit.config.compose import compose as compose_once
from specvit.config.overrides import check_overrides
from specvit.study.plan import take_snapshot
from specvit.study.store import StudyFolder
from specvit.utils.errors import ConfigError

LISTS = [
    [],
    ["opt.lr=2e-3", "experiment=scaling_50k", "tracking.name=null", "data.param=T_eff,log_g"],
    ["experiment=sw_safe", "tracking.notes='a b, c'", "opt={lr:2}", "opt.lr=1"],
    ["model.proj_fn=SW", "model/tokenizer=sw_overlap8"],
    ["model/tokenizer=sw", "model/tokenizer=c1d", "opt.betas=0.8,0.95"],
    ['model/size="tiny"', "model.stride_size=${.patch_size}", "opt.lr=1", "opt={lr:2,weight_decay:0}"],
    ["data=bosz", "data/size=200k", "data.param=[T_eff,log_g]", "model.patch_size=32"],
    ["data.val_samples=10", "data=builtin", "data/size=1k", "loss=ce", "model.task_type=cls", "data.class_edges=[2,3]"],
    ["data=synth", "data/size=100k", "data.endless=true", "data.max_redshift=0.0005"],
    ["data=velocity", "data.param=[redshift,log_g]", "data/size=1k"],
    ["+tracking.tags.paper=one", "++tracking.tags.other=two", "++opt.lr=1"],
    ["+tracking.tags={a:1}", "opt.lr=1", "opt.lr=2", "opt=sgd"],
    ["train=full", "train.early_stopping.patience=null", "train.precision=32", "noise=none"],
]
BAD = [
    ["opt.lrr=1"],
    ["optt=sgd"],
    ["model/tokeniser=sw"],
    ["model/size=huge"],
    ["model.tokenizer=sw"],
    ["+opt.lr=1"],
    ["+opt=sgd"],
    ["~opt.lr"],
    ["tracking.tags.paper=one"],
    ["opt"],
    ["=1"],
    ["opt.lr=[1"],
    ["opt.lr=1,2"],
    ["opt.lr=interval(1,2)"],
    ["model/size=tiny,small"],
    ["experiment=null"],
    ["hydra/launcher=local"],
    ["hydra.run.dir=a"],
    ["loss.name=${oc.env:NOT_SET_ANYWHERE}"],
    ["model/tokenizer=sw", "model.proj_fn=C1D"],
    ["model.proj_fn=SW", "model/tokenizer=c1d"],
]
many = Composer()


def refusal(compose: Any, overrides: Sequence[str]) -> str:
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    return str(refused.value)


def few_and_all(cases: list[list[str]]) -> Any:
    """Return the mark that gives a test the first of the cases, and slowly the rest."""
    rest = pytest.param(cases[4:], marks=pytest.mark.slow)
    return pytest.mark.parametrize("cases", [cases[:4], rest], ids=["first", "rest"])


@few_and_all(LISTS)
def test_many_runs_are_composed_as_each_alone(cases: list[list[str]]) -> None:
    wrong = [overrides for overrides in cases if many(overrides) != compose_once(overrides)]
    assert wrong == []  # whatever was composed before


def test_one_run_leaves_no_trace_in_the_next() -> None:
    compose = Composer()
    first = compose(["model/size=tiny", "opt.lr=1"])
    first["opt"]["lr"] = 7.0
    first["model"].clear()
    assert compose(["model/size=tiny", "opt.betas=[0.5,0.6]"])["opt"] | {"betas": [0.9, 0.999]} == compose_once()["opt"]
    assert compose(["model/size=tiny", "opt.lr=1"]) == compose_once(["model/size=tiny", "opt.lr=1"])


@few_and_all(BAD)
def test_many_runs_are_refused_as_each_alone(cases: list[list[str]]) -> None:
    refusals = [(overrides, refusal(compose_once, overrides), refusal(many, overrides)) for overrides in cases]
    assert [case for case in refusals if "\n" in case[1] or case[1] != case[2]] == []


def test_what_was_refused_is_refused_again() -> None:
    compose = Composer()
    for overrides in (["opt.lr=1,2"], ["model/tokenizer=sw", "model.proj_fn=C1D"]):
        assert refusal(compose, overrides) == refusal(compose, overrides)


# a study's own copy


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user's own `./conf`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "conf")
    return tmp_path / "conf"


def write(conf: Path, lr: str = "1.0e-3", delta: str = "0.3") -> None:
    files = {
        "experiment/mine.yaml": f"# @package _global_\ndefaults: [override /loss: soft]\nopt: {{lr: {lr}}}\n",
        "loss/soft.yaml": f"defaults: [mse, _self_]\nname: huber\nhuber_delta: {delta}\n",
        "model/size/tiny.yaml": "# @package model\nhidden_size: 24\nnum_attention_heads: 2\n",  # over the bundled one
        "local.yaml": f"train: {{batch_size: {32 if lr == '1.0e-3' else 64}}}\n",
    }
    for name, text in files.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)


def snapshot(place: Path) -> StudyFolder:
    study = StudyFolder(place / "multirun" / "toy")
    study.create()
    take_snapshot(study)
    return study


def summary_of(plain: dict[str, Any]) -> tuple[Any, ...]:
    return plain["opt"]["lr"], plain["loss"]["huber_delta"], plain["train"]["batch_size"]


@pytest.mark.parametrize("overrides", [["experiment=mine"], ["model/size=tiny", "loss=soft"]], ids=" ".join)
def test_a_snapshot_composes_as_the_files_did_whatever_becomes_of_them(
    overrides: list[str], user: Path, tmp_path: Path
) -> None:
    before = compose_once(overrides)
    study = snapshot(tmp_path)
    early = Composer(study.file("conf"))
    assert early(["opt.eta_min=0"])["train"]["batch_size"] == 32
    write(user, lr="7.0", delta="9.0")
    assert summary_of(compose_once(overrides)) != summary_of(before)
    (user / "loss" / "soft.yaml").unlink()
    for compose in (early, Composer(study.file("conf")), partial(compose_once, folder=study.file("conf"))):
        assert compose(overrides) == before


def test_a_snapshot_knows_nothing_that_came_later(user: Path, tmp_path: Path) -> None:
    study = snapshot(tmp_path)
    (user / "experiment" / "later.yaml").write_text("# @package _global_\nopt: {lr: 3.0}\n")
    assert compose_once(["experiment=later"])["opt"]["lr"] == 3.0
    for compose in (Composer(study.file("conf")), partial(compose_once, folder=study.file("conf"))):
        assert "experiment: has no option 'later'" in refusal(compose, ["experiment=later"])
    check_overrides(["experiment=later"])  # the snapshot's turn is over


def test_a_new_snapshot_takes_the_place_of_the_old_one(user: Path, tmp_path: Path) -> None:
    study = snapshot(tmp_path)
    (user / "experiment" / "mine.yaml").unlink()
    (user / "loss" / "soft.yaml").rename(user / "loss" / "softer.yaml")
    take_snapshot(study)
    compose = Composer(study.file("conf"))
    assert compose(["loss=softer"])["loss"]["huber_delta"] == 0.3
    assert "has no option 'mine'" in refusal(compose, ["experiment=mine"])
    assert "has no option 'soft'; did you mean softer?" in refusal(compose, ["loss=soft"])
