"""Gradient norms, clipping, weight decay and the optimizers."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Toy, rows, toy_parts, toy_run

from specvit.config.schema import OptConfig, ViTConfig
from specvit.models import build_model
from specvit.training.loop import evaluate
from specvit.training.optimizer import Optimizer, build_optimizer, segments_of


def toy_with_gradients() -> tuple[Toy, Optimizer]:
    """Return a toy that has been through one backward pass, with its optimizer."""
    module = Toy(0.0)
    optimizer = build_optimizer(module, toy_parts(module), OptConfig())
    flux_BP, target_B1 = rows(1)
    (module(flux_BP) - target_B1).square().mean().backward()
    return module, optimizer


def flat_norm(parameters: Any) -> float:
    """Return the 2-norm of the parameters' gradients, laid end to end."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters]).double().norm().item()


def test_gradient_norms_are_the_whole_and_its_parts() -> None:
    module, optimizer = toy_with_gradients()
    total, up, down = optimizer.gradient_norms().tolist()
    assert optimizer.parts == ("up", "down")
    assert [up, down] == pytest.approx([flat_norm(part) for part in toy_parts(module).values()], rel=1e-6)
    assert total == pytest.approx(flat_norm(module.parameters()), rel=1e-6)
    assert total == pytest.approx(math.hypot(up, down), rel=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_scales_the_whole_gradient_to_the_limit_and_no_further(limit: float) -> None:
    module, optimizer = toy_with_gradients()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    norm = flat_norm(module.parameters())
    optimizer.clip(optimizer.gradient_norms()[0], limit)
    factor = min(1.0, limit / norm)
    for parameter, was in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, was * factor, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("precision", ["32", "16-mixed"])
@pytest.mark.parametrize("limit", [None, 0.05, 1e6])
def test_step_moves_by_the_clipped_gradient_and_logs_the_unclipped(
    tmp_path: Path, limit: float | None, precision: str
) -> None:
    run = toy_run(tmp_path, gradient_clip=limit, precision=precision)
    before = run.weights()
    run.step()
    moved, logged = (run.weights() - before).norm().item(), run.state.sums["norms"][0].item()
    assert logged > 0.1
    assert moved == pytest.approx(min(limit or math.inf, logged), rel=1e-3)


def parameters_moved_by_decay_alone(opt: OptConfig) -> set[str]:
    """Return which parameters a step with zero gradient changes, all of them starting from one."""
    config = ViTConfig(patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = build_model(config, num_pixels=20, num_outputs=1, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    build_optimizer(model, model.parts(), opt).step()
    return {name for name, parameter in model.named_parameters() if not torch.all(parameter == 1.0)}


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop"])
def test_weight_decay_spares_biases_norms_positions_and_cls(kind: str) -> None:
    layers = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    matrices = {"tokenizer.proj.weight", "head.weight", *(f"blocks.0.{layer}.weight" for layer in layers)}
    assert parameters_moved_by_decay_alone(OptConfig(type=kind, lr=0.1, weight_decay=0.1)) == matrices
    assert parameters_moved_by_decay_alone(OptConfig(type=kind, lr=0.1, weight_decay=0.0)) == set()


@pytest.mark.parametrize(("kind", "lr"), [("AdamW", 0.01), ("Adam", 0.01), ("SGD", 0.02), ("RMSprop", 0.002)])
@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_every_optimizer_learns(tmp_path: Path, kind: str, lr: float, precision: str) -> None:
    run = toy_run(tmp_path, opt=OptConfig(type=kind, lr=lr, lr_sch="none"), precision=precision)
    before = evaluate(run.learner, run.val)["loss"]
    for number in range(60):
        run.step(number)
    assert evaluate(run.learner, run.val)["loss"] < 0.4 * before


TORCHS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda groups, opt: torch.optim.AdamW(groups, lr=opt.lr, betas=opt.betas),
    "Adam": lambda groups, opt: torch.optim.Adam(groups, lr=opt.lr, betas=opt.betas),
    "SGD": lambda groups, opt: torch.optim.SGD(groups, lr=opt.lr, momentum=opt.momentum),
    "RMSprop": lambda groups, opt: torch.optim.RMSprop(groups, lr=opt.lr, momentum=opt.momentum),
}


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("changes", [{}, {"betas": (0.7, 0.8), "momentum": 0.6}, {"momentum": 0.0}])
@pytest.mark.parametrize("kind", TORCHS)
def test_updates_are_those_of_torch(kind: str, changes: dict[str, Any], factor: float) -> None:
    opt = OptConfig(type=kind, lr=0.01, weight_decay=0.1, **changes)
    ours, theirs = Toy(0.0), Toy(0.0)
    theirs.load_state_dict(ours.state_dict())
    factors = {"up": 1.0, "down": factor}
    segments = [replace(segment, lr_factor=factors[segment.part]) for segment in segments_of(ours, toy_parts(ours))]
    mine = Optimizer(segments, opt)
    assert len(mine.flats) == 2 * len(set(factors.values())), "segments that are updated alike share a buffer"
    groups = [
        {"params": [parameter], "weight_decay": 0.1 * (parameter.ndim > 1), "factor": factors[part]}
        for part, parameters in toy_parts(theirs).items()
        for parameter in parameters
    ]
    other = TORCHS[kind](groups, opt)
    for number in range(20):
        flux_BP, target_B1 = rows(number)
        mine.lr = 0.01 / (1 + number)
        for group in other.param_groups:
            group["lr"] = mine.lr * group["factor"]
        for module in (ours, theirs):
            (module(flux_BP) - target_B1).square().mean().backward()
        expected = [flat_norm(part) for part in (theirs.parameters(), *toy_parts(theirs).values())]
        assert mine.gradient_norms().tolist() == pytest.approx(expected, rel=1e-4)
        mine.step()
        mine.zero_gradients()
        other.step()
        other.zero_grad()
    for one, another in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-6)


def test_parameters_keep_their_values_and_share_memory_with_the_optimizer() -> None:
    module, untouched = Toy(0.0), Toy(0.0)
    untouched.load_state_dict(module.state_dict())
    optimizer = build_optimizer(module, toy_parts(module), OptConfig())
    for one, another in zip(module.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, another)
    inside = [
        any(p.data_ptr() - flat.values.data_ptr() in range(4 * flat.values.numel()) for flat in optimizer.flats)
        for p in module.parameters()
    ]
    assert all(inside)
    with pytest.raises(AssertionError):
        build_optimizer(module, {"up": list(module.up.parameters())}, OptConfig())
