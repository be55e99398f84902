"""What a run computes with: threads, the compiler, and nothing imported that it does not need."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import TrainConfig, ViTConfig
from specvit.models import build_model
from specvit.run.run import run
from specvit.training import device

CPU = torch.device("cpu")
HEAVY = "torch._dynamo torch._inductor mlflow optuna submitit sklearn scipy matplotlib.pyplot transformers lightning"


class Silent:
    """Takes notes to itself."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the process see eight cores and no other limit; return where its quota is read."""
    monkeypatch.setattr(device, "DEFAULT_THREADS", 8)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(device, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "slurm", "share"),
    [
        (None, None, 8),
        ("max 100000", None, 8),
        ("300000 100000", None, 3),
        ("50000 100000", None, 1),
        (None, "2", 2),
        ("300000 100000", "5", 3),
        ("no numbers", "none", 8),
    ],
)
def test_threads_are_the_share_of_this_process(
    eight_cores: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, slurm: str | None, share: int
) -> None:
    if quota is not None:
        eight_cores.write_text(quota + "\n")
    if slurm is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert device.cpu_share() == share


def test_threads_that_are_asked_for_or_were_begun_with_are_taken(eight_cores: Path) -> None:
    before, settings, console = torch.get_num_threads(), TrainConfig(threads=2, keep_memory=False), Silent()
    try:
        device.set_up_torch(settings, None, console.say, CPU)
        assert torch.get_num_threads() == 2
        device.set_up_torch(settings, 1, console.say, CPU)
        assert torch.get_num_threads() == 1
        device.set_up_torch(replace(settings, threads=None), None, console.say, CPU)
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_set_as_configured_without_filling_new_tensors(deterministic: bool) -> None:
    before = torch.get_num_threads()
    try:
        train = TrainConfig(deterministic=deterministic, threads=1, keep_memory=False)
        device.set_up_torch(train, None, Silent().say, CPU)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_the_first_step(tiny: list[str], tmp_path: Path) -> None:
    code = """
import os, sys
from specvit.training.step import Learner
from specvit.train import main
step = Learner.step
def watched(*arguments):
    step(*arguments)
    print(sorted(set(os.environ["HEAVY"].split()) & sys.modules.keys()), "torch" in sys.modules, flush=True)
    os._exit(0)
Learner.step = watched
main(sys.argv[1:])
"""
    words = [sys.executable, "-c", code, *tiny, f"tracking.folder={tmp_path}"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "HEAVY": HEAVY})
    assert shown.stdout.splitlines()[-1] == "[] True"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_network_with_dropout_equals_the_plain_one_and_is_compiled_once(backend: str) -> None:
    sizes = {"patch_size": 16, "stride_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, num_attention_heads=2, dropout=0.3)
    plain, compiled = (build_model(config, num_pixels=128, num_outputs=1, seed=1).train() for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.compile(backend=backend)
    flux_BP = torch.randn(4, 128)
    outputs = []
    for key in (1, 2, 3):
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            model.set_step_key(key)
            output = model(flux_BP)
            output.square().sum().backward()
            found.append([output, *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
        outputs.append(found[1][0])
    assert not torch.equal(outputs[0], outputs[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.nightly
def test_compiled_runs_of_one_process_do_not_use_up_the_compilers_variants(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.config

    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 4)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    quick = partialmethod(torch.nn.Module.compile, backend="eager")  # variants are counted before code is generated
    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    words = [*tiny, "train.compile=true", "train.epochs=1", "train.threads=1", f"tracking.folder={tmp_path}"]
    for width in (16, 24, 32):
        assert run(build_config(compose([*words, f"model.hidden_size={width}"]))).exit_code == 0
