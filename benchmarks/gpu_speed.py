"""How fast a GPU trains: the table of `make bench`, and specvit's step as shipped, as one CUDA graph and compiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import machine
import torch
import train_speed
from cases import REFERENCE, ROWS, SMALL, Case, make_learner, train_data
from gpu_checks import Ground
from torch import Tensor

from specvit.data.batches import TrainData
from specvit.models import build_model
from specvit.models.dropout import KeyedDropout, keep_mask
from specvit.training.device import autocast
from specvit.utils.quantities import NUM_PIXELS, Batch

LONGEST_TABLE = 60.0
"""Seconds."""
Build = Callable[[Case, TrainData, torch.device], Callable[[], None]]


def sizes(ground: Ground) -> list[Case]:
    """Return what is timed."""
    if ground.small:
        return [Case("small", ground.vit, 8), Case("real", replace(ground.vit, num_hidden_layers=2), 4)]
    return [Case("small", SMALL, 128), Case("real", REFERENCE, 256 if ground.device.type == "cuda" else 32)]


def precisions(device: torch.device) -> tuple[str, ...]:
    """Return what the device computes in; 16-mixed is the published runs'."""
    fast = ("bf16-mixed",) if machine.has_bf16(device) else ()
    return ("32", *fast, "16-mixed") if device.type == "cuda" else ("32", *fast)


def peaks(ground: Ground) -> dict[str, float]:
    """Return FLOP/s of a large matrix product, in float32 without TF32 and in 16 bits."""
    device, seconds = ground.device, 0.1 if ground.small else 1.0
    size = 256 if ground.small else 8192 if device.type == "cuda" else 2048
    types = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    found = {}
    for name in precisions(device):
        one, other = (torch.randn(size, size, device=device).to(types[name]) for _ in range(2))
        rate = train_speed.step_rate(lambda one=one, other=other: one @ other, 1, seconds, device)
        found[name] = 2 * size**3 * rate
    return found


def speed_table(case: Case, ground: Ground, peak: dict[str, float]) -> dict[str, Any]:
    """Return the side-by-side table of a case with shares of the peak, as far as a minute goes."""
    rounds, seconds, rows = (1, 0.05, 64) if ground.small else (3, 1.5, ROWS)
    until = machine.now() + LONGEST_TABLE - 10
    row = train_speed.time_case(case, ground.device, rounds, seconds, until, rows)
    ways, rates = train_speed.ways_on(ground.device), row["spectra_per_s"]
    row["share_of_peak"] = {name: share(rate, case, peak.get(ways[name].precision)) for name, rate in rates.items()}
    return row


def share(rate: float, case: Case, peak: float | None) -> float | None:
    """Return which part of the matrix-product peak so many spectra a second come to."""
    flops = build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).cost().training_flops
    return round(rate * flops / peak, 4) if peak else None


def steps_of(ground: Ground) -> dict[str, tuple[Case, Build]]:
    """Return the further ways to make a step, by name: what needs a compiler last."""
    builds: dict[str, Build] = {"step": plain_loop}
    if ground.device.type == "cuda":
        builds["CUDA graph"] = graph_loop
    builds["compiled"] = compiled_loop
    return {
        f"{case.name} {name} {precision}": (replace(case, precision=precision), build)
        for name, build in builds.items()
        for case in sizes(ground)
        for precision in precisions(ground.device)
        if build is plain_loop or precision != "16-mixed"  # in a graph its scaler would ask on the host
    }


def rate_of(case: Case, build: Build, ground: Ground, peak: dict[str, float]) -> dict[str, Any]:
    """Return spectra/s of one way, its share of the peak, and for which part of a step the host is busy."""
    device, seconds, rows = ground.device, 0.05 if ground.small else 2.0, 64 if ground.small else ROWS
    train_speed.surroundings(train_speed.OURS["specvit"])
    take = build(case, train_data(ground.folder / f"{case.name}.h5", case.batch_size, device, rows=rows), device)
    rate = train_speed.step_rate(take, case.batch_size, seconds, device)
    machine.synchronize(device)
    began = machine.now()
    for _ in range(5):
        take()
    host = machine.now() - began
    machine.synchronize(device)
    found = {"spectra_per_s": round(rate, 1), "share_of_peak": share(rate, case, peak.get(case.precision))}
    found["host_share"] = round(host / (machine.now() - began), 3)
    if device.type == "cuda":
        found["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        torch.cuda.reset_peak_memory_stats(device)
    return found


def plain_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return specvit's step as shipped."""
    learner, state = make_learner(case, data, device)

    def step() -> None:
        learner.step(data.batch(state.step), state)
        state.step += 1

    return step


def compiled_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return specvit's step with the network compiled, once that computes what the plain one does."""
    torch._dynamo.reset()
    (plain, _), (compiled, state) = (make_learner(case, data, device) for _ in range(2))
    compiled.module.compile()
    gradients = []
    for learner in (plain, compiled):
        learner.module.train().set_step_key(7)
        with autocast(case.precision, device):
            output = learner.module(data.batch(0).flux_BP)
        output.float().square().mean().backward()
        gradients.append(torch.cat([flat.gradient for flat in learner.optimizer.flats]))
        learner.optimizer.zero_gradients()
    apart = train_speed.apart([(gradients[1], gradients[0])])
    assert apart < (1e-4 if case.precision == "32" else 3e-2), f"gradients are {apart:.1e} apart"

    def step() -> None:
        compiled.step(data.batch(state.step), state)
        state.step += 1

    return step


def graph_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return specvit's step captured as one CUDA graph, at a constant learning rate.

    What changes from step to step lies in fixed buffers that are filled before each replay: the batch and the masks.
    """
    learner, state = make_learner(case, data, device)
    batch = data.batch(0)
    batch = Batch(batch.flux_BP.clone(), batch.target.clone())
    masks: dict[KeyedDropout, Tensor] = {}

    def fixed(module: KeyedDropout) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            if module not in masks:
                masks[module] = keep_mask(x.shape, module.p, 1, module.layer, x.device)
            return masks[module]

        return keep

    for module in learner.module.modules():
        if isinstance(module, KeyedDropout):
            module._keep = fixed(module)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            learner.step(batch, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        learner.step(batch, state)

    def step() -> None:
        new = data.batch(state.step)
        batch.flux_BP.copy_(new.flux_BP)
        batch.target.copy_(new.target)
        for module, mask in masks.items():
            mask.copy_(keep_mask(mask.shape, module.p, state.step, module.layer, mask.device))
        graph.replay()
        state.step += 1

    return step
