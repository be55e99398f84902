"""Submits SLURM jobs by submitit; no other module imports it.

A job calls `main` of one of specvit's modules, as a shell would. On SIGUSR2 (its time limit is near, or another job
preempts it) it saves and is requeued as the same job, any number of times.
"""

import contextlib
import importlib
import io
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvit.cluster.slurm_settings import SlurmConfig
from specvit.utils.errors import ConfigError
from specvit.utils.processes import shell_exports

EVER = 10**9
"""Limit on time-outs that submitit counts; `study.worker` limits those without progress."""
REMEDY = "see hydra.launcher's keys; `specvit doctor --cluster` looks closer"
STOPPED = 128 + signal.SIGUSR2


@dataclass(frozen=True)
class Call:
    """`main(words)` of a module. submitit pickles it when the job is submitted."""

    module: str
    words: tuple[str, ...]
    requeue: bool

    def __call__(self) -> None:
        """Run until the end or a stop by a signal; raises `SystemExit` for a code other than 0."""
        requeue_job = signal.getsignal(signal.SIGUSR2)  # submitit's handler: `checkpoint`, then `scontrol requeue`
        signal.signal(signal.SIGTERM, _leave)
        if not self.requeue:
            signal.signal(signal.SIGUSR2, _leave)
        code = importlib.import_module(self.module).main(list(self.words))
        if code == STOPPED and self.requeue and callable(requeue_job):
            requeue_job(signal.SIGUSR2, None)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Return what the requeued job runs: the same. submitit calls this just before its `scontrol requeue`."""
        from submitit.helpers import DelayedSubmission

        # The SIGTERM that a requeue sends would end `scontrol`, a child of this job, before it has reported success.
        for number in (signal.SIGTERM, signal.SIGUSR2):  # a second SIGUSR2 would end it, too
            signal.signal(number, signal.SIG_IGN)
        return DelayedSubmission(self)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def submit(
    config: SlurmConfig,
    folder: Path,
    name: str,
    calls: list[Call],
    *,
    at_once: int | None = None,
    code: Path | None = None,
) -> list[str]:
    """Submit jobs, several as one array of which `at_once` run together; return their ids.

    `folder` takes scripts and logs and must be seen by all nodes; `code` holds a copy of specvit to be run, else jobs
    run this one. Raises `ConfigError` with what sbatch said.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=EVER, python=config.python)
        executor.update_parameters(**parameters(config, name, code), array_parallelism=at_once or len(calls))
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what sbatch said, too
            jobs = [executor.submit(call) for call in calls]
    except (FailedJobError, RuntimeError, subprocess.SubprocessError, OSError) as problem:
        raise ConfigError(_refusal(problem), where="hydra/launcher=slurm", remedy=REMEDY) from problem
    return [job.job_id for job in jobs]


def parameters(config: SlurmConfig, name: str, code: Path | None = None) -> dict[str, Any]:
    """Return the parameters for submitit, without those that the user left open."""
    threads = [f"export {name}=${{SLURM_CPUS_PER_TASK:-1}}" for name in ("OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK")]
    asked: dict[str, Any] = {
        "job_name": name,
        "time": config.minutes,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "cpus_per_task": config.cpus_per_job,
        "gpus_per_node": config.gpus_per_job or None,
        "mem": config.memory,
        "signal_delay_s": config.signal_seconds,
        "setup": [
            *threads,
            *config.setup,
            *shell_exports(code),
        ],  # last: the user's setup brings no other code
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue" if config.requeue else "no-requeue": True, **config.extra},
    }
    return {key: value for key, value in asked.items() if value is not None} | {"wckey": None}  # not submitit's own


def _refusal(problem: Exception) -> str:
    """Return what sbatch said, in one sentence."""
    text = " ".join(str(problem).split())
    found = re.findall(r"sbatch: (?:error: )?(.+?)(?=\s+sbatch:|\s+Try |$)", text)
    return f"was refused ({'; '.join(dict.fromkeys(found)) or text[:300]})"
