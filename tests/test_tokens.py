"""`model.reduction`: which tokens are kept, what the network then computes, and what a run records of it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from specvit.analysis.attribution import spread
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.model_kinds import num_tokens, vit_flops
from specvit.config.schema import Config, NoiseConfig, ReductionConfig, ViTConfig
from specvit.data.shards import write_shard
from specvit.data.token_selection import Training, fisher_order
from specvit.data.views import open_spectra
from specvit.models import build_model
from specvit.models.vit import ViT
from specvit.run import kept_tokens
from specvit.run.kept_tokens import KeptTokens
from specvit.run.predictor import load_predictor
from specvit.training import checkpoint
from specvit.training.device import autocast
from specvit.utils.errors import CheckpointError, ConfigError, DataError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0}
STATIC = ReductionConfig(kind="static", merge_ratio=0.5)
TOKENIZERS = [("C1D", 16, 16), ("C1D", 16, 8), ("SW", 16, 5), ("linear", 16, 16), ("stem", 32, 16), ("stem", 16, 16)]
PATCH, PLANTED = 16, [3, 7, 12]
PATCHES = [range(start, start + PATCH) for start in range(0, 256, PATCH)]


def pair(kept: Callable[[int], list[int]], pixels: int = 103, **changes: Any) -> tuple[ViT, ViT, list[int]]:
    """Return a network of all tokens and one of some, with the same weights."""
    config = ViTConfig(**(SMALL | changes))
    whole = build_model(config, num_pixels=pixels, num_outputs=2, seed=1)
    assert isinstance(whole, ViT)
    tokens = kept(whole.num_tokens)
    some = build_model(replace(config, reduction=STATIC), num_pixels=pixels, num_outputs=2, seed=1, kept=tokens)
    assert isinstance(some, ViT)
    for (name, one), (other_name, other) in zip(whole.state_dict().items(), some.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(one, other)
    return whole, some, tokens


def some_of(tokens: int) -> list[int]:
    return sorted({0, 1, tokens // 2, tokens - 1})


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize(("proj_fn", "patch", "stride"), TOKENIZERS)
def test_kept_tokens_are_those_of_the_whole_network(
    proj_fn: str, patch: int, stride: int, positions: str, pool: str
) -> None:
    """Its first block's input, and the network's output against one in which the others cannot be attended to."""
    changes = {"proj_fn": proj_fn, "patch_size": patch, "stride_size": stride, "pos_encoding_type": positions}
    whole, some, kept = pair(some_of, pool=pool, **changes)
    flux_BP = torch.randn(3, 103, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, some = whole.double().eval(), some.double().eval()
    prefix = whole.num_prefix_tokens
    places = [*range(prefix), *(prefix + number for number in kept)]
    expected_BSD = whole._embedded(flux_BP)[:, places]
    torch.testing.assert_close(some._embedded(flux_BP), expected_BSD, rtol=1e-12, atol=1e-13)
    if positions != "rope":
        return
    for name in ("cos", "sin"):
        ours, theirs = (getattr(model.blocks[0].attention.rotary, name) for model in (some, whole))
        assert torch.equal(ours, theirs[places])


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize(("proj_fn", "patch", "stride"), TOKENIZERS)
def test_keeping_all_tokens_is_the_whole_network_bit_for_bit(
    proj_fn: str, patch: int, stride: int, precision: str
) -> None:
    whole, some, _ = pair(lambda tokens: list(range(tokens)), proj_fn=proj_fn, patch_size=patch, stride_size=stride)
    found = []
    for model in (whole, some):
        flux_BP = torch.randn(3, 103, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with autocast(precision, torch.device("cpu")):
            output_BK = model(flux_BP)
        output_BK.sum().backward()
        found.append([output_BK, flux_BP.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert some.cost() == whole.cost()


@pytest.mark.parametrize(("proj_fn", "patch", "stride"), TOKENIZERS)
def test_dropped_pixels_are_not_read_and_their_positions_get_no_gradient(proj_fn: str, patch: int, stride: int) -> None:
    whole, some, kept = pair(some_of, proj_fn=proj_fn, patch_size=patch, stride_size=stride)
    flux_BP = torch.randn(2, 103, requires_grad=True)
    read, expected = (
        torch.autograd.grad(tokens.sum(), flux_BP)[0] != 0
        for tokens in (some._embedded(flux_BP), whole.tokenizer(flux_BP)[:, kept])
    )
    assert torch.equal(read, expected) and not read.all()
    some(flux_BP).sum().backward()
    gradient = some.positions.weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [0, *(1 + token for token in kept)]


@pytest.mark.parametrize("changes", [{}, {"pool": "mean", "pos_encoding_type": "rope"}, {"proj_fn": "stem"}])
def test_flops_by_stage_are_those_counted(changes: dict[str, Any]) -> None:
    _, some, kept = pair(lambda tokens: [0, 2], patch_size=32, stride_size=16, **changes)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = some.train()(torch.randn(3, 103))
        forward = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        output.sum().backward()
    parts = {"tokenizer": forward["ViT.tokenizer"], "head": forward["ViT.head"]}
    parts["blocks"] = sum(forward[f"ViT.blocks.{number}"] for number in range(2))
    cost = some.cost()
    assert {name: 3 * count for name, count in cost.stage_flops.items()} == parts
    assert forward["Global"] == 3 * cost.forward_flops and counter.get_total_flops() == 3 * cost.training_flops
    assert (cost.num_tokens, cost.whole_tokens) == (len(kept), 5)
    assert any(line.startswith("model.reduction: 2 of 5 tokens (40.0%) and ") for line in cost.lines())


@pytest.mark.slow
@pytest.mark.parametrize("proj_fn", ["C1D", "stem"])
def test_a_reduced_network_is_compiled_as_one_graph(proj_fn: str) -> None:
    _, some, _ = pair(some_of, proj_fn=proj_fn, patch_size=32, stride_size=16)
    flux_BP, found = torch.randn(3, 103), []
    for forward in (some, torch.compile(some, backend="aot_eager", fullgraph=True)):
        some.zero_grad()
        output_BK = forward(flux_BP)
        output_BK.sum().backward()
        found.append([output_BK, *(parameter.grad for parameter in some.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_the_forecast_counts_the_kept_tokens() -> None:
    model = ViTConfig(reduction=ReductionConfig(kind="static", target_merge_tokens=96))
    real = build_model(model, num_pixels=4096, num_outputs=1, seed=0, kept=range(96)).cost()
    assert num_tokens(asdict(model)) == real.num_tokens + real.num_prefix_tokens == 97
    assert vit_flops(asdict(model)) == (real.forward_flops, real.training_flops)
    assert 0.3 < real.forward_flops / real.whole_flops < 0.375


def planted(folder: Path, rows: int, noise: float = 0.0) -> Training:
    """Return spectra whose log_g acts in the planted patches alone, and T_eff in all others."""
    rng = np.random.default_rng(1)
    labels = pd.DataFrame(
        {"log_g": rng.normal(size=rows), "T_eff": rng.normal(size=rows), "mag": rng.normal(size=rows)}
    )
    of_gravity = np.isin(np.arange(256) // PATCH, PLANTED)
    effect_NP = np.where(of_gravity, labels[["log_g"]], labels[["T_eff"]])
    error_NP = np.full((rows, 256), max(noise, 0.02))
    flux_NP = 5.0 + 0.01 * effect_NP + 0.002 * effect_NP**2 + noise * rng.normal(size=(rows, 256))
    write_shard(folder / "x.h5", wave_P=7100.0 + np.arange(256), flux_NP=flux_NP, error_NP=error_NP, labels=labels)
    return Training(open_spectra([folder / "x.h5"], -1, observed=noise > 0), NoiseConfig(), ("log_g",))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_exactly_the_planted_patches_are_chosen(tmp_path: Path, noise: float) -> None:
    training = planted(tmp_path, 2000, noise)
    order, gains = fisher_order(training, PATCHES, 3, "log_g")
    assert sorted(order) == PLANTED
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0 and sum(gains) < 1
    others, _ = fisher_order(training, PATCHES, 13, "T_eff")
    assert sorted(others) == sorted(set(range(16)) - set(PLANTED))


def test_a_pixel_that_two_tokens_share_counts_once(tmp_path: Path) -> None:
    """With patches that overlap by half, two tokens of a planted patch bring no more than the one that covers it."""
    training = planted(tmp_path, 500)
    patches = [range(start, start + PATCH) for start in range(0, 241, PATCH // 2)]
    order, gains = fisher_order(training, patches, 4, "log_g")
    assert sorted(order[:3]) == [2 * number for number in PLANTED] and gains[3] < 0.01 * gains[2]


def test_the_list_depends_on_neither_files_nor_threads(files: dict[str, list[Path]]) -> None:
    found = []
    for layout, threads in [("contiguous", 1), ("shards", 1), ("mixed", 2), ("contiguous", 2)]:
        torch.set_num_threads(threads)
        training = Training(open_spectra(files[layout], -1), NoiseConfig(), ("log_g",))
        found.append(fisher_order(training, PATCHES, 6, "log_g"))
        assert torch.get_num_threads() == threads
    assert all(one == found[0] for one in found)


def test_lines_of_shifted_stars_are_followed() -> None:
    """Without the shift's width in the window the tokens beside a line would tell nothing."""
    words = ["data=synth", "data.num_samples=500", "data.val_samples=10", "data.test_samples=10", "train.batch_size=8"]
    words += ["model.patch_size=16", "model.stride_size=16", "model.reduction.kind=static"]
    kept = {}
    for shift in (0.0, 0.001):
        splits = opened(
            config := configured(*words, "model.reduction.target_merge_tokens=4", f"data.max_redshift={shift}")
        )
        kept[shift] = kept_tokens.choose(config, splits, None)
    assert kept[0.0] is not None and kept[0.001] is not None
    assert sum(kept[0.001].gains) < sum(kept[0.0].gains)
    windows = [*words, "model.reduction.select=list", "model.reduction.keep_wavelengths=[[8000,8001]]"]
    counts = []
    for shift in (0.0, 0.001):
        config = configured(*windows, f"data.max_redshift={shift}")
        counts.append(kept_tokens.choose(config, opened(config), None))
    narrow, wide = (set(one.tokens) for one in counts if one)
    assert narrow < wide and len(narrow) <= 2 < len(wide)


