"""What only an accelerator can show of correctness. A check raises where it fails, and may return facts to record.

All train as `specvit train` does, in deterministic mode, where torch raises at an operation that does not repeat.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import train_speed
from cases import REFERENCE, SMALL, Case, made_data, make_learner, train_data
from torch import Tensor

from specvit.config.schema import CNNConfig, ViTConfig
from specvit.data.batches import TrainData
from specvit.models.dropout import keep_mask
from specvit.training import checkpoint
from specvit.training.checkpoint import host_copy
from specvit.training.device import fault_of
from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.training.task import Regression
from specvit.utils.errors import is_out_of_memory
from specvit.utils.quantities import NUM_PIXELS

STEPS = 8
Check = Callable[[], object]


@dataclass
class Ground:
    """Where checks are made: sizes, networks and spectra."""

    device: torch.device
    folder: Path
    small: bool

    @cached_property
    def data(self) -> TrainData:
        """Spectra where the product puts them: on the device, if it is a GPU."""
        return self.spectra("auto")

    def spectra(self, resident: str) -> TrainData:
        """Return the same spectra, on the device if that is wanted."""
        batch, rows = (8, 64) if self.small else (64, 2048)
        return train_data(self.folder / "checks.h5", batch, self.device, rows=rows, resident=resident)

    @property
    def vit(self) -> ViTConfig:
        """The network of most checks."""
        return replace(SMALL, num_hidden_layers=1, hidden_size=16) if self.small else SMALL

    @property
    def networks(self) -> dict[str, Any]:
        """All parts that a network may have, among them; the overlapping C1D is a convolution."""
        overlap = replace(self.vit, stride_size=32)
        return {
            "C1D": self.vit,
            "C1D overlap": overlap,
            "SW overlap rope mean": replace(overlap, proj_fn="SW", pos_encoding_type="rope", pool="mean"),
            "no positions attention": replace(self.vit, pos_encoding_type="none", pool="attention"),
            "CNN": CNNConfig(channels=(8, 16)),
        }

    @property
    def precisions(self) -> tuple[str, ...]:
        """The product's; a CPU has no loss scale worth the time but in a rehearsal."""
        return ("16-mixed", "bf16-mixed", "32") if self.device.type == "cuda" else ("16-mixed", "32")

    def case(self, model: Any = None, precision: str = "32", **settings: Any) -> Case:
        """Return a case on these spectra."""
        return Case("check", model or self.vit, self.data.step_rows, precision, **settings)

    def learner(self, case: Case) -> tuple[Learner, TrainState]:
        """Return a learner and its state."""
        return make_learner(case, self.data, self.device)


def all_checks(ground: Ground) -> dict[str, Check]:
    """Return the checks by name, the cheapest first."""
    checks: dict[str, Check] = {"a kernel runs": partial(runs_a_kernel, ground)}
    if ground.device.type == "cuda":
        checks["short memory is known"] = partial(knows_short_memory, ground)
        checks["rows beyond 2^31 numbers"] = partial(gathers_beyond_2_31, ground)
        checks["attention kernels"] = partial(attention_kernels, ground)
    checks["masks"] = partial(masks_repeat, ground)
    checks["overflow in fp16 is skipped"] = partial(overflow_is_skipped, ground)
    checks["checkpoint_blocks"] = partial(checkpointed_blocks_agree, ground)
    checks["resident and page-locked batches"] = partial(batches_agree, ground)
    checks["made spectra"] = partial(made_spectra_agree, ground)
    checks["all ways to train"] = partial(train_speed.agreement, ground.vit, ground.device)
    for name, model in ground.networks.items():
        checks[f"float32 near the CPU: {name}"] = partial(agrees_with_cpu, ground, model)
    for precision in ground.precisions:
        checks[f"resumes {precision}"] = partial(resumes, ground, ground.case(precision=precision))
        for name, model in ground.networks.items():
            checks[f"repeats without sync: {name} {precision}"] = partial(
                repeats, ground, ground.case(model, precision)
            )
        for optimizer in ("Adam", "SGD", "RMSprop"):
            case = ground.case(None, precision, optimizer=optimizer)
            checks[f"repeats without sync: {optimizer} {precision}"] = partial(repeats, ground, case)
        case = ground.case(None, precision, accumulate=2)
        checks[f"repeats without sync: accumulate {precision}"] = partial(repeats, ground, case)
    return checks


