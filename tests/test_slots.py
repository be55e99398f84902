"""Slots of this machine: GPUs and CPU threads of each worker, within what the command itself was given."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal_of

from specvit.cluster.slots import LauncherConfig, Slot, plan_slots, read_launcher, visible_gpus
from specvit.training import gpus
from specvit.utils.errors import ConfigError
from specvit.utils.memory import JOBS_PER_GPU
from specvit.utils.processes import start

NVIDIA_SMI = """#!/bin/sh
[ "$*" = --list-gpus ] || exit 9
{lines}
exit {code}
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this an eight-core machine without a GPU; return the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back as it was
    del os.environ["CUDA_VISIBLE_DEVICES"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return programs


def install(programs: Path, gpus: int, code: int = 0) -> None:
    """Put a driver's tool on the path."""
    lines = "\n".join(f"echo 'GPU {n}: NVIDIA H200 (UUID: GPU-{n}f)'" for n in range(gpus))
    (programs / "nvidia-smi").write_text(NVIDIA_SMI.format(lines=f"echo 'a note'\n{lines}", code=code))
    (programs / "nvidia-smi").chmod(0o755)


def plan(gpus: str | None = None, *, cuda: bool = False, limit: int | None = None, **keys: Any) -> list[Slot]:
    """Return the slots under a CUDA_VISIBLE_DEVICES."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    return plan_slots(LauncherConfig(kind="local", **keys), {"cuda" if cuda else "auto"}, limit=limit)


def shares(slots: list[Slot]) -> list[str | None]:
    assert [slot.number for slot in slots] == list(range(len(slots)))
    return [None if slot.gpus is None else ",".join(slot.gpus) for slot in slots]


# which GPUs there are


def test_the_variable_says_what_is_visible_whatever_the_driver_has(machine: Path) -> None:
    install(machine, gpus=8)
    cases = [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["0"]),
        ("0,1,2,3", ["0", "1", "2", "3"]),
        (" 2, 5", ["2", "5"]),
        ("GPU-8f2a,MIG-1c", ["GPU-8f2a", "MIG-1c"]),
        ("1,-1,2", ["1"]),
        ("3,", ["3"]),
    ]
    wrong = []
    for value, names in cases:
        os.environ["CUDA_VISIBLE_DEVICES"] = value
        if (seen := visible_gpus()) != names:
            wrong.append((value, seen))
    assert wrong == []


@pytest.mark.parametrize(("gpus", "code", "names"), [(3, 0, ["0", "1", "2"]), (0, 0, []), (2, 9, []), (None, 0, [])])
def test_without_the_variable_the_driver_says_it(gpus: int | None, code: int, names: list[str], machine: Path) -> None:
    if gpus is not None:
        install(machine, gpus, code)
    assert visible_gpus() == names


def test_slices_of_a_gpu_are_listed_in_its_place(machine: Path) -> None:
    install(machine, gpus=0)
    lines = ["GPU 0: NVIDIA A100 (UUID: GPU-0f)", "  MIG 3g.40gb     Device  0: (UUID: MIG-a1)"]
    lines += ["  MIG 3g.40gb     Device  1: (UUID: MIG-b2)", "GPU 1: NVIDIA A100 (UUID: GPU-1f)"]
    listed = "\n".join(f"echo '{line}'" for line in lines)
    (machine / "nvidia-smi").write_text(NVIDIA_SMI.format(lines=listed, code=0))
    assert visible_gpus() == ["MIG-a1", "MIG-b2", "1"]


def test_a_driver_that_hangs_is_not_waited_for(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(machine, gpus=1)
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"nvidia-smi: did not answer within 0 seconds; .*CUDA_VISIBLE_DEVICES=0"):
        visible_gpus()


# slots


SHARES = [
    ("0,1,2,3", {}, ["0", "1", "2", "3"]),
    ("GPU-a,GPU-b", {}, ["GPU-a", "GPU-b"]),
    ("4,7", {"gpus_per_job": 1}, ["4", "7"]),
    ("0,1,2,3", {"gpus_per_job": 2}, ["0,1", "2,3"]),
    ("0,1,2", {"gpus_per_job": 2}, ["0,1"]),
    ("0,1,2,3", {"slots": 2}, ["0", "1"]),
    ("0,1", {"jobs_per_gpu": 2}, ["0", "1", "0", "1"]),
    ("0,1", {"jobs_per_gpu": 2, "slots": 3}, ["0", "1", "0"]),
    ("0,1", {"gpus_per_job": 0}, [""] * 8),
    ("0,1", {"gpus_per_job": 0, "slots": 2}, ["", ""]),
    ("", {}, [None] * 8),
    ("", {"slots": 3}, [None] * 3),
    ("", {"cpus_per_job": 3}, [None] * 2),
    ("", {"cpus_per_job": 16}, [None]),
]


def test_a_slot_is_a_share_of_the_machine() -> None:
    wrong = []
    for visible, keys, expected in SHARES:
        found = [shares(plan(visible, limit=limit, **keys)) for limit in (None, 1, 99)]
        if found != [expected, expected[:1], expected]:
            wrong.append((visible, keys, found))
    assert wrong == []


THREADS = [
    ("0,1", None, {}, [4, 4]),
    ("0,1,2", None, {}, [2, 2, 2]),
    ("0,1", 1, {}, [8]),
    ("0,1", None, {"cpus_per_job": 1}, [1, 1]),
    ("0", None, {"jobs_per_gpu": 16}, [1] * 16),
    ("", None, {}, [1] * 8),
    ("", 2, {}, [4, 4]),
    ("", None, {"slots": 3}, [2] * 3),
    ("", None, {"cpus_per_job": 3}, [3, 3]),
]


def test_threads_are_shared_out() -> None:
    planned = [[slot.threads for slot in plan(gpus, limit=limit, **keys)] for gpus, limit, keys, _ in THREADS]
    assert planned == [threads for *_, threads in THREADS]


MISSING = [
    ("", True, {}, "gpus_per_job", "a worker needs 1 GPU, but none is visible here; set train.device=cpu"),
    ("-1", True, {"slots": 2}, "gpus_per_job", "needs 1 GPU, but none is visible here"),
    ("", True, {"gpus_per_job": 0}, "gpus_per_job", "needs 1 GPU, but none is visible here"),
    ("", False, {"gpus_per_job": 1}, "gpus_per_job", "needs 1 GPU, but none is visible here"),
    ("0", False, {"gpus_per_job": 2}, "gpus_per_job", "needs 2 GPUs, but 1 is visible here"),
    ("0", True, {"gpus_per_job": 0}, "gpus_per_job", "is 0, but train.device asks for CUDA"),
    ("0,1", False, {"slots": 3}, "slots", "is 3, but 2 GPUs can serve 2 slots; raise hydra.launcher.jobs_per_gpu"),
]


def test_gpus_that_are_not_there_are_refused() -> None:
    wrong = []
    for visible, cuda, keys, where, words in MISSING:
        refusal = refusal_of(lambda visible=visible, cuda=cuda, keys=keys: plan(visible, cuda=cuda, **keys))
        if refusal.where != f"hydra.launcher.{where}" or words not in str(refusal):
            wrong.append((visible, keys, str(refusal)))
    assert wrong == []


def test_the_drivers_gpus_are_shared_out(machine: Path) -> None:
    install(machine, gpus=2)
    assert shares(plan(cuda=True)) == ["0", "1"]


# a worker's environment


@pytest.mark.parametrize(("gpus", "seen"), [(("2", "3"), "2,3"), (("GPU-a",), "GPU-a"), ((), ""), (None, "as it was")])
def test_a_worker_sees_its_share_and_nothing_else(gpus: tuple[str, ...] | None, seen: str, tmp_path: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "as it was"
    code = "import os; e = os.environ; "
    code += "print(e['CUDA_VISIBLE_DEVICES'], e['OMP_NUM_THREADS'], os.getsid(0) == os.getpid())"
    log = tmp_path / "worker.log"
    log.write_text("earlier\n")
    worker = start([sys.executable, "-S", "-c", code], log, Slot(0, gpus, 3).environment())
    assert worker.wait() == 0
    assert log.read_text() == f"earlier\n{seen} 3 True\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"


def test_a_worker_knows_how_many_share_its_gpu() -> None:
    assert [slot.environment()[JOBS_PER_GPU] for slot in plan("0,1", jobs_per_gpu=3)] == ["3"] * 6
    assert JOBS_PER_GPU not in plan("")[0].environment()


def test_a_worker_reads_nothing_from_the_terminal(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.write(sink, b"typed\n")
    kept = os.dup(0)
    os.dup2(source, 0)
    try:
        worker = start([sys.executable, "-S", "-c", "print(repr(input()))"], tmp_path / "worker.log")
    finally:
        os.dup2(kept, 0)
        for number in (source, sink, kept):
            os.close(number)
    assert worker.wait() != 0
    assert "EOFError" in (tmp_path / "worker.log").read_text()


def test_a_slot_says_what_it_has() -> None:
    assert [str(Slot(0, gpus, n)) for gpus, n in ((("0", "1"), 4), ((), 1), (None, 2))] == [
        "GPU 0,1, 4 CPU threads",
        "1 CPU thread",
        "2 CPU threads",
    ]


# the launcher's keys


def test_launcher_keys_are_read() -> None:
    plain = {"kind": "local", "slots": 3, "gpus_per_job": 0, "jobs_per_gpu": 1, "cpus_per_job": None}
    assert read_launcher(plain) == LauncherConfig("local", 3, 0, 1, None)
    assert read_launcher({"kind": "inprocess"}) == LauncherConfig()


BAD = [
    (
        {"kind": "local", "slot": 3},
        ".slot",
        "unknown key; did you mean slots? there are kind, slots, gpus_per_job, ",
    ),
    ({"kind": "local", "slots": 0}, ".slots", "expects a whole number of at least 1, not 0"),
    ({"kind": "local", "slots": "two"}, ".slots", "at least 1, not 'two'"),
    ({"kind": "local", "slots": True}, ".slots", "at least 1, not True"),
    ({"kind": "local", "cpus_per_job": 1.5}, ".cpus_per_job", "at least 1, not 1.5"),
    ({"kind": "local", "gpus_per_job": -1}, ".gpus_per_job", "at least 0, not -1"),
    ({"kind": "local", "jobs_per_gpu": None}, ".jobs_per_gpu", "at least 1, not None"),
    ({"kind": "local", "gpus_per_job": 2, "jobs_per_gpu": 2}, ".jobs_per_gpu", "needs one GPU a job"),
    ({"kind": "slurm"}, ".kind", "'slurm' is not one of inprocess, local"),
    ({"kind": "sge"}, ".kind", "'sge' is not one of inprocess, local"),
    ({"kind": "inprocess", "slots": 2}, ".slots", "needs slots; add hydra/launcher=local"),
]


def test_a_key_or_value_that_a_launcher_does_not_have_is_refused() -> None:
    wrong = []
    for plain, where, words in BAD:
        refusal = refusal_of(read_launcher, plain)
        if refusal.where != (f"hydra.launcher{where}" if where else "hydra/launcher") or words not in str(refusal):
            wrong.append((plain, str(refusal)))
    assert wrong == []