def configured(*words: str) -> Config:
    return build_config(compose(list(words)))


def opened(config: Config) -> Any:
    from specvit.data.splits import open_splits

    return open_splits(config, lambda *_: None)


@pytest.fixture(scope="module")
def reduced(tiny: list[str]) -> list[str]:
    return [*tiny, "model.reduction.kind=static", "model.reduction.target_merge_tokens=3"]


def test_uniform_random_and_list(reduced: list[str]) -> None:
    def kept(*words: str) -> tuple[int, ...]:
        config = configured(*reduced, "data.num_samples=192", *words)
        found = kept_tokens.choose(config, opened(config), None)
        assert found is not None and not found.gains
        return found.tokens

    assert kept("model.reduction.select=uniform") == (1, 4, 6)
    draws = {seed: kept("model.reduction.select=random", f"train.seed={seed}") for seed in range(4)}
    assert len(set(draws.values())) > 1 and all(len(set(draw)) == 3 for draw in draws.values())
    both = {*kept("model.reduction.select=random", "train.seed=1", "model.reduction.target_merge_tokens=5")}
    assert {*draws[1]} < both
    windows = "model.reduction.keep_wavelengths=[[7100,7101],[7115.75,7116.2]]"
    assert kept("model.reduction.select=list", "model.reduction.target_merge_tokens=null", windows) == (0, 1)


