"""All that only an accelerator can show, in one call of under 9 minutes: python benchmarks/gpu.py [--json FILE].

Checks first, each printed as ok or FAILED: no hidden device sync in a step, the same steps twice are bitwise equal,
leaving and resuming is bitwise equal, evaluation and made spectra agree with the CPU, all ways to train compute the
same function. Then speed: the same side-by-side table as `make bench` (the peer only where its packages are), the step
compiled and as one CUDA graph, each with its share of the matrix-product peak that was measured in the same run. Needs
torch, numpy, scipy and h5py, not Hydra or MLflow. Runs through on a CPU with `--device cpu --small`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import machine
import torch
import train_speed
from cases import REFERENCE, SMALL, Case, made_data, make_learner, train_data
from torch import Tensor

from specvit.data.resident import TrainData
from specvit.engine.loop import Learner
from specvit.engine.state import TrainState
from specvit.engine.writer import copied
from specvit.models import build_model
from specvit.models.cost import cost_of
from specvit.models.dropout import KeyedDropout, keep_mask
from specvit.quantities import NUM_PIXELS, Batch

STEPS = 12
MADE_ROWS = 512


def main() -> int:
    """Run the checks and the timings; the exit code is the number of failed checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes and short rounds, to see that it runs through")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    started = time.perf_counter()
    train_speed.surroundings(train_speed.OURS["specvit"])
    record: dict[str, Any] = machine.facts(device)
    print(json.dumps(record), flush=True)
    record["checks"] = run_checks(device)
    record["matrix_product_tflops"] = {
        name: round(peak / 1e12, 4) for name, peak in peaks(device, options.small).items()
    }
    print(json.dumps(record["matrix_product_tflops"]), flush=True)
    record["cases"] = [
        timings(case, device, record["matrix_product_tflops"], small=options.small)
        for case in sizes(device, options.small)
    ]
    record["seconds"] = round(time.perf_counter() - started, 1)
    print(f"{record['seconds']} s in all")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return sum(not passed for passed in record["checks"].values())


def sizes(device: torch.device, small: bool) -> list[Case]:
    """Return what is timed."""
    if small:
        return [
            Case("small", replace(SMALL, num_hidden_layers=1), 8),
            Case("real", replace(REFERENCE, num_hidden_layers=1), 4),
        ]
    return [Case("small", SMALL, 128), Case("real", REFERENCE, 256 if device.type == "cuda" else 32)]


def run_checks(device: torch.device) -> dict[str, bool]:
    """Run every check and print how it went."""
    checks = (steps_repeat, resume_is_exact, no_sync_in_a_step, agrees_with_cpu, all_ways_agree, made_spectra_agree)
    passed = {}
    with tempfile.TemporaryDirectory() as folder:
        data = train_data(Path(folder) / "checks.h5", 64, device)
        for check in checks:
            passed[check.__name__] = check(data, device)
            print(f"{'ok    ' if passed[check.__name__] else 'FAILED'} {check.__name__}", flush=True)
    return passed


def dropping(precision: str = "auto") -> Case:
    """Return a small case with dropout on."""
    return Case("check", SMALL, 64, precision)


def run_steps(learner: Learner, state: TrainState, data: TrainData, steps: int) -> None:
    """Take `steps` steps from the state's own."""
    for _ in range(steps):
        learner.step(data.batch(state.step), state)
        state.step += 1


def weights(learner: Learner) -> Tensor:
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
    second.optimizer.load_state_dict(copied(first.optimizer.state_dict()))
    second.scaler.load_state_dict(first.scaler.state_dict())
    rest = TrainState.from_plain(half.to_plain())
    rest.start_sums(task=5, norms=len(second.optimizer.parts) + 1, device=device)
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


def made_spectra_agree(_: TrainData, device: torch.device) -> bool:
    """Spectra made on the device are those made on the CPU but for rounding, repeatable, and nothing waits for them."""
    views = [made_data(MADE_ROWS, place) for place in (device, device, torch.device("cpu"))]
    views[0].batch(0)  # the stars are copied to the device
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        ours = views[0].batch(1)
    except RuntimeError as problem:
        print(problem)
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    again, on_cpu = (view.batch(1) for view in views[1:])
    near = torch.allclose(ours.flux_BP.cpu(), on_cpu.flux_BP, rtol=0.0, atol=3e-5)
    return near and torch.equal(ours.flux_BP, again.flux_BP) and torch.equal(ours.target.cpu(), on_cpu.target)


