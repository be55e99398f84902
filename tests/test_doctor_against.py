"""`specvit doctor --against`: the first steps of two runs on the same rows and noise."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from specvit.commands.doctor import main as doctor
from specvit.commands.train import main as train
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.splits import open_splits
from specvit.run.train_network import build_learner, train_data
from specvit.utils.files import read_json_lines

CPU = torch.device("cpu")


def silent(*_: Any) -> None:
    """Report nothing."""


def compared(capsys: Any, left: list[str], right: str) -> dict[str, tuple[str, ...]]:
    """Return A, B and B / A of each quantity."""
    assert doctor([*left, "--against", right, "--style", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["quantity", "A", "B", "B / A"]
    return {name: tuple(cells) for name, *cells in rows[1:]}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_c1d_and_sw_start_alike_unless_the_initialisation_is_the_old_one(tiny: list[str], capsys: Any) -> None:
    alike = compared(capsys, [*tiny, "train.accumulate=2"], "model/tokenizer=sw")
    assert {ratio for _, _, ratio in alike.values()} == {"1.0"}
    old = compared(capsys, [*tiny, "model.init=legacy"], "model/tokenizer=sw")
    std_of_c1d = (3 * 32) ** -0.5
    assert float(old["tokenizer: std over spectra"][2]) == pytest.approx(0.02 / std_of_c1d, rel=0.3)
    assert doctor([*tiny, "model.init=legacy", "--against", "model/tokenizer=sw"]) == 0
    said = capsys.readouterr().out
    marked = {line.split("  ")[0] for line in said.splitlines() if line.endswith(" *")}
    assert {"tokenizer: RMS", "tokenizer: std over spectra"} <= marked and "loss before the step" not in marked


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_the_step_is_the_run_s_own_and_the_loss_that_of_its_batch(precision: str, tiny: list[str], capsys: Any) -> None:
    words = [*tiny, f"train.precision={precision}", "model.dropout=0.1", "train.epochs=1"]
    found = compared(capsys, words, "train.gradient_clip=1e-3")
    config = build_config(compose(words))
    splits = open_splits(config, silent)
    learner, state, flux_norm = build_learner(config, splits, None, CPU)
    batch = train_data(config, splits, flux_norm, CPU).batch(0)
    flux_BP = batch.flux_BP.clone().requires_grad_()
    loss = learner.task.loss(learner.module.eval()(flux_BP), batch.target)
    (gradient_BP,) = torch.autograd.grad(loss, flux_BP)
    assert float(found["loss before the step"][0]) == pytest.approx(loss.item(), rel=1e-6)
    assert float(found["input gradient, norm"][0]) == pytest.approx(gradient_BP.norm().item(), rel=1e-6)
    assert float(found["input gradient, greatest"][1]) == pytest.approx(gradient_BP.abs().max().item(), rel=1e-6)
    learner.step(batch, state)
    norms = [float(found[name][0]) for name in found if name.startswith("gradient norm")]
    assert norms == state.sums["norms"].tolist() and len(norms) == 5
    after = learner.task.loss(learner.module.eval()(batch.flux_BP), batch.target).item()
    assert float(found["loss after the step"][0]) == pytest.approx(after, rel=1e-6)
    assert float(found["gradient norm"][2]) == 1.0  # of the gradient, which clipping follows


def test_runs_are_compared_by_hash_and_the_norm_is_that_of_their_record(tiny: list[str], capsys: Any) -> None:
    words = [*tiny, "train.epochs=1", "train.batch_size=192", "tracking.folder=outputs"]
    assert train(words) == 0 and train([*words, "model.proj_fn=SW", "data.flux_norm=none"]) == 0
    runs = sorted(Path("outputs").iterdir())  # c1d, sw
    capsys.readouterr()
    found = compared(capsys, [runs[0].name[-8:]], str(runs[1]))
    for run, value in zip(runs, found["gradient norm of head"], strict=False):
        (row,) = read_json_lines(run / "metrics.jsonl")
        assert row["step"] == 1 and row["grad_norm_head"] == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ([], "model.hiden_size=8", "model.hiden_size: unknown key; did you mean model.hidden_size?"),
        (
            ["model=ridge"],
            "model.num_alphas=9",
            "model.kind=ridge is fitted in one go: it has no first step; compare networks",
        ),
        ([], "train.seed=7 data.param=T_eff", "data.param, train.seed differ; give both the same rows, noise"),
        ([], "noise.noise_level=9", "noise.noise_level differs; give"),
        ([], "loss=l1", "loss.name differs; give"),
        ([], "data.num_samples=100", "the spectra differ"),
        ([], "nothing", "nothing: is not a known run; name a folder in outputs or a run's hash"),
        (["nothing"], "model.dropout=0", "--against: has overrides beside the run nothing; name two runs"),
        ([], "'model.dropout=0", "is neither a run nor overrides; write overrides as one word, such as"),
        ([], "", "--against: '' is neither a run nor overrides"),
        (["--stile=csv"], "model.dropout=0", "unrecognized arguments: --stile=csv"),
        (["--cluster"], "model.dropout=0", "unrecognized arguments: --cluster"),
    ],
)
def test_what_does_not_compare_is_refused_in_one_sentence(
    left: list[str], right: str, said: str, tiny: list[str], capsys: Any
) -> None:
    words = left if left in (["nothing"], ["model=ridge"]) else [*tiny, *left]
    assert doctor([*words, "--against", right]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and said in shown.err


def test_a_run_of_sw_under_the_old_initialisation_is_warned_of(tiny: list[str], capsys: Any) -> None:
    warning = "starts SW from weights of std 0.02, where C1D has 0.102; model.init=specvit starts all alike"
    words = [*tiny, "train.epochs=1", "tracking.folder=outputs", "model.init=legacy"]
    assert train([*words, "model.proj_fn=SW"]) == 0
    assert f"note: model.init=legacy {warning}" in capsys.readouterr().out
    assert train(words) == 0 and "where C1D has" not in capsys.readouterr().out
