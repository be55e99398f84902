"""Training speed here: specvit's step beside the leanest loop for the same maths: python benchmarks/train_speed.py.

Both run in one process, interleaved, in rounds; the ratio is what to quote, since it holds when the machine's speed
drifts. The leanest loop has the same network, precision, optimizer and noise, but no dropout keys, sums, norms by part,
health checks or files. Writes nothing unless --json FILE is given.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from specvit.config.schema import DataConfig, LossConfig, ModelConfig, NoiseConfig, OptConfig, TrainConfig
from specvit.data.noise import FluxNorm
from specvit.data.resident import Store, TrainData
from specvit.data.shards import open_shards
from specvit.data.views import Spectra
from specvit.engine.loop import Learner
from specvit.engine.optimizer import build_optimizer
from specvit.engine.precision import autocast, build_scaler, resolve_precision
from specvit.engine.schedule import build_schedule
from specvit.engine.state import TrainState
from specvit.engine.task import Regression
from specvit.models import build_model
from specvit.quantities import ERROR, FLUX, NUM_PIXELS, WAVE

DEMO = ModelConfig(
    patch_size=64,
    stride_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    dropout=0.0,
)
REFERENCE = ModelConfig()
ROWS = 2048


@dataclass(frozen=True)
class Case:
    """What is timed."""

    name: str
    model: ModelConfig
    batch_size: int
    precision: str = "auto"


def main() -> None:
    """Time the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="a round's length for each of the two loops")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    big = 256 if device.type == "cuda" else 32
    cases = [Case("demo size", DEMO, 128), Case("reference size", REFERENCE, big)]
    rows = [time_case(case, device, options.rounds, options.seconds) for case in cases]
    facts = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "device": device_name(device)}
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(facts))
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps({**facts, "cases": rows}, indent=2) + "\n")


def time_case(case: Case, device: torch.device, rounds: int, seconds: float) -> dict[str, object]:
    """Return spectra/s of both loops, medians over interleaved rounds, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        data = train_data(Path(folder) / "speed.h5", case.batch_size, device)
        ours, lean = specvit_loop(case, data, device), lean_loop(case, data, device)
        rates: dict[str, list[float]] = {"specvit": [], "leanest": []}
        for _ in range(rounds):
            rates["specvit"].append(rate(ours, case.batch_size, seconds, device))
            rates["leanest"].append(rate(lean, case.batch_size, seconds, device))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "case": case.name,
        "batch": case.batch_size,
        "precision": resolve_precision(case.precision, device),
        **{f"{name}_spectra_per_s": round(value, 1) for name, value in medians.items()},
        "leanest_over_specvit": round(medians["leanest"] / medians["specvit"], 3),
        "spread": {name: [round(min(v), 1), round(max(v), 1)] for name, v in rates.items()},
    }


def train_data(path: Path, batch_size: int, device: torch.device) -> TrainData:
    """Return a real training view over a file of random spectra."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file[WAVE] = np.linspace(7100.0, 8850.0, NUM_PIXELS)
        file[FLUX] = rng.normal(0.5, 0.05, (ROWS, NUM_PIXELS)).astype(np.float32)
        file[ERROR] = np.full((ROWS, NUM_PIXELS), 0.05, dtype=np.float32)
    store = Store(Spectra(open_shards([path]), np.arange(ROWS)), DataConfig(), device)
    return TrainData(
        store=store,
        targets=torch.randn(ROWS, 1, device=device),
        flux_norm=FluxNorm(torch.full((NUM_PIXELS,), 0.5), 0.07).to(device),
        noise=NoiseConfig(),
        order="global",
        seed=1,
        step_rows=batch_size,
    )


def make_learner(case: Case, data: TrainData, device: torch.device) -> tuple[Learner, TrainState]:
    """Return a learner and its state as `specvit train` builds them."""
    train = TrainConfig(batch_size=case.batch_size, precision=case.precision)
    precision = resolve_precision(case.precision, device)
    model = build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).to(device)
    learner = Learner(
        module=model,
        parts=model.parts(),
        task=Regression(LossConfig(), ("log_g",), (0.0,), (1.0,)),
        optimizer=build_optimizer(model, OptConfig()),
        scaler=build_scaler(precision, device),
        schedule=build_schedule(OptConfig(), epochs=10**6, steps_per_epoch=data.steps_per_epoch),
        train=train,
        precision=precision,
        device=device,
    )
    state = TrainState()
    state.start_sums(task=Regression.num_sums, norms=len(learner.parts) + 1, device=device)
    return learner, state


def specvit_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return one step of specvit's own loop."""
    learner, state = make_learner(case, data, device)

    def step() -> None:
        learner.step(data.batch(state.step), state)
        state.step += 1

    return step


def lean_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return one step of the leanest loop for the same network, noise, precision and optimizer."""
    precision = resolve_precision(case.precision, device)
    model = build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    scaler = build_scaler(precision, device)
    generator = torch.Generator(device=device).manual_seed(1)

    def step() -> None:
        index = np.random.default_rng(1).integers(0, ROWS, case.batch_size)
        flux, error = data.store.gather(index)
        flux = data.flux_norm(flux + error * torch.randn(flux.shape, generator=generator, device=device))
        with autocast(precision, device):
            output = model(flux)
        loss = torch.nn.functional.mse_loss(output, data.targets[torch.from_numpy(index).to(device)])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=True)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def rate(step: Callable[[], None], batch_size: int, seconds: float, device: torch.device) -> float:
    """Return spectra/s over about `seconds`, after a warm-up of three steps."""
    for _ in range(3):
        step()
    synchronize(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
        if steps % 10 == 0:
            synchronize(device)
    synchronize(device)
    return steps * batch_size / (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(': ')[2]}" if names else platform.machine()


def commit() -> str:
    """Return the commit that is measured, "unknown" away from git."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    main()
