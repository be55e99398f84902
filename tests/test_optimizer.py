"""Gradient norms, clipping, weight decay and the optimizers."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Toy, rows, toy_run

from specvit.config.schema import ModelConfig, OptConfig
from specvit.engine.loop import evaluate
from specvit.engine.optimizer import build_optimizer, clip_gradients, gradient_norms
from specvit.models import build_model


def toy_with_gradients(scale: float = 1.0) -> Toy:
    """Return a toy that has been through one backward pass."""
    module = Toy(0.0)
    flux_BP, target_B1 = rows(1)
    (scale * (module(flux_BP) - target_B1).square().mean()).backward()
    return module


def flat_norm(parameters: Any) -> float:
    """Return the 2-norm of the parameters' gradients, laid end to end."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters]).double().norm().item()


def test_gradient_norms_are_the_whole_and_its_parts() -> None:
    module = toy_with_gradients()
    parts = [list(module.up.parameters()), list(module.down.parameters())]
    total, up, down = gradient_norms(parts).tolist()
    assert [up, down] == pytest.approx([flat_norm(part) for part in parts], rel=1e-6)
    assert total == pytest.approx(flat_norm(module.parameters()), rel=1e-6)
    assert total == pytest.approx(math.hypot(up, down), rel=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_scales_the_whole_gradient_to_the_limit_and_no_further(limit: float) -> None:
    module = toy_with_gradients()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    norm = flat_norm(module.parameters())
    clip_gradients(list(module.parameters()), gradient_norms([list(module.parameters())])[0], limit)
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
    config = ModelConfig(patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = build_model(config, num_pixels=20, num_outputs=1, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, opt).step()
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


def test_optimizer_settings_arrive() -> None:
    opt = OptConfig(type="AdamW", betas=(0.7, 0.8), momentum=0.6, lr=0.3)
    assert build_optimizer(Toy(0.0), opt).defaults["betas"] == (0.7, 0.8)
    for kind in ("SGD", "RMSprop"):
        optimizer = build_optimizer(Toy(0.0), dataclasses.replace(opt, type=kind))
        assert optimizer.param_groups[0]["momentum"] == 0.6
