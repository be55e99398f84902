"""Which GPUs this process was given. Needs no torch, which takes seconds to import."""

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

from specvit.utils.errors import ConfigError

HIDDEN = ("", "-1", "NoDevFiles")
"""Values in CUDA_VISIBLE_DEVICES that hide this GPU and all after it."""
DEVICE_FILES = Path("/dev")
ANSWER_SECONDS = 20.0
"""With a broken driver `nvidia-smi` never returns."""


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Raises `ConfigError` if the driver has to be asked and does not answer.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = (name.strip() for name in given.split(","))
        return list(itertools.takewhile(lambda name: name not in HIDDEN, names))  # as CUDA reads it
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--list-gpus"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as problem:
        remedy = "have the node looked at; CUDA_VISIBLE_DEVICES=0 names a GPU without it, CUDA_VISIBLE_DEVICES= none"
        what = f"did not answer within {ANSWER_SECONDS:.0f} seconds"
        raise ConfigError(what, where="nvidia-smi", remedy=remedy) from problem
    if listing.returncode:
        return []
    gpus: list[list[str]] = []
    for line in listing.stdout.splitlines():
        if line.startswith("GPU "):
            gpus.append([])
        elif gpus and (slice_ := re.search(r"^\s+MIG .*\(UUID: (MIG-[^)]+)\)", line)):
            gpus[-1].append(slice_[1])
    return [name for number, slices in enumerate(gpus) for name in slices or [str(number)]]


def given_by() -> str:
    """Return the variable or file that shows that this process was given a GPU, or "" if it has none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible}" if visible_gpus() else ""
    for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"):
        if os.environ.get(name):
            return f"{name}={os.environ[name]}"
    files = sorted(DEVICE_FILES.glob("nvidia[0-9]*"))  # a job without a GPU may see the file, but not open it
    return next((str(path) for path in files if os.access(path, os.R_OK | os.W_OK)), "")