def run_steps(learner: Learner, state: TrainState, data: Any, steps: int) -> Tensor:
    """Take `steps` steps from the state's own, and return all parameters as one vector on the CPU."""
    for _ in range(steps):
        learner.step(data.batch(state.step), state)
        state.step += 1
    return torch.cat([p.detach().flatten().cpu() for p in learner.module.parameters()])


@contextlib.contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Raise where the host waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def runs_a_kernel(ground: Ground) -> None:
    """The product's own probe."""
    fault = fault_of(ground.device)
    assert not fault, fault


def repeats(ground: Ground, case: Case) -> None:
    """The same steps twice give the same bits, and none waits for the device (but RMSprop under a loss scale)."""
    free = (case.optimizer, case.precision) == ("RMSprop", "16-mixed")
    ends = []
    for _ in range(2):
        learner, state = ground.learner(case)
        run_steps(learner, state, ground.data, 2)
        with contextlib.nullcontext() if free else no_sync(ground.device):
            for _ in range(STEPS - 2):
                learner.step(ground.data.batch(state.step), state)
                state.step += 1
        ends.append(run_steps(learner, state, ground.data, 0))
    assert torch.isfinite(ends[0]).all()
    assert torch.equal(*ends)


def resumes(ground: Ground, case: Case) -> None:
    """Half the steps, a round trip through a checkpoint file, and the other half equal all steps at once."""
    (whole, state), (first, half), (second, _) = (ground.learner(case) for _ in range(3))
    end = run_steps(whole, state, ground.data, STEPS)
    run_steps(first, half, ground.data, STEPS // 2)
    parts = {name: getattr(first, name).state_dict() for name in ("module", "optimizer", "scaler")}
    checkpoint.save(ground.folder / "half.ckpt", host_copy({"state": half.to_plain(), **parts}))
    saved = checkpoint.load(ground.folder / "half.ckpt")
    for name in parts:
        getattr(second, name).load_state_dict(saved[name])
    rest = TrainState.from_plain(saved["state"])
    rest.start_sums(task=Regression.num_sums, norms=len(second.optimizer.parts) + 1, device=ground.device)
    assert torch.equal(end, run_steps(second, rest, ground.data, STEPS - STEPS // 2))
    assert all(torch.equal(state.sums[name], rest.sums[name]) for name in state.sums)


def overflow_is_skipped(ground: Ground) -> None:
    """Under a huge loss scale steps are skipped, weights and step counters stay; then training goes ahead."""
    learner, state = ground.learner(ground.case(precision="16-mixed"))
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 2.0**60})
    before, after = (run_steps(learner, state, ground.data, steps) for steps in (0, 3))
    assert torch.equal(before, after)
    assert float(state.sums["skipped"]) == 3
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 1024.0})
    moved = run_steps(learner, state, ground.data, 3)
    assert torch.isfinite(moved).all() and not torch.equal(after, moved)
    assert [float(flat.step) for flat in learner.optimizer.flats] == [3.0] * len(learner.optimizer.flats)


def checkpointed_blocks_agree(ground: Ground) -> None:
    """Activations that are computed again give the same bits."""
    ends = []
    for again in (False, True):
        case = ground.case(precision="16-mixed", checkpoint_blocks=again)
        ends.append(run_steps(*ground.learner(case), ground.data, 3))
    assert torch.equal(*ends)