def agrees_with_cpu(data: TrainData, device: torch.device) -> bool:
    """Float32 evaluation on the device and on the CPU agree to rounding."""
    learner, _ = make_learner(dropping("32"), data, device)
    flux_BP = data.batch(0).flux_BP
    model = learner.module.eval()
    with torch.no_grad():
        there = model(flux_BP).cpu()
        here = model.cpu()(flux_BP.cpu())
    return torch.allclose(there, here, atol=1e-4)


def all_ways_agree(data: TrainData, device: torch.device) -> bool:
    """With copied weights the leanest loop, and the peer where it is, give specvit's outputs and gradients."""
    try:
        print(train_speed.agreement(SMALL, device))
        return True
    except AssertionError as problem:
        print(problem)
        return False


def peaks(device: torch.device, small: bool) -> dict[str, float]:
    """Return FLOP/s of a large matrix product, float32 without TF32 and bf16."""
    size = 512 if small else 8192 if device.type == "cuda" else 2048
    found = {}
    for name, dtype in (("32", torch.float32), ("bf16-mixed", torch.bfloat16)):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rate = train_speed.step_rate(lambda one=one, other=other: one @ other, 1, 0.1 if small else 1.0, device)
        found[name] = 2 * size**3 * rate
    return found


def timings(case: Case, device: torch.device, peak: dict[str, float], *, small: bool) -> dict[str, Any]:
    """Return the side-by-side table of a case, with the compiled step and the CUDA graph, and shares of the peak."""
    rounds, seconds = (1, 0.2) if small else (3, 3.0)
    row = train_speed.time_case(case, device, rounds, seconds)
    rates = row["spectra_per_s"]
    train_speed.surroundings(train_speed.OURS["specvit"])
    with tempfile.TemporaryDirectory() as folder:
        data = train_data(Path(folder) / "speed.h5", case.batch_size, device)
        for precision in ("32", "bf16-mixed"):
            suffix = " bf16" if precision != "32" else ""
            variant = replace(case, precision=precision)
            steps = {f"specvit compiled{suffix}": compiled_loop(variant, data, device)}
            if device.type == "cuda":
                steps[f"specvit CUDA graph{suffix}"] = graph_loop(variant, data, device)
            for name, step in steps.items():
                rates[name] = round(train_speed.step_rate(step, case.batch_size, seconds, device), 1)
                print(name, rates[name], flush=True)
    flops = cost_of(build_model(case.model, num_pixels=NUM_PIXELS, num_outputs=1, seed=1)).training_flops
    row["tflops"] = {name: round(rate * flops / 1e12, 3) for name, rate in rates.items()}
    row["share_of_peak"] = {
        name: round(tflops / peak["bf16-mixed" if "bf16" in name else "32"], 3)
        for name, tflops in row["tflops"].items()
    }
    print(json.dumps({"case": case.name, "share_of_peak": row["share_of_peak"]}), flush=True)
    return row


def compiled_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return specvit's step with the network compiled, after its first call has done so."""
    learner, state = make_learner(case, data, device)
    learner.module.compile()

    def step() -> None:
        run_steps(learner, state, data, 1)

    step()
    return step


def graph_loop(case: Case, data: TrainData, device: torch.device) -> Callable[[], None]:
    """Return specvit's step captured as one CUDA graph, at a constant learning rate.

    What changes from step to step lies in fixed buffers that are filled before each replay: the batch and the masks.
    """
    learner, state = make_learner(case, data, device)
    batch = data.batch(0)
    batch = Batch(batch.flux_BP.clone(), batch.target.clone())
    drops = [module for module in learner.module.modules() if isinstance(module, KeyedDropout)]
    masks: dict[KeyedDropout, Tensor] = {}

    def fixed(module: KeyedDropout) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            if module not in masks:
                masks[module] = keep_mask(x.shape, module.p, 1, module.layer, x.device)
            return masks[module]

        return keep

    for module in drops:
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


if __name__ == "__main__":
    sys.exit(main())
