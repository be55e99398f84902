"""`specvit doctor --cluster` without a cluster, and what it makes of what a job saw."""

from pathlib import Path

import pytest

from specvit.cluster.slurm_settings import SlurmConfig
from specvit.commands import doctor


def test_without_slurm_the_doctor_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.main(["--cluster"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("FAIL  sbatch, squeue, scancel, scontrol, srun, sacct: not on this machine")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--cluster", "--help"], 0, "usage: specvit doctor [OVERRIDES]"),
        (["--cluster", "hydra/launcher=local"], 2, "hydra/launcher: is not a cluster; use slurm"),
        (["--cluster", "hydra.launcher.partion=x"], 2, "partion: unknown key; did you mean partition?"),
        (["--cluster", "model/sise=tiny"], 2, "model/sise: unknown group; did you mean model/size?"),
    ],
)
def test_the_arguments_of_the_doctor(words: list[str], code: int, said: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.main(words) == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert not list(tmp_path.iterdir())


def test_the_doctor_judges_what_a_job_saw() -> None:
    seen = {"python": "p", "torch": "2", "import_seconds": 1.0, "gpu": None, "gpu_fault": "x", "visible": "0"}
    seen |= {"host": "n1", "save_seconds": 20.0, "scontrol": False, "lock_seen": False}
    slow = list(doctor.findings(seen, SlurmConfig(signal_seconds=60), 10**7))
    assert [kind for kind, _ in slow] == ["ok", "FAIL", "FAIL", "note", "FAIL"]
    assert slow[1][1].endswith("(CUDA_VISIBLE_DEVICES is '0', see partition and extra): x")
    seen |= {"gpu": "NVIDIA H200 (sm_90, 132 multiprocessors)", "kernels": ["sm_80", "sm_90"]}
    seen |= {"lock_seen": True, "scontrol": True}
    fast = list(doctor.findings(seen, SlurmConfig(), 10**7))
    assert [kind for kind, _ in fast] == ["ok"] * 5
    assert fast[-1][1] == "a checkpoint of 10 MB is saved there in 20.0 s; a job has 120 s to do so"
