"""The device of a run and torch's settings on it, on which a run's bits depend."""

import contextlib
import os
from pathlib import Path
from typing import Any, Protocol

import torch

from specvit.config.schema import TrainConfig
from specvit.engine.allocator import keep_memory
from specvit.errors import ConfigError

DEFAULT_THREADS = torch.get_num_threads()
"""What torch found when it was imported (physical cores, or OMP_NUM_THREADS); a grid's runs must not inherit theirs."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Speaker(Protocol):
    """What notes are said to."""

    def say(self, text: str) -> None:
        """Print one line."""
        ...


def resolve_device(train: TrainConfig) -> torch.device:
    """Return the device of `train.device`; raises `ConfigError` if it is not there."""
    name = train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise ConfigError(
            f"{name!r} is no device", where="train.device", remedy="use auto, cpu, cuda or cuda:N"
        ) from problem
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("no CUDA device is there", where="train.device", remedy="set train.device=cpu or auto")
        if (device.index or 0) >= torch.cuda.device_count():
            what = f"{name} is not there, {torch.cuda.device_count()} device(s) are"
            raise ConfigError(what, where="train.device", remedy="count from cuda:0")
    elif device.type != "cpu":
        raise ConfigError(f"{name!r} is not supported", where="train.device", remedy="use auto, cpu, cuda or cuda:N")
    return device


def cpu_share() -> int:
    """Return how many threads this process should compute with: its part of the machine, not the whole of it.

    That is the least of what torch found, the cores it may run on, SLURM's `cpus-per-task` and a container's quota.
    """
    limits = [DEFAULT_THREADS, len(os.sched_getaffinity(0))]
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())
        limits.append(quota // period)
    return max(1, min(limits))


def set_up_torch(train: TrainConfig, saved_threads: int | None, screen: Speaker) -> None:
    """Set threads and determinism; a resumed run gets the thread count it began with, on which its bits depend."""
    threads = saved_threads or train.threads or cpu_share()
    if saved_threads and train.threads and train.threads != saved_threads:
        screen.say(f"note: going on with {saved_threads} threads, as this run began, not train.threads={train.threads}")
    if threads > len(os.sched_getaffinity(0)):
        screen.say(f"note: {threads} threads on fewer cores; a run that began on more may differ in its last bits")
    torch.set_num_threads(threads)
    keep_memory(train.keep_memory)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if train.compile:
        torch.use_deterministic_algorithms(train.deterministic)  # tells the compiler, too, importing it (1.2 s)
    else:
        torch.set_deterministic_debug_mode("error" if train.deterministic else "default")
    # Without this, determinism makes torch fill every empty() it hands out.
    flags: Any = torch.utils.deterministic
    flags.fill_uninitialized_memory = False
    # Float32 means float32: by default a convolution, so C1D, would run in TF32 and a linear layer, so SW, would not.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
