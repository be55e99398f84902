"""GPUs that are there and cannot be used, shown without one: what CUDA would say is put into torch's mouth."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from handmade import make_study
from handmade import study as definition_of
from test_compute import Silent

from specvit.cluster.slots import LauncherConfig
from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import DataConfig, TrainConfig
from specvit.data import batches
from specvit.data.batches import SpectraStore
from specvit.data.views import open_spectra
from specvit.run.outcome import outcome_of_error
from specvit.run_folder.folder import RunFolder
from specvit.study.local_slots import GIVE_UP, LocalSlots
from specvit.study.options import SweepOptions
from specvit.study.request import StudyRequest
from specvit.study.store import BROKEN_GPU, StudyFolder
from specvit.training import device, gpus
from specvit.training.device import resolve_precision
from specvit.training.step import Learner
from specvit.utils.errors import ConfigError, DeviceError, is_out_of_memory
from specvit.utils.files import read_json_lines
from specvit.utils.memory import JOBS_PER_GPU

CUDA = torch.device("cuda:0")
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ..."
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide what this machine has; return the folder of device files."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "DEVICE_FILES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


@pytest.fixture
def v100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch see a card; kernels fail on it, since there is none."""
    card = SimpleNamespace(name="Tesla V100", major=7, minor=0, multi_processor_count=80)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])


def fails(words: str) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise RuntimeError(words)

    return raises


# one process


