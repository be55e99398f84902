"""Slots of this machine: GPUs and CPU threads of each worker, within those available to this process."""

import os
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from specvit.cluster.launcher_keys import build
from specvit.config.fields import key
from specvit.training.gpus import visible_gpus
from specvit.utils.errors import ConfigError
from specvit.utils.memory import JOBS_PER_GPU
from specvit.utils.processes import python_environment
from specvit.utils.text import counted


@dataclass(frozen=True)
class LauncherConfig:
    """`hydra.launcher`: where workers run. `inprocess` is one worker, the command itself; `local` fills slots."""

    kind: str = key("inprocess", choices=("inprocess", "local"))
    slots: int | None = key(None, low=1)
    """Workers at once; None: as many as GPUs (or CPU cores, if there is no GPU) allow."""
    gpus_per_job: int | None = key(None, low=0)
    """GPUs of one worker; None: one, if there is one; 0: none."""
    jobs_per_gpu: int = key(1, low=1)
    """Workers that share one GPU."""
    cpus_per_job: int | None = key(None, low=1)
    """CPU threads of one worker; None: an equal share, and one where slots are counted by cores."""


@dataclass(frozen=True)
class Slot:
    """The resources of one worker. `gpus` are values for CUDA_VISIBLE_DEVICES; None leaves the variable unchanged."""

    number: int
    gpus: tuple[str, ...] | None
    threads: int
    sharers: int = 1
    """Workers on its GPU, including itself."""

    def environment(self) -> dict[str, str]:
        """Return the environment of this slot's worker."""
        own = python_environment()
        if self.gpus is not None:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            own[JOBS_PER_GPU] = str(self.sharers)
        own["OMP_NUM_THREADS"] = str(self.threads)
        return own

    def __str__(self) -> str:
        """Return the resources as text."""
        gpus = f"GPU {','.join(self.gpus)}, " if self.gpus else ""
        return f"{gpus}{counted(self.threads, 'CPU thread')}"


def read_launcher(plain: dict[str, Any]) -> LauncherConfig:
    """Return the launcher's settings; raises `ConfigError` for an unknown key or a wrong value."""
    config: LauncherConfig = build(LauncherConfig, plain, "hydra.launcher.")
    if config.kind == "inprocess" and len(plain) > 1:
        where = f"hydra.launcher.{next(name for name in plain if name != 'kind')}"
        raise ConfigError("needs slots", where=where, remedy="add hydra/launcher=local")
    if (config.gpus_per_job or 1) > 1 and config.jobs_per_gpu > 1:
        raise ConfigError("needs one GPU a job", where="hydra.launcher.jobs_per_gpu", remedy="set one of the two")
    return config


def plan_slots(config: LauncherConfig, devices: Set[str], *, limit: int | None = None) -> list[Slot]:
    """Return the slots of this machine, at most `limit`; raises `ConfigError` for GPUs that are not there.

    `devices` are the values of `train.device` in the runs.
    """
    gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
    wants_cuda = any(device.startswith("cuda") for device in devices)
    if numbered := sorted(device for device in devices if device.startswith("cuda:")):
        what = f"{numbered[0]} names a GPU, but a slot gives each worker its own"
        raise ConfigError(what, where="train.device", remedy="write train.device=cuda")
    each = 0 if devices == {"cpu"} else min(1, len(gpus))
    each = each if config.gpus_per_job is None else config.gpus_per_job
    if (wants_cuda or config.gpus_per_job) and len(gpus) < max(1, each):
        there = f"{len(gpus) or 'none'} {'are' if len(gpus) > 1 else 'is'} visible"
        what = f"a worker needs {counted(max(1, each), 'GPU')}, but {there} here"
        raise ConfigError(
            what, where="hydra.launcher.gpus_per_job", remedy="set train.device=cpu, or start it on a GPU"
        )
    if wants_cuda and each == 0:
        raise ConfigError("is 0, but train.device asks for CUDA", where="hydra.launcher.gpus_per_job", remedy="drop it")
    if each:
        groups = [tuple(gpus[start : start + each]) for start in range(0, len(gpus) - each + 1, each)]
        room = len(groups) * config.jobs_per_gpu
        count = config.slots or room
        if count > room:
            what = f"is {count}, but {counted(len(gpus), 'GPU')} can serve {counted(room, 'slot')}"
            raise ConfigError(what, where="hydra.launcher.slots", remedy="raise hydra.launcher.jobs_per_gpu")
        shares = [groups[n % len(groups)] for n in range(count)]
    else:
        count = config.slots or max(1, cores // (config.cpus_per_job or 1))
        shares = [() if gpus else None] * count
    count = min(count, limit or count)
    threads = config.cpus_per_job or max(1, cores // count)
    return [Slot(number, share, threads, config.jobs_per_gpu) for number, share in enumerate(shares[:count])]
