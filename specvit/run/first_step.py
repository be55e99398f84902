"""Gradients, loss and activation scales of a run's first step. Legend: B rows of a step, P pixels.

Two configurations see the same rows and the same noise, so that their numbers compare.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from specvit.config.build import flatten
from specvit.config.schema import Config
from specvit.data.splits import Splits, open_splits
from specvit.run.context import LocatedRun, locate
from specvit.run.train_network import build_learner, train_data
from specvit.training.device import resolve_device, set_up_torch
from specvit.training.step import Learner
from specvit.utils.errors import ConfigError
from specvit.utils.quantities import Batch

Values = dict[str, float]
MAY_DIFFER = ("data.flux_norm", "data.storage")
"""Keys of the data that change what the network is given, not which rows, labels and noise."""


@dataclass(frozen=True)
class Stage:
    """What a part of a network gives: its shape with the batch, RMS, and std over spectra (root mean square)."""

    shape: tuple[int, ...]
    rms: float
    std: float


def first_steps(
    left: Config, right: Config, report: Callable[[str, int, int], None], say: Callable[[str], None]
) -> tuple[Values, Values]:
    """Return what each run's first step is like, by quantity; raises `ConfigError` where the two do not compare.

    `report` is called while built-in spectra are made, `say` with notes.
    """
    located = [locate(config, report) for config in (left, right)]
    _check_same_batch(left, right, *located)
    first, second = (
        _first_step(config, one.splits or open_splits(config, report), one.weights, say)
        for config, one in zip((left, right), located, strict=True)
    )
    return first, second


def _check_same_batch(left: Config, right: Config, located_left: LocatedRun, located_right: LocatedRun) -> None:
    """Raise `ConfigError` unless both have the same rows, labels, noise, loss and step."""

    def shared(config: Config, located: LocatedRun) -> dict[str, Any]:
        keys = flatten({name: located.identity["config"].get(name, {}) for name in ("data", "noise", "loss")})
        train = {
            f"train.{name}": getattr(config.train, name) for name in ("seed", "batch_size", "accumulate", "device")
        }
        return {key: value for key, value in {**keys, **train}.items() if key not in MAY_DIFFER}

    ours, theirs = shared(left, located_left), shared(right, located_right)
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if not differing and located_left.identity["data"] != located_right.identity["data"]:
        differing = ["the spectra"]
    if differing:
        verb = "differs" if len(differing) == 1 and differing != ["the spectra"] else "differ"
        remedy = "give both the same rows, noise, loss, batch and seed; data.flux_norm may differ"
        raise ConfigError(
            f"compares two first steps, but {', '.join(differing)} {verb}", where="--against", remedy=remedy
        )


def _first_step(config: Config, splits: Splits, weights: Any, say: Callable[[str], None]) -> Values:
    """Return the quantities of one run's first step.

    The step is the run's own: its precision, learning rate, dropout and clipping. Loss, input gradient and activations
    are in float32 without dropout. The input gradient (B, P) is that of the mean loss by the normalised flux;
    activations are those of the first forward pass.
    """
    device = resolve_device(config.train.device)
    set_up_torch(config.train, None, say, device)
    learner, state, flux_norm = build_learner(config, splits, weights, device)
    with contextlib.closing(train_data(config, splits, flux_norm, device)) as data:
        batch = data.batch(0)
    with activations(learner.module) as stages:
        loss, gradient_BP = _loss_and_gradient(learner, batch)
    learner.step(batch, state)
    if not state.sums["steps"].item():
        say("note: the first step's gradients are not finite, or overflow fp16's first loss scale of 65,536")
    norms = (state.sums["norms"] / state.sums["steps"]).tolist()
    names = ("gradient norm", *(f"gradient norm of {part}" for part in learner.optimizer.parts))
    return {
        "input gradient, norm": gradient_BP.norm().item(),
        "input gradient, greatest": gradient_BP.abs().max().item(),
        "loss before the step": loss,
        "loss after the step": _loss_and_gradient(learner, batch)[0],
        **dict(zip(names, norms, strict=True)),
        **_scales(stages),
    }


def _loss_and_gradient(learner: Learner, batch: Batch) -> tuple[float, Tensor]:
    """Return the mean loss of a batch and its gradient by the normalised flux (B, P), in float32."""
    learner.module.eval()
    total, gradients, pieces = 0.0, [], learner.train.accumulate
    known = learner.task.count(batch.target)
    for flux_BP, target in zip(batch.flux_BP.chunk(pieces), batch.target.chunk(pieces), strict=True):
        flux_BP = flux_BP.detach().float().requires_grad_()
        loss = learner.task.loss(learner.module(flux_BP), target, known) / (pieces if known is None else 1)
        gradients += torch.autograd.grad(loss, flux_BP)
        total += loss.item()
    return total, torch.cat(gradients)


def _scales(stages: dict[str, Stage]) -> Values:
    pairs = ((f"{name}: RMS", f"{name}: std over spectra", stage) for name, stage in stages.items())
    return {key: value for rms, std, stage in pairs for key, value in ((rms, stage.rms), (std, stage.std))}


@contextlib.contextmanager
def activations(module: nn.Module) -> Iterator[dict[str, Stage]]:
    """Record what each part of a network gives at its first call, in the order in which they are called."""
    stages: dict[str, Stage] = {}

    def record(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if name not in stages:
            output = output.detach().float()
            rms, std = output.square().mean().sqrt(), output.var(dim=0, correction=0).mean().sqrt()
            stages[name] = Stage(tuple(output.shape), rms.item(), std.item())

    handles = [child.register_forward_hook(partial(record, name)) for name, child in _stages(module)]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


def _stages(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a network that have weights, blocks one by one, and its positions."""
    for name, child in module.named_children():
        inner = child.named_children() if isinstance(child, nn.ModuleList | nn.Sequential) else ()
        for part, one in [(f"{name}.{number}", one) for number, one in inner] or [(name, child)]:
            if name == "positions" or any(True for _ in one.parameters()):
                yield part, one