@pytest.mark.parametrize(
    ("environment", "file", "given"),
    [
        ({}, False, ""),
        ({}, True, "nvidia0"),
        ({"CUDA_VISIBLE_DEVICES": ""}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_GPUS": "0"}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, False, "CUDA_VISIBLE_DEVICES=MIG-1"),
        ({"SLURM_JOB_GPUS": "2"}, False, "SLURM_JOB_GPUS=2"),
        ({"SLURM_STEP_GPUS": "2"}, False, "SLURM_STEP_GPUS=2"),
        ({"SLURM_JOB_GPUS": ""}, False, ""),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_auto_means_the_cpu_only_where_no_gpu_was_given(
    name: str, environment: dict[str, str], file: bool, given: str, no_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if file:
        (no_gpu / "nvidia0").touch()
    monkeypatch.setattr(torch, "ones", fails("The NVIDIA driver on your system is too old (found 12020). Please"))
    if given or name == "cuda":
        with pytest.raises(ConfigError) as refusal:
            device.resolve_device(name)
        assert isinstance(refusal.value, DeviceError) == bool(given)
        said = str(refusal.value)
        assert "set train.device=cpu" in said
        assert not given or (f"{given})" in said and "is too old (found 12020); install the torch build" in said)
    else:
        assert device.resolve_device(name).type == "cpu"
    assert device.resolve_device("cpu").type == "cpu"


def test_a_device_file_that_may_not_be_opened_gives_no_gpu(no_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_gpu / "nvidia0").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # as in a job that has no GPU on a node that has
    assert gpus.given_by() == ""


def test_a_card_without_kernels_in_this_build_is_refused_with_the_build_that_has_them(v100, monkeypatch) -> None:
    monkeypatch.setattr(torch, "ones", fails(NO_KERNEL))
    with pytest.raises(DeviceError) as refusal:
        device.resolve_device("auto")
    said = str(refusal.value)
    assert said.startswith("train.device: cuda does not work: CUDA error: no kernel image is available for execution")
    assert "this GPU needs kernels for sm_70, and torch" in said and "has them for sm_75 sm_90" in said
    assert "CUDA 12.6" in said and "might be" not in said


def test_a_card_that_computes_nonsense_is_refused_and_one_that_computes_is_taken(v100, monkeypatch) -> None:
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, **_: ones(size))
    assert device.resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch, "ones", lambda size, **_: ones(size - 1))
    with pytest.raises(DeviceError, match="adds eight ones up to 7"):
        device.resolve_device("cuda:0")


def test_the_card_stands_in_the_record_and_sets_what_auto_precision_means(v100) -> None:
    found = device.hardware(CUDA)
    assert found["device"] == "Tesla V100 (sm_70, 80 multiprocessors)"
    assert set(found) == {"device", "cuda", "cudnn"}
    assert device.hardware(torch.device("cpu")) == {"device": "cpu"}
    assert resolve_precision("auto", CUDA) == "32"


def test_a_gpu_is_set_up_as_repeatable_or_refused(v100, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, console, train = [], Silent(), TrainConfig(threads=1, keep_memory=False)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        device.set_up_torch(train, None, console.say, CUDA)
        assert chosen == [CUDA]
        assert [line.split("=")[0] for line in console.said] == ["note: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"]
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
        with pytest.raises(ConfigError, match=r"^CUBLAS_WORKSPACE_CONFIG: is :0:0, .* set it to :4096:8 or :16:8\.$"):
            device.set_up_torch(train, None, console.say, CUDA)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1016',
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_short_memory_is_known_by_its_words(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError(ILLEGAL))


@pytest.mark.parametrize(("after", "state"), [("", "crashed"), (ILLEGAL, "lost"), ("CUDA out of memory.", "crashed")])
def test_an_error_that_ends_the_gpu_for_this_process_is_no_end_of_the_run(
    after: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(compose([]))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch, "ones", fails(after) if after else lambda *_, **__: torch.full((8,), 1.0))
    end = outcome_of_error(
        RuntimeError("CUDA error: unspecified launch failure"), config, SimpleNamespace(path=tmp_path)
    )
    assert (end.state, end.code) == (state, 1)
    assert "unspecified launch failure" in end.cause and bool(end.trace)
    assert ("an illegal memory access" in end.cause) == (state == "lost")


# spectra on the device


def test_spectra_that_no_longer_fit_are_read_from_the_host(files, monkeypatch: pytest.MonkeyPatch) -> None:
    view, cpu = open_spectra(files["chunked"], -1), torch.device("cpu")
    whole = SpectraStore(view, DataConfig(), cpu)
    monkeypatch.setattr(batches, "COPY_ROWS", 16)
    host, calls = SpectraStore.gather_host, []

    def full(store: SpectraStore, index_B: Any) -> Any:
        calls.append(len(index_B))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return host(store, index_B)

    monkeypatch.setattr(SpectraStore, "gather_host", full)
    store = SpectraStore(view, DataConfig(), cpu)
    assert (whole.note, whole.arrays is None) == ("", False)
    assert store.arrays is None and store.note.startswith("note: the spectra no longer fit on cpu")
    rows = view.rows_N[:5]
    assert all(torch.equal(a, b) for a, b in zip(store.gather(rows), whole.gather(rows), strict=True))
    monkeypatch.setattr(SpectraStore, "gather_host", fails("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        SpectraStore(view, DataConfig(), cpu)


def test_workers_that_share_a_gpu_share_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("memory_reserved", 30), ("memory_allocated", 10), ("mem_get_info", (60, 100))):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    free = []
    for sharers in (None, "1", "4"):
        monkeypatch.delenv(JOBS_PER_GPU, raising=False) if sharers is None else monkeypatch.setenv(
            JOBS_PER_GPU, sharers
        )
        free.append(batches._free_bytes(CUDA))
    assert free == [80, 80, 20]


# workers


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> dict[int, bool]:
    """Have steps of the call numbers in the returned dict end the GPU for this process; True once that has happened."""
    plan: dict[int, bool] = {}
    step, ones, calls, dead = Learner.step, torch.ones, [0], [False]

    def stepped(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] in plan:
            plan[calls[0]] = dead[0] = True
            raise RuntimeError(ILLEGAL)
        step(*arguments)

    def computed(*arguments: Any, **keys: Any) -> torch.Tensor:
        if "device" in keys and dead[0]:
            dead[0] = False  # the next process has a new context
            raise RuntimeError(ILLEGAL)
        return ones(*arguments, **{**keys, "device": "cpu"} if "device" in keys else keys)

    monkeypatch.setattr(Learner, "step", stepped)
    monkeypatch.setattr(torch, "ones", computed)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return plan


def study_of(place: Path) -> StudyFolder:
    (path,) = (place / "multirun").iterdir()
    return StudyFolder(path)


@pytest.mark.slow
def test_a_trial_whose_gpu_dies_is_left_open_and_the_next_worker_finishes_all(
    dying: dict[int, bool], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *tiny, "train.seed=1,2", "train.threads=1"]
    dying[15] = False
    assert main(words) == 3
    said, study = capsys.readouterr(), study_of(tmp_path)
    assert "this GPU does not work: CUDA error: an illegal memory access was encountered" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert [study.state(trial) for trial in study.trials()] == ["waiting", "waiting"]
    assert study.trials()[0].run.state() == "lost"
    assert [event["event"] for event in read_json_lines(study.file("events.jsonl"))] == [
        "worker starts",
        "begins",
        "GPU fails",
        "worker ends",
    ]
    assert main(words) == 0
    assert all(trial.run.state() in ("completed", "plateau") for trial in study.trials())
    assert "resuming from step 12 (epoch 1)" in study.trials()[0].run.file("log.txt").read_text()


@pytest.mark.slow
def test_a_run_that_ends_its_gpu_each_time_is_left_alone_and_the_others_are_made(
    dying: dict[int, bool], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *tiny, "train.seed=1,2", "train.threads=1"]
    dying.update({1: False, 2: False, 3: False})
    assert [main(words) for _ in range(4)] == [3, 3, 3, 1]
    first, second = study_of(tmp_path).trials()
    assert first.end and first.end["state"] == "lost"
    assert first.end["cause"].startswith("3 times: this GPU does not work: CUDA error: an illegal memory access")
    assert second.run.state() in ("completed", "plateau")


def test_a_slot_whose_worker_lost_its_gpu_gets_another_and_one_that_never_had_a_good_one_stays_empty(
    tmp_path: Path, capsys: Any
) -> None:
    study = make_study(tmp_path / "multirun" / "toy", [RunFolder(tmp_path / "outputs" / "toy-00000000", "00000000")])
    order = StudyRequest(definition_of("grids: [{}]"), {}, SweepOptions(), LauncherConfig(kind="local", slots=1), ())
    slots = LocalSlots(study, order, {"auto"})
    (slot,) = slots.slots
    for death in range(GIVE_UP):
        slots.started[0] = time.time() - 0.001
        study.log_event("begins", slot=0, trial=0)
        study.log_event("GPU fails", slot=0, cause="an illegal access")
        assert slots.ended == set(), death
        slots._note_end(slot, BROKEN_GPU)
    assert slots.ended == {0} and "slot 0 is left empty: 10 workers in a row died there" in capsys.readouterr().out
    fresh = LocalSlots(study, order, {"auto"})
    fresh.started[0] = time.time() + 1.0
    fresh._note_end(slot, BROKEN_GPU)
    assert fresh.ended == {0} and "slot 0 is left empty: an illegal access" in capsys.readouterr().out


def test_a_slot_whose_disk_fails_for_long_stays_empty_and_names_the_file(tmp_path: Path, capsys: Any) -> None:
    study = make_study(tmp_path / "multirun" / "toy", [RunFolder(tmp_path / "outputs" / "toy-00000000", "00000000")])
    order = StudyRequest(definition_of("grids: [{}]"), {}, SweepOptions(), LauncherConfig(kind="local", slots=1), ())
    slots = LocalSlots(study, order, {"auto"})
    slots.started[0] = time.time() - 0.001
    study.log_event("worker ends", slot=0, code=os.EX_TEMPFAIL, cause="input/output error (/data/stars.h5)")
    for _ in range(GIVE_UP):
        assert slots.ended == set()
        slots._note_end(slots.slots[0], os.EX_TEMPFAIL)
    *waits, end = capsys.readouterr().out.splitlines()
    assert (
        waits[0] == ("slot 0: input/output error (/data/stars.h5); its runs wait, and another worker starts in 2 s")
        and len(waits) == GIVE_UP - 1
    )
    assert "10 workers in a row died there before they ended a run, the latest of: input/output error (/data" in end
    assert slots.ended == {0}
