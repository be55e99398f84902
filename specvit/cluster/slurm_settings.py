"""`hydra.launcher` of a SLURM cluster: the request of every job, checked before anything is submitted."""

import re
from dataclasses import dataclass
from typing import Any

from specvit.cluster.launcher_keys import build
from specvit.config.fields import key
from specvit.utils.errors import ConfigError

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>[0-5]?\d))?(?::(?P<seconds>[0-5]?\d))?")
GPU_PARAMETERS = ("gres", "gpus", "gpus-per-task", "gpus-per-socket")
OURS = {
    "array": "jobs",
    "time": "time",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "mem": "memory",
    "cpus-per-task": "cpus_per_job",
    "gpus-per-node": "gpus_per_job",
    "signal": "signal_seconds",
    "job-name": "",
    "output": "",
    "error": "",
    "requeue": "requeue",
    "no-requeue": "requeue",
    "clusters": "",
}
"""sbatch parameters with their own key in `hydra.launcher`, or "" if specvit sets them."""


@dataclass(frozen=True)
class SlurmConfig:
    """What a job requests. None leaves a parameter to the cluster."""

    kind: str = key("slurm", choices=("slurm",))
    jobs: int | None = key(None, low=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "4:00:00"
    gpus_per_job: int = key(1, low=0)
    cpus_per_job: int = key(4, low=1)
    memory: str | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    requeue: bool = True
    signal_seconds: int = key(120, low=1)
    poll_seconds: int | float = key(5, low=1)
    max_gpu_hours: int | float | None = key(100, low=0)
    snapshot_code: bool = False
    extra: dict[str, Any] = key(dict)

    @property
    def gpus(self) -> int:
        """The GPUs of one job, also where `extra` asks for them."""
        asked = {name.replace("_", "-"): str(value) for name, value in self.extra.items()}
        texts = [text for name, text in asked.items() if name in GPU_PARAMETERS and (name != "gres" or "gpu" in text)]
        counts = [re.search(r"(?:^|:)(\d+)(?:\(|,|$)", text) for text in texts]
        return self.gpus_per_job + sum(int(found[1]) if found else 1 for found in counts)

    @property
    def minutes(self) -> int:
        """The time limit in whole minutes, as SLURM counts it."""
        return minutes_of(self.time)


def read_slurm(plain: dict[str, Any]) -> SlurmConfig:
    """Return the launcher's settings; raises `ConfigError` for an unknown key or a wrong value."""
    config: SlurmConfig = build(SlurmConfig, plain, "hydra.launcher.")
    if 60 * config.minutes <= config.signal_seconds:
        what = f"is {config.time}, no longer than the {config.signal_seconds} seconds that a job has to save"
        raise ConfigError(what, where="hydra.launcher.time", remedy="raise it, or lower hydra.launcher.signal_seconds")
    if config.memory is not None and not re.fullmatch(r"\d+[KMGT]?B?", config.memory):
        raise ConfigError(f"expects a size such as 16G, not {config.memory!r}", where="hydra.launcher.memory")
    _check_extra(config.extra)
    return config


def _check_extra(extra: dict[str, Any]) -> None:
    """Raise `ConfigError` for parameters with their own key; sbatch checks the others."""
    for name, value in extra.items():
        where, spelt = f"hydra.launcher.extra.{name}", str(name).replace("_", "-")
        if spelt in OURS:
            own = OURS[spelt]
            remedy = f"set hydra.launcher.{own}" if own else "drop it: specvit sets it itself"
            raise ConfigError("is not an extra parameter", where=where, remedy=remedy)
        if not isinstance(value, str | int | bool) or not re.fullmatch(r"[a-z][a-z0-9-]*", spelt):
            raise ConfigError("expects an sbatch parameter with one value", where=where, remedy="true for one without")


def minutes_of(time: str) -> int:
    """Return a time limit in whole minutes, rounded up: `4:00:00`, `1-12:00:00`, `0:30:00`; raises `ConfigError`."""
    found = TIME.fullmatch(time.strip())
    if found is None or (found["days"] is None and found["seconds"] is None):
        remedy = 'write "4:00:00" or "1-12:00:00", with quotes: YAML takes 4:00:00 without them for a number'
        raise ConfigError(f"{time!r} is not [days-]hours:minutes:seconds", where="hydra.launcher.time", remedy=remedy)
    days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return max(1, 1440 * days + 60 * hours + minutes + (seconds > 0))
