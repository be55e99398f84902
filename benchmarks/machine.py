"""What is measured on: device, cores, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from specvit.config.schema import TrainConfig
from specvit.training.device import resolve_precision, set_up_torch


def facts(device: torch.device, packages: tuple[str, ...] = ("torch", "numpy")) -> dict[str, Any]:
    """Return date, commit, hardware and versions, to stand above every result."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0].partition(': ')[2]}" if names else platform.machine()


def commit() -> str:
    """Return the commit that is measured, with a mark where files differ from it, "unknown" away from git."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


class Printer:
    """Takes what specvit has to say."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


def set_up(device: torch.device) -> None:
    """Set torch as `specvit train` does: threads, determinism, float32 without TF32."""
    set_up_torch(TrainConfig(), None, Printer(), device)


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bf16; where it is emulated, a step takes up to ten times as long."""
    return resolve_precision("auto", device) == "bf16-mixed"


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now() -> float:
    """Return a clock in seconds that only runs forward."""
    return time.perf_counter()
