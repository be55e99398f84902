"""`specvit doctor --cluster`: checks, with one real job, that this cluster can run studies.

`specvit doctor [overrides]`: see `specvit.commands.checkup`; `--against`: `specvit.commands.against`.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from specvit.cluster import queue
from specvit.cluster.probe import FOUND, LOCK
from specvit.cluster.slurm_settings import SlurmConfig, read_slurm
from specvit.commands.against import compare
from specvit.commands.answer import FLAG, Answer
from specvit.commands.checkup import check
from specvit.commands.entry import user_facing
from specvit.config.model_kinds import kind_of
from specvit.utils.errors import ConfigError
from specvit.utils.files import locked, read_json

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sacct")
WAIT_SECONDS = 300.0
FLAGS = ("--quick", "--out", "--cluster", "--against", "--style", "--help", FLAG)
USAGE = """\
usage: specvit doctor [OVERRIDES] [--quick] [--out FIGURE.png] [--json]
       specvit doctor --cluster [hydra/launcher=NAME hydra.launcher.KEY=VALUE ...] [model/size=NAME] [--json]
       specvit doctor [OVERRIDES] --against "OVERRIDES" [--style text|csv|markdown] [--json]
       specvit doctor RUN --against RUN [--style text|csv|markdown] [--json]

OVERRIDES: check what `specvit train OVERRIDES` would run: network, gradients, labels, spectra, first steps
           (docs/doctor.md); makes no run folder; the exit code is 1 if there is a fault
--quick: without training; --out: draw the losses of the learning-rate test
--cluster: can jobs be submitted, see a GPU, write, lock and save in time
--against: gradients, loss and activation scales of the first steps of two runs, on the same rows and noise; overrides
           after --against are added to the others, such as
           specvit doctor experiment=demo_c1d --against "model/tokenizer=sw model.init=legacy\""""
Finding = tuple[str, str]
"""`ok`, `note` or `FAIL`, and a sentence."""