def test_a_run_keeps_its_list_and_is_evaluated_with_it(
    reduced: list[str], reference_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = reference_run(reduced)
    content = checkpoint.load(run / "best.ckpt")
    table = pd.read_csv(run / "kept_wavelengths.csv")
    assert list(table.columns) == ["token", "first_wavelength", "last_wavelength", "gain", "lines"]
    assert table["token"].tolist() == content["kept_tokens"]["tokens"] and len(table) == 3
    np.testing.assert_allclose(table["first_wavelength"], 7100 + 16 * table["token"])
    np.testing.assert_allclose(table["last_wavelength"], 7115.5 + 16 * table["token"])
    assert "model.reduction: 3 of 8 tokens (37.5%)" in (run / "log.txt").read_text()
    config = configured(*reduced)
    model = load_predictor(run / "best.ckpt", config, torch.device("cpu"), content["run_id"]).model
    assert isinstance(model, ViT) and model.kept_N is not None and model.kept_N.tolist() == table["token"].tolist()
    content["kept_tokens"]["tokens"][0] += 1
    checkpoint.save(tmp_path / "best.ckpt", {name: part for name, part in content.items() if name != "format"})
    with pytest.raises(CheckpointError, match="has no valid list of kept tokens"):
        load_predictor(tmp_path / "best.ckpt", config, torch.device("cpu"), content["run_id"])


def test_lines_are_named_and_attention_is_drawn_at_the_tokens_places() -> None:
    wave_P = 7100.0 + 0.427 * np.arange(4096)
    text = kept_tokens.table_of(KeptTokens((40, 52), (0.4, 0.2)), ViTConfig(patch_size=64, stride_size=64), wave_P)
    lines = text.splitlines()
    assert lines[1].endswith('0.4,"Na I, TiO gamma 0-2"') and lines[2].endswith("0.2,Ca II triplet")
    spread_P = spread(np.array([0.25, 0.75]), 12, 4, 4, [0, 2])
    np.testing.assert_allclose(spread_P, np.repeat([0.25, 0.0, 0.75], 4) / 4)


@pytest.mark.slow
def test_attention_of_a_reduced_model_is_on_its_tokens(
    reduced: list[str], reference_run: Callable[..., Path], tmp_path: Path
) -> None:
    from specvit.commands.analysis import main

    assert main(["attention", str(reference_run(reduced)), "--rows", "8", "--out", str(tmp_path)]) == 0
    pixels = pd.read_csv(tmp_path / "attention.csv")
    tokens = checkpoint.load(reference_run(reduced) / "best.ckpt")["kept_tokens"]["tokens"]
    for name in ("saliency", "attention", "rollout"):
        used = set((np.flatnonzero(pixels[name]) // 32).tolist())
        assert used == set(tokens), name
        assert pixels[name].sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_killed_run_ends_bitwise_equal_and_does_not_choose_again(
    reduced: list[str], trained: Any, unbroken: Any, tmp_path: Path
) -> None:
    import signal

    from planted import At, Fail, OnceWritten, Stop
    from whole_runs import STEADY, assert_same_run, only_run

    step = "specvit.training.step.Learner.step"
    arguments = [*reduced, *STEADY, f"tracking.folder={tmp_path / 'runs'}"]
    ended = trained(arguments, At(step, Stop(signal.SIGKILL), call=31), At(step, OnceWritten(), lasting=True))
    assert ended.code == -signal.SIGKILL, ended.said
    again = trained(arguments, At("specvit.run.kept_tokens.fisher_order", Fail(AssertionError("chosen again"))))
    assert again.code == 0 and "resuming from step 24" in again.said, again.said
    assert_same_run(only_run(tmp_path / "runs"), unbroken([*reduced, *STEADY]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge_ratio=0.5"], "model.reduction.merge_ratio: has no effect: model.reduction.kind=none keeps all"),
        (["select=uniform"], "model.reduction.select: has no effect: model.reduction.kind=none"),
        (["kind=static"], "model.reduction.merge_ratio: is not set, nor .*target_merge_tokens, so how many"),
        (["kind=static", "merge_ratio=0.5", "target_merge_tokens=3"], "target_merge_tokens: says how many .* one of"),
        (["kind=static", "merge_ratio=0"], "model.reduction.merge_ratio: expects a number above 0 and of at most 1"),
        (["kind=static", "merge_ratio=1.5"], "model.reduction.merge_ratio: expects a number above 0 and of at most 1"),
        (["kind=static", "target_merge_tokens=65"], "target_merge_tokens: is 65, but a spectrum has 64 tokens"),
        (
            ["kind=static", "merge_ratio=0.5", "select_label=T_eff"],
            "select_label: is 'T_eff', which is none of the lab",
        ),
        (["kind=static", "merge_ratio=0.5", "select=random", "select_label=log_g"], "select_label: has no effect"),
        (["kind=static", "merge_ratio=0.5", "keep_wavelengths=[[1,2]]"], "keep_wavelengths: has no effect"),
        (["kind=static", "select=list"], "keep_wavelengths: is not set"),
        (["kind=static", "select=list", "keep_wavelengths=[[2,1]]"], "keep_wavelengths: goes from 2 down to 1"),
        (["kind=static", "select=list", "keep_wavelengths=[[1,2]]", "merge_ratio=0.5"], "merge_ratio: has no effect"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    sizes = ["data=builtin", "model.patch_size=64"]
    with pytest.raises(ConfigError, match=message):
        configured(*sizes, *(f"model.reduction.{word}" for word in words))


def test_other_kinds_of_model_refuse_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"model.reduction.kind: belongs to model=vit, not to the model that was"):
        configured("model=cnn", "model.reduction.kind=static")


def test_windows_without_a_token_and_too_few_rows_are_refused_before_a_run(reduced: list[str], tiny: list[str]) -> None:
    config = configured(*tiny, "model.reduction={kind: static, select: list, keep_wavelengths: [[1, 2]]}")
    with pytest.raises(ConfigError, match=r"keep_wavelengths: touch no token; the spectra are of 7100.0 to 7227.5"):
        kept_tokens.preview(config, opened(config))
    config = configured(*reduced, "data.num_samples=40")
    with pytest.raises(DataError, match=r"select=fisher: needs 56 training rows with .*log_g, and there are 40"):
        kept_tokens.preview(config, opened(config))
