"""The benchmarks themselves: what they leave out, what a fault costs them, and the one for GPUs rehearsed on a CPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")
BARE = "hydra omegaconf mlflow optuna submitit rich pandas tables yaml lightgbm matplotlib transformers lightning"


@pytest.fixture
def train_speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the benchmark of training speed, without the peer."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setitem(sys.modules, "peer", None)
    import train_speed

    assert isinstance(train_speed, ModuleType)
    monkeypatch.setattr(train_speed, "surroundings", lambda _: None)
    return train_speed


@pytest.mark.parametrize(("avx512_bf16", "amx"), [(False, False), (True, False), (False, True)])
def test_bf16_is_timed_only_where_the_processor_computes_in_it(
    avx512_bf16: bool, amx: bool, train_speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    ways, said = train_speed.ways_on(CPU), capsys.readouterr().out
    has = avx512_bf16 or amx
    assert ("specvit bf16" in ways, "leanest bf16" in ways, "specvit" in ways) == (has, has, True)
    assert said == ("" if has else "bf16 is left out: this device only emulates it\n")


@pytest.mark.slow
def test_a_way_that_fails_or_has_no_time_left_is_left_out_and_the_others_are_timed(
    train_speed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_speed.prepare

    def prepare(way: Any, *arguments: Any) -> Any:
        if way.kind == "leanest":
            raise RuntimeError("no compiler\nand more")
        return real(way, *arguments)

    monkeypatch.setattr(train_speed, "prepare", prepare)
    monkeypatch.setattr(train_speed.machine, "has_bf16", lambda _: False)
    case = train_speed.Case("small", train_speed.SMALL, 4)
    row = train_speed.time_case(case, CPU, 2, 0.01, rows=8)
    assert (list(row["spectra_per_s"]), row["rounds"]) == (["specvit"], 2)
    assert row["left_out"] == {"leanest": "RuntimeError: no compiler"}
    late = train_speed.time_case(case, CPU, 2, 0.01, until=0.0, rows=8)
    assert late["left_out"] == {"specvit": "no time left", "leanest": "no time left"}


@pytest.mark.nightly
@pytest.mark.parametrize(("only", "more"), [("^(?!.*compiled)", 30), ("small compiled 32", 1)])
def test_the_checks_for_gpus_run_through_on_a_cpu_without_what_a_bare_machine_lacks(
    only: str, more: int, tmp_path: Path
) -> None:
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({BARE.split()!r})); sys.argv[0] = 'gpu.py'; "
    code += f"runpy.run_path({str(BENCHMARKS / 'gpu.py')!r}, run_name='__main__')"
    words = ["--device", "cpu", "--small", "--only", only, "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["failed"], found["skipped"]) == ([], [])
    assert len(found["parts"]) >= more and all(part["passed"] for part in found["parts"].values())


@pytest.mark.nightly
def test_what_fails_costs_its_own_part_and_what_comes_too_late_is_named(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = [{str(BENCHMARKS)!r}]; import gpu, gpu_checks\n"
    code += "gpu_checks.masks_repeat = lambda _: 1 / 0\nsys.exit(gpu.main())"
    words = ["--device", "cpu", "--small", "--only", "masks|kernel runs", "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (done.returncode, found["failed"]) == (1, ["masks"])
    assert found["parts"]["masks"]["found"] == "ZeroDivisionError: division by zero"
    assert found["parts"]["a kernel runs"]["passed"]
    words += ["--seconds", "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (done.returncode, found["skipped"]) == (0, ["a kernel runs", "masks"])
