"""All that only an accelerator can show, in one call of a few minutes: python benchmarks/gpu.py [--json FILE].

Checks first, each printed as ok or FAILED: no hidden device sync in a step, the same steps twice are bitwise equal,
leaving and resuming is bitwise equal, evaluation agrees with the CPU. Then speed: spectra/s at demo and reference size
beside the leanest loop, in each precision, and the share of the matrix-product peak that was measured in the same run.
Needs torch, numpy and h5py, not Hydra or MLflow. Runs through on a CPU with `--device cpu --small`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from train_speed import DEMO, REFERENCE, Case, commit, device_name, make_learner, time_case, train_data

from specvit.data.resident import TrainData
from specvit.engine.loop import Learner
from specvit.engine.state import TrainState
from specvit.models import build_model
from specvit.models.cost import cost_of
from specvit.quantities import NUM_PIXELS

STEPS = 12


def main() -> int:
    """Run the checks and the timings; the exit code is the number of failed checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes and short rounds, to see that it runs through")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    started = time.perf_counter()
    torch.use_deterministic_algorithms(True)
    flags = torch.utils.deterministic
    flags.fill_uninitialized_memory = False
    with tempfile.TemporaryDirectory() as folder:
        data = train_data(Path(folder) / "checks.h5", 64, device)
        checks = {
            check.__name__: check(data, device)
            for check in (steps_repeat, resume_is_exact, no_sync_in_a_step, agrees_with_cpu)
        }
    for name, passed in checks.items():
        print(f"{'ok    ' if passed else 'FAILED'} {name}", flush=True)
    speeds = timings(device, small=options.small)
    record = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "device": device_name(device)}
    record |= {"torch": torch.__version__}
    record |= {"checks": checks, "speeds": speeds, "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return sum(not passed for passed in checks.values())


def dropping(precision: str = "auto") -> Case:
    """Return a small case with dropout on."""
    return Case("check", replace(DEMO, dropout=0.1), 64, precision)


def run_steps(learner: Learner, state: TrainState, data: TrainData, steps: int) -> None:
    """Take `steps` steps from the state's own."""
    for _ in range(steps):
        learner.step(data.batch(state.step), state)
        state.step += 1


def weights(learner: Learner) -> torch.Tensor:
    """Return all parameters as one vector on the CPU."""
    return torch.cat([p.detach().flatten().cpu() for p in learner.module.parameters()])


def steps_repeat(data: TrainData, device: torch.device) -> bool:
    """The same steps twice give the same bits."""
    ends = []
    for _ in range(2):
        learner, state = make_learner(dropping(), data, device)
        run_steps(learner, state, data, STEPS)
        ends.append(weights(learner))
    return torch.equal(*ends)


def resume_is_exact(data: TrainData, device: torch.device) -> bool:
    """Half the steps, a round trip through state dicts on the CPU, and the other half equal all steps at once."""
    whole, state = make_learner(dropping(), data, device)
    run_steps(whole, state, data, STEPS)
    first, half = make_learner(dropping(), data, device)
    run_steps(first, half, data, STEPS // 2)
    second, rest = make_learner(dropping(), data, device)
    second.module.load_state_dict({k: v.cpu().clone() for k, v in first.module.state_dict().items()})
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.scaler.load_state_dict(first.scaler.state_dict())
    rest = TrainState.from_plain(half.to_plain())
    rest.start_sums(task=5, norms=len(second.parts) + 1, device=device)
    run_steps(second, rest, data, STEPS - STEPS // 2)
    return torch.equal(weights(whole), weights(second)) and all(
        torch.equal(state.sums[k], rest.sums[k]) for k in rest.sums
    )


def no_sync_in_a_step(data: TrainData, device: torch.device) -> bool:
    """A step queues work and never waits for the device (always true where there is none to wait for)."""
    if device.type != "cuda":
        return True
    learner, state = make_learner(dropping("bf16-mixed"), data, device)
    run_steps(learner, state, data, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_steps(learner, state, data, 3)
        return True
    except RuntimeError as problem:
        print(problem)
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")


def agrees_with_cpu(data: TrainData, device: torch.device) -> bool:
    """Float32 evaluation on the device and on the CPU agree to rounding."""
    learner, _ = make_learner(dropping("32"), data, device)
    flux_BP = data.batch(0).flux_BP
    model = learner.module.eval()
    with torch.no_grad():
        there = model(flux_BP).cpu()
        here = model.cpu()(flux_BP.cpu())
    return torch.allclose(there, here, atol=1e-4)


def timings(device: torch.device, *, small: bool) -> list[dict[str, object]]:
    """Time both sizes in each precision, with the share of the measured matrix-product peak."""
    rounds, seconds = (1, 0.3) if small else (3, 8.0)
    batch = 8 if small else 256
    rows = []
    for name, model in (
        ("demo size", DEMO),
        ("reference size", replace(REFERENCE, num_hidden_layers=1) if small else REFERENCE),
    ):
        for precision in ("32", "bf16-mixed", *(("16-mixed",) if device.type == "cuda" else ())):
            row = time_case(Case(name, model, batch, precision), device, rounds, seconds)
            cost = cost_of(build_model(model, num_pixels=NUM_PIXELS, num_outputs=1, seed=0))
            flops = cost.training_flops * float(str(row["specvit_spectra_per_s"]))
            peak = matmul_peak(device, torch.float32 if precision == "32" else torch.bfloat16, 512 if small else 8192)
            rows.append({**row, "tflops": round(flops / 1e12, 2), "share_of_matmul_peak": round(flops / peak, 3)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return FLOP/s of a large square matrix product, the best of five rounds."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    sys.exit(main())
