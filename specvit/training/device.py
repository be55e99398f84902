"""The device of a run, its number formats, and torch's settings on it: what a run's last bits depend on."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from specvit.config.schema import TrainConfig
from specvit.training.gpus import given_by
from specvit.utils.errors import ConfigError, DeviceError
from specvit.utils.memory import keep_memory
from specvit.utils.text import counted

DEFAULT_THREADS = torch.get_num_threads()
"""torch's default (physical cores, or OMP_NUM_THREADS); a run must not inherit what the last one in its process set."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS repeats its bits; read when its first handle is made."""
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def resolve_device(name: str, where: str = "train.device") -> torch.device:
    """Return the device of that name, after a test kernel has run on it; `where` is the key or option that named it.

    Raises `ConfigError` if it does not exist, and `DeviceError` if it does not work: `auto` means the CPU only if this
    process was given no GPU.
    """
    given = given_by()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() or given else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise ConfigError(f"{name!r} is not a device", where=where, remedy="use auto, cpu, cuda or cuda:N") from problem
    if device.type == "cuda":
        if given and not torch.cuda.is_available():
            build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
            what = (
                f"there is a GPU ({given}), but torch {torch.__version__} ({build}) cannot use it: {fault_of(device)}"
            )
            remedy = f"install the torch build for your driver, or set {where}=cpu"
            raise DeviceError(what, where=where, remedy=remedy)
        if not torch.cuda.is_available():
            raise ConfigError("no CUDA device is there", where=where, remedy=f"set {where}=cpu or {where}=auto")
        if (device.index or 0) >= torch.cuda.device_count():
            what = f"{name} is not there, of {counted(torch.cuda.device_count(), 'device')}"
            raise ConfigError(what, where=where, remedy="count from cuda:0")
        if fault := fault_of(device):
            raise DeviceError(f"{name} does not work: {fault}", where=where, remedy=_remedy(fault, device, where))
    elif device.type != "cpu" or device.index:
        raise ConfigError(f"{name!r} is not supported", where=where, remedy="use auto, cpu, cuda or cuda:N")
    return device


def fault_of(device: torch.device) -> str:
    """Return why no kernel runs on a device, in the words of CUDA or torch, or "" where one does."""
    try:
        total = torch.ones(8, device=device).sum().item()
    except Exception as problem:  # RuntimeError; AssertionError from a build without CUDA
        return str(problem).partition("\n")[0].partition(". ")[0] or type(problem).__name__
    return "" if total == 8 else f"it adds eight ones up to {total:g}"


def _remedy(fault: str, device: torch.device, where: str) -> str:
    if "no kernel image" not in fault:
        return f"use another GPU, or set {where}=cpu"
    needs, has = "sm_{}{}".format(*torch.cuda.get_device_capability(device)), " ".join(torch.cuda.get_arch_list())
    what = f"this GPU needs kernels for {needs}, and torch {torch.__version__} has them for {has}"
    return f"{what}; install a torch build for it (a V100: that of CUDA 12.6), or set {where}=cpu"


def hardware(device: torch.device) -> dict[str, str]:
    """Return what the random numbers and the last bits of a run depend on besides its code.

    CUDA distributes a random stream over the multiprocessors, so that another card draws other noise and other masks.
    """
    if device.type != "cuda":
        return {"device": device.type}
    card = torch.cuda.get_device_properties(device)
    name = f"{card.name} (sm_{card.major}{card.minor}, {card.multi_processor_count} multiprocessors)"
    return {"device": name, "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def cpu_share() -> int:
    """Return how many threads this process should compute with: its part of the machine.

    That is the least of torch's default, the cores it may run on, SLURM's `cpus-per-task` and a container's quota.
    """
    limits = [DEFAULT_THREADS, len(os.sched_getaffinity(0))]
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = map(int, CPU_QUOTA.read_text().split())
        limits.append(quota // period)
    return max(1, min(limits))


def _set_up_cuda(train: TrainConfig, say: Callable[[str], None], device: torch.device) -> None:
    torch.cuda.set_device(device)
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", REPEATABLE_WORKSPACES[0])
    if train.deterministic and workspace not in REPEATABLE_WORKSPACES:
        what = f"is {workspace}, with which products on a GPU do not repeat"
        remedy = f"unset it, or set it to {' or '.join(REPEATABLE_WORKSPACES)}"
        raise ConfigError(what, where="CUBLAS_WORKSPACE_CONFIG", remedy=remedy)
    if os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE") == "1":
        say("note: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 (some containers set it) drops 13 bits in float32 products")


def set_up_torch(
    train: TrainConfig, saved_threads: int | None, say: Callable[[str], None], device: torch.device
) -> None:
    """Set threads, determinism and the current GPU; a resumed run gets the thread count that its bits depend on."""
    threads = saved_threads or train.threads or cpu_share()
    if saved_threads and train.threads and train.threads != saved_threads:
        say(f"note: continuing with {saved_threads} threads, as this run began, not train.threads={train.threads}")
    if threads > len(os.sched_getaffinity(0)):
        say(f"note: {threads} threads on fewer cores; a run that began on more may differ in its last bits")
    torch.set_num_threads(threads)
    keep_memory(train.keep_memory)
    if device.type == "cuda":
        _set_up_cuda(train, say, device)
    if train.compile:
        torch.use_deterministic_algorithms(train.deterministic)  # also sets the compiler, which this imports (1.2 s)
    else:
        torch.set_deterministic_debug_mode("error" if train.deterministic else "default")
    # Without this, determinism makes torch fill every empty() it hands out.
    flags: Any = torch.utils.deterministic
    flags.fill_uninitialized_memory = False
    # Float32 means float32: by default a convolution, so C1D, would run in TF32 and a linear layer, so SW, would not.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision that `auto` stands for: bf16-mixed where the device computes in bf16, else 32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if has_bf16(device) else "32"
    if device.type == "cpu":
        return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32"
    return "32"


def has_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device computes in bf16; older ones emulate it, slowly."""
    return torch.cuda.get_device_properties(device).major >= 8


def autocast(precision: str, device: torch.device) -> Any:
    """Return the context of a forward pass."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the gradient scaler, which is active in 16-mixed only."""
    return torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
