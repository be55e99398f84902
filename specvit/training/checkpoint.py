"""Checkpoints: one atomic file each, loadable without executing code, never holding a non-finite number."""

import errno
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specvit.utils.errors import CheckpointError, is_out_of_memory, os_fault
from specvit.utils.files import write_atomic

FORMAT = 1
Parts = dict[str, type | tuple[type, ...]]
"""What a checkpoint holds, and of which type; a name with dots leads into dicts."""
CONSTANTS: Parts = {"run_id": str, "coder": dict, "flux_mean_P": Tensor, "flux_scale": (float, int), "wave_P": Tensor}
BEST: Parts = {**CONSTANTS, "epoch": int, "model": dict}
"""What `best.ckpt` needs to be a trained model again."""


def save(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write `content` (nested dicts and lists of numbers, text and tensors) atomically; `keep` takes the old file.

    Raises `OSError` where the disk refuses; the old file then stays where it was.
    """
    try:
        write_atomic(path, lambda stream: torch.save({"format": FORMAT, **content}, stream), keep=keep)
    except RuntimeError as problem:  # torch's own complaint about a position hides the disk's
        if fault := os_fault(problem):
            raise fault from None
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises `CheckpointError` if it is missing, damaged or of another format.

    Raises `OSError` or `MemoryError` where the fault is not the file's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(broken)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as problem:
        raise CheckpointError("is not there", where=str(path), remedy="name a run folder or a .ckpt file") from problem
    except Exception as problem:  # damaged files give RuntimeError, UnpicklingError, EOFError, KeyError, ...
        if is_out_of_memory(problem) or _is_kept_from_us(problem):
            raise
        what = f"cannot be read as a checkpoint ({type(problem).__name__})"
        raise CheckpointError(
            what, where=str(path), remedy="remove it, or train again from the beginning with train.rerun=true"
        ) from problem
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            "is no specvit checkpoint of this format", where=str(path), remedy="use the specvit that made it"
        )
    return content


def check_parts(content: dict[str, Any], parts: Parts, where: str = "") -> None:
    """Raise `CheckpointError` for a part that is missing or of another type."""
    for name, kind in parts.items():
        value: Any = content
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            what = f"lacks {name}" if value is None else f"has a {type(value).__name__} as {name}"
            raise CheckpointError(what, where=where, remedy="train again from the beginning with train.rerun=true")


def is_finite(content: Any) -> bool:
    """Say whether every floating-point tensor in nested dicts and lists is finite; one sync of a device in all."""
    tensors = [t for t in _tensors(content) if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    # Least and greatest are NaN if any element is: one pass over memory without a mask, 20 times as fast as isfinite.
    ends = [torch.stack(tensor.aminmax()).double() for tensor in tensors]
    return bool(torch.isfinite(torch.stack([end.to(ends[0].device) for end in ends])).all())


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [tensor for value in inner for tensor in _tensors(value)]


def _is_kept_from_us(problem: Exception) -> bool:
    """Say whether a file could not be read for a reason outside it; a bad block (EIO) is a reason within."""
    outside = (errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
    return isinstance(problem, OSError) and problem.errno in outside