def masks_repeat(ground: Ground) -> None:
    """Masks are functions of their key, independent between keys, and keep the share they should."""
    shape = torch.Size((16, 257, 256))
    one, again, other = (keep_mask(shape, 0.1, key, 3, ground.device) for key in (2**62 + 5, 2**62 + 5, 2**62 + 6))
    assert torch.equal(one, again)
    for share, kept in ((0.9, one), (0.81, one & other)):
        assert abs(float(kept.float().mean()) - share) < 2e-3


def batches_agree(ground: Ground) -> dict[str, str]:
    """Resident spectra and page-locked ones give the same bits, also while the device is busy."""
    ours, theirs = ground.data, ground.spectra("never")
    busy = torch.randn(64 if ground.small else 2048, 64 if ground.small else 2048, device=ground.device)
    with contextlib.closing(theirs):
        for step in range(2 * ours.steps_per_epoch):
            for _ in range(8):
                busy = (busy @ busy).clamp(-1, 1)
            one, other = ours.batch(step), theirs.batch(step)
            assert torch.equal(one.flux_BP, other.flux_BP), step
            assert torch.equal(one.target, other.target), step
    return {"resident": ours.location, "other": theirs.location}


def agrees_with_cpu(ground: Ground, model: Any) -> dict[str, float]:
    """Float32 is float32: TF32 would differ from the CPU by a thousandth."""
    module = ground.learner(ground.case(model))[0].module.eval()
    flux_BP = ground.data.batch(0).flux_BP[:16]
    with torch.no_grad():
        there = module(flux_BP).cpu()
        here = module.cpu()(flux_BP.cpu())
    apart = float((there - here).abs().max())
    assert apart < 2e-5, apart
    return {"apart": apart}


def made_spectra_agree(ground: Ground) -> None:
    """Spectra made on the device are those of the CPU but for rounding, repeat, and nothing waits for them."""
    rows = 16 if ground.small else 512
    ours, again, on_cpu = (made_data(rows, place) for place in (ground.device, ground.device, torch.device("cpu")))
    ours.batch(0)  # the stars are copied to the device
    with no_sync(ground.device):
        batch = ours.batch(1)
    same, reference = again.batch(1), on_cpu.batch(1)
    assert torch.equal(batch.flux_BP, same.flux_BP)
    assert torch.equal(batch.target.cpu(), reference.target)
    assert float((batch.flux_BP.cpu() - reference.flux_BP).abs().max()) < 3e-5


def knows_short_memory(ground: Ground) -> str:
    """What the allocator says is taken for what it is."""
    try:
        torch.empty(1 << 46, device=ground.device)
    except Exception as problem:
        assert is_out_of_memory(problem), problem
        return f"{type(problem).__name__}: {str(problem)[:90]}"
    raise AssertionError("64 TiB were given")


def gathers_beyond_2_31(ground: Ground) -> None:
    """Rows of an array of more than 2^31 numbers are the right ones: 600,000 spectra."""
    rows = 600_000
    big = torch.zeros(rows, NUM_PIXELS, dtype=torch.float16, device=ground.device)
    big[:, 0] = torch.arange(rows, device=ground.device) % 2048
    index = torch.tensor([0, rows - 1, 524_289, 524_287], device=ground.device)
    assert torch.equal(big[index][:, 0].cpu().long(), index.cpu() % 2048)


def attention_kernels(ground: Ground) -> dict[str, Any]:
    """Return the attention kernels of a step by name, and how many kernels a step launches."""
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    words = ("flash", "fmha", "attention", "cudnn")
    for precision, deterministic in itertools.product(("16-mixed", "32"), (True, False)):
        torch.use_deterministic_algorithms(deterministic)
        try:
            learner, state = ground.learner(ground.case(REFERENCE, precision))
            run_steps(learner, state, ground.data, 2)
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                learner.step(ground.data.batch(state.step), state)
        finally:
            torch.use_deterministic_algorithms(True)
        names = [event.key for event in profiled.key_averages()]
        chosen = sorted({name[:60] for name in names if any(word in name.lower() for word in words)})
        found[f"{precision}{' deterministic' if deterministic else ''}"] = {
            "events": len(profiled.events()),
            "of": chosen,
        }
    return found
