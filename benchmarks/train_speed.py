"""Training speed beside what users run today and beside the floor: python benchmarks/train_speed.py (`make bench`).

First a check that all compute the same function: with copied weights, outputs and gradients agree. Then one process
times all of them in turn, in rounds, so that a drift of the machine meets them alike; quote the ratios. The peer
(HuggingFace ViTModel, Lightning, DataLoader; benchmarks/peer.py) as users run it, deterministic; helped, with the
allocator's setting, without determinism, on a GPU with loading processes; at its best, without dropout on attention
weights, too, which makes it specvit's maths; specvit's step as shipped; the leanest loop (benchmarks/lean.py).
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import machine
import torch
from cases import REFERENCE, ROWS, SMALL, Case, make_learner, train_data
from lean import FlatParameters, forward, lean_step

from specvit.config.schema import ViTConfig
from specvit.data.batches import TrainData
from specvit.models import build_model
from specvit.training.device import autocast, resolve_precision
from specvit.training.step import CHECK_STEPS
from specvit.utils.memory import keep_memory
from specvit.utils.quantities import NUM_PIXELS

try:
    import peer
except ImportError:  # without the bench extra, as on a borrowed GPU machine
    peer = None


@dataclass(frozen=True)
class Way:
    """One way to train the same network."""

    kind: str
    precision: str
    stock_allocator: bool = False
    deterministic: bool = True
    fill: bool = False
    """Whether determinism fills every new tensor, as torch does by default."""
    attention_dropout: bool = True


PEERS = {
    "peer": Way("peer", "32", stock_allocator=True, fill=True),
    "peer bf16": Way("peer", "bf16-mixed", stock_allocator=True, fill=True),
    "peer helped": Way("peer", "32", deterministic=False),
    "peer helped bf16": Way("peer", "bf16-mixed", deterministic=False),
    "peer best": Way("peer", "32", deterministic=False, attention_dropout=False),
    "peer best bf16": Way("peer", "bf16-mixed", deterministic=False, attention_dropout=False),
}
OURS = {
    "specvit": Way("specvit", "32"),
    "specvit bf16": Way("specvit", "bf16-mixed"),
    "leanest": Way("leanest", "32", deterministic=False),
    "leanest bf16": Way("leanest", "bf16-mixed", deterministic=False),
}
RATIOS = {
    "specvit over peer": ("specvit", "peer"),
    "specvit bf16 over peer": ("specvit bf16", "peer"),
    "specvit over peer helped": ("specvit", "peer helped"),
    "specvit over peer best": ("specvit", "peer best"),
    "specvit bf16 over peer helped bf16": ("specvit bf16", "peer helped bf16"),
    "specvit bf16 over peer best bf16": ("specvit bf16", "peer best bf16"),
    "leanest over specvit": ("leanest", "specvit"),
    "leanest bf16 over specvit bf16": ("leanest bf16", "specvit bf16"),
}
Rate = Callable[[float], float]
"""Seconds to spend -> spectra/s."""


def main() -> None:
    """Check, time, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="a round's length for each way, at least")
    parser.add_argument("--sizes", default="small,real", help="which of the two networks")
    parser.add_argument("--minutes", type=float, default=7.0, help="no way is begun after that")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started, device = machine.now(), torch.device(options.device)
    machine.set_up(device)
    record = machine.facts(device, ("torch", "numpy", *(("transformers", "lightning") if peer else ())))
    print(json.dumps(record), flush=True)
    record["agreement"] = {name: agreement(model, device) for name, model in (("small", SMALL), ("real", REFERENCE))}
    print(json.dumps(record["agreement"]), flush=True)
    sizes = [Case("small", SMALL, 128), Case("real", REFERENCE, 256 if device.type == "cuda" else 32)]
    wanted = [case for case in sizes if case.name in options.sizes.split(",")]
    record["cases"] = []
    for number, case in enumerate(wanted, 1):
        until = started + 60 * options.minutes * number / len(wanted)
        record["cases"].append(time_case(case, device, options.rounds, options.seconds, until))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def agreement(model: ViTConfig, device: torch.device) -> dict[str, float]:
    """Return how far outputs and gradients are from specvit's, as a share of their own size, with copied weights."""
    config = replace(model, dropout=0.0)
    ours = build_model(config, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).to(device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():  # nothing may be zero, or its place would go unchecked
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(device))
    flux_BP = torch.randn(4, NUM_PIXELS, generator=generator).to(device)
    output = ours(flux_BP)
    output.square().sum().backward()
    found = {}
    flat = FlatParameters.of(ours, device)
    lean = forward(flat.at, flux_BP, config, training=True)
    lean.square().sum().backward()
    pairs = [(flat.at[name].grad, parameter.grad) for name, parameter in ours.named_parameters()]
    found |= {"leanest outputs": apart([(lean, output)]), "leanest gradients": apart(pairs)}
    if peer:
        other = peer.Peer(config, NUM_PIXELS, attention_dropout=0.0).to(device)
        peer.copy_weights(ours, other)
        theirs = other(flux_BP)
        theirs.square().sum().backward()
        pairs = list(peer.matching(ours, other, lambda parameter: parameter.grad))
        found |= {"peer outputs": apart([(theirs, output)]), "peer gradients": apart(pairs)}
    assert all(value < 1e-5 for value in found.values()), found
    return found