@user_facing
def main(arguments: list[str] | None = None) -> int | Answer:
    """Check a configuration before a run, or that a SLURM cluster can run studies, or compare two runs' first steps."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    if any(word.partition("=")[0] == "--against" for word in words):
        return compare(words)
    if "--cluster" not in words:
        return check(words)
    in_json = FLAG in words
    return _check_cluster([word for word in words if word not in ("--cluster", FLAG)], in_json=in_json)


def _check_cluster(words: list[str], *, in_json: bool) -> int | Answer:
    """Check that a SLURM cluster can run studies with the settings of hydra/launcher=slurm."""
    from specvit.config.compose import compose  # Hydra, which help does without
    from specvit.config.launcher import compose_launcher, split_launcher
    from specvit.config.overrides import bracket_lists

    overrides = bracket_lists(words)
    hydra, settings = split_launcher(overrides)
    if not any(text.startswith("hydra/launcher=") for text in hydra):
        hydra.insert(0, "hydra/launcher=slurm")
    launcher = compose_launcher(hydra)
    if launcher.get("kind") != "slurm":
        raise ConfigError(
            "is not a cluster", where="hydra/launcher", remedy="use slurm, or one of your own made from it"
        )
    config = read_slurm(launcher)
    model = compose(settings)["model"]
    model_bytes = 4 * kind_of(model).parameters(model)
    found = []
    for kind, sentence in examine(config, 3 * model_bytes):  # weights and the optimizer's two averages
        print(f"{kind:<5} {sentence}", flush=True)
        found.append({"kind": kind, "sentence": sentence})
    code = int(any(one["kind"] == "FAIL" for one in found))
    return Answer("doctor.cluster", {"findings": found}, code) if in_json else code


def examine(config: SlurmConfig, checkpoint_bytes: int) -> Iterator[Finding]:
    """Yield findings in order; stop at a failure that makes the remaining checks meaningless."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        yield "FAIL", f"{', '.join(missing)}: not on this machine; log in to the cluster, or load its module"
        return
    if (problem := _refused("scontrol", "ping")) is not None:
        yield "FAIL", f"the controller does not answer: {problem}"
        return
    yield "ok", "SLURM's commands are here and its controller answers"
    if _refused("sacct", "--noheader", "-X") is None:
        yield "ok", "accounting answers: how jobs ended will be known"
    else:
        yield "note", "no accounting (sacct): a job's exit code and what it was killed for are known for minutes only"
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=Path.cwd()))
    try:
        with locked(folder / LOCK):
            yield from _examine_by_job(config, folder, checkpoint_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refused(*words: str) -> str | None:
    """Return the message of a command that fails, or None."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=queue.ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return " ".join((done.stderr or done.stdout).split())[:200] if done.returncode else None


def _examine_by_job(config: SlurmConfig, folder: Path, checkpoint_bytes: int) -> Iterator[Finding]:
    from specvit.cluster.submit import Call, submit

    call = Call("specvit.cluster.probe", (str(folder), str(checkpoint_bytes)), requeue=False)
    short = replace(config, time="0:05:00", signal_seconds=60, requeue=False)
    started = time.monotonic()
    try:
        (job,) = submit(short, folder / "%j", "specvit-doctor", [call])
    except ConfigError as refusal:
        yield "FAIL", str(refusal)
        return
    yield "ok", f"job {job} was submitted"
    last = _wait(job, started)
    if not last:
        yield "FAIL", f"job {job} ended, but SLURM does not say how"
    elif last.alive:
        queue.cancel([job])
        yield "FAIL", f"{last} after {WAIT_SECONDS:.0f} seconds, and was cancelled; see `sinfo`, or ask for less"
    elif not (found := read_json(folder / FOUND)):
        log = "".join(path.read_text(errors="replace") for path in folder.glob(f"{job}/*log.out"))
        yield "FAIL", f"{last}, without a word in {folder}; its log ends: {' '.join(log.split())[-300:] or '(empty)'}"
    else:
        yield "ok", f"it ran on {found['host']} and is over {time.monotonic() - started:.1f} s after it was submitted"
        yield from findings(found, config, checkpoint_bytes)


def _wait(job: str, started: float) -> queue.ClusterJob | None:
    """Return the job as it ended, or as it is after `WAIT_SECONDS`."""
    last = None
    while time.monotonic() - started < WAIT_SECONDS:
        there = queue.jobs_named("specvit-doctor")
        last = (there or {}).get(job, last)
        if there is not None and (last is None or not last.alive):
            account = queue.ended_jobs([job]).get(job)  # it may be late
            return last if account is None or account.alive else account
        time.sleep(1.0)
    return last


def findings(found: dict[str, Any], config: SlurmConfig, checkpoint_bytes: int) -> Iterator[Finding]:
    """Yield findings from the job's report."""
    yield "ok", f"Python {found['python']} with torch {found['torch']} (imported in {found['import_seconds']} s)"
    if not config.gpus_per_job:
        yield "note", "no GPU was asked for (hydra.launcher.gpus_per_job=0)"
    elif found["gpu"]:
        yield "ok", f"GPU: {found['gpu']}; a kernel ran on it, and torch has kernels for {' '.join(found['kernels'])}"
    else:
        seen = f"CUDA_VISIBLE_DEVICES is {found['visible']!r}, see partition and extra"
        yield "FAIL", f"no GPU that works ({seen}): {found['gpu_fault']}"
    if found["scontrol"]:
        yield "ok", "a job can put itself into the queue again"
    else:
        yield "FAIL", "scontrol is not found in the job (a container?): jobs cannot requeue themselves there"
    if found["lock_seen"]:
        yield "ok", f"the folder is shared, and a lock held here is seen on {found['host']}"
    else:
        yield "note", "a lock held here is not seen there: heartbeats replace it; keep one command a study"
    size, seconds = checkpoint_bytes / 1e6, found["save_seconds"]
    said = f"a checkpoint of {size:.0f} MB is saved there in {seconds} s; a job has {config.signal_seconds} s to do so"
    yield ("ok" if 4 * seconds < config.signal_seconds else "FAIL"), said