def apart(pairs: list[tuple[Any, Any]]) -> float:
    """Return the largest difference of any pair as a share of that tensor's norm.

    A norm below a thousandth of the largest one counts as that: the gradient of a key's bias is zero but for rounding.
    """
    least = 1e-3 * max(float(ours.detach().norm()) for _, ours in pairs)
    return max(
        float((other.reshape(ours.shape) - ours).detach().norm()) / max(float(ours.detach().norm()), least)
        for other, ours in pairs
    )


def time_case(
    case: Case, device: torch.device, rounds: int, seconds: float, until: float = math.inf, rows: int = ROWS
) -> dict[str, Any]:
    """Return spectra/s of each way, medians over interleaved rounds with their spread, and the ratios.

    A way that raises is left out, and so is what the device only emulates. None is begun after `until`.
    """
    ways, rates = ways_on(device), {}
    timers: dict[str, Rate] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = train_data(Path(folder) / "speed.h5", case.batch_size, device, rows=rows)
        for _ in range(rounds):
            for name, way in ways.items():
                if name in left_out or machine.now() > until:
                    continue
                surroundings(way)
                try:
                    timers[name] = timers.get(name) or prepare(way, case, data, device)
                    rates.setdefault(name, []).append(timers[name](seconds))
                except Exception as problem:
                    left_out[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
    left_out |= {name: "no time left" for name in ways if name not in rates and name not in left_out}
    measured = {name: values for name, values in rates.items() if name not in left_out}
    row = {"case": case.name, "batch": case.batch_size, **summary(measured), "left_out": left_out}
    print(json.dumps(row), flush=True)
    return row


def ways_on(device: torch.device) -> dict[str, Way]:
    """Return the ways to be timed: in bf16 only where the device computes in it, which is said."""
    ways = {**(PEERS if peer else {}), **OURS}
    if machine.has_bf16(device):
        return ways
    print("bf16 is left out: this device only emulates it", flush=True)
    return {name: way for name, way in ways.items() if way.precision != "bf16-mixed"}


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, spread, and ratios of medians."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: round(medians[a] / medians[b], 2) for name, (a, b) in RATIOS.items() if a in medians and b in medians
    }
    return {
        "rounds": max(map(len, rates.values()), default=0),
        "spectra_per_s": {name: round(value, 1) for name, value in medians.items()},
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()},
        "ratios": ratios,
    }


def surroundings(way: Way) -> None:
    """Set allocator, determinism and TF32 as this way's users have them."""
    keep_memory(not way.stock_allocator)
    torch.backends.cudnn.allow_tf32 = way.kind == "peer"
    torch.use_deterministic_algorithms(way.deterministic)
    flags: Any = torch.utils.deterministic
    flags.fill_uninitialized_memory = way.fill


def prepare(way: Way, case: Case, data: TrainData, device: torch.device) -> Rate:
    """Return what times this way of training."""
    case = replace(case, precision=way.precision)
    if way.kind == "peer":
        module = peer.Peer(
            case.model, NUM_PIXELS, attention_dropout=case.model.dropout if way.attention_dropout else 0.0
        )
        rows = data.store.gather(torch.arange(len(data.targets)).numpy())
        arrays = (*(part.cpu() for part in rows), data.targets.cpu())
        settings = {"batch_size": case.batch_size, "precision": way.precision, "deterministic": way.deterministic}
        settings |= {"device": device, "helped": not way.stock_allocator}
        return lambda seconds: peer.peer_rate(module, arrays, seconds=seconds, warm_up=1, **settings)
    step = specvit_loop(case, data, device) if way.kind == "specvit" else lean_loop(case, data, device)
    return lambda seconds: step_rate(step, case.batch_size, seconds, device)


def specvit_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return one step of specvit's own loop with its health check; the progress bar and files are left out."""
    learner, state = make_learner(case, data, device)

    def step() -> None:
        learner.step(data.batch(state.step), state)
        state.step += 1
        if state.step % CHECK_STEPS == 0:
            assert not learner.divergence_reason(state)

    return step


def lean_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return one step of the leanest loop, over the same rows."""
    model = build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1)
    precision = resolve_precision(case.precision, device)
    flux_NP, error_NP = data.store.gather(torch.arange(len(data.targets)).numpy())

    def batches() -> Any:
        while True:
            index = torch.randint(0, len(flux_NP), (case.batch_size,), device=device)
            yield flux_NP[index], error_NP[index], data.targets[index]

    return lean_step(
        FlatParameters.of(model, device), case.model, batches(), data.flux_norm, lambda: autocast(precision, device)
    )


def step_rate(step: Callable[[], None], batch_size: int, seconds: float, device: torch.device) -> float:
    """Return spectra/s over about `seconds`, after a step that is not counted."""
    step()
    machine.synchronize(device)
    started, steps, elapsed = machine.now(), 0, 0.0
    while elapsed < seconds:
        step()
        steps += 1
        if device.type == "cpu" or steps % 10 == 0:
            machine.synchronize(device)
            elapsed = machine.now() - started
    return steps * batch_size / elapsed


if __name__ == "__main__":
    main()
