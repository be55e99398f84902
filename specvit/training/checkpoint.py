"""Checkpoints: one atomic file each, loadable without executing code, never holding a non-finite number.

During training they are copied between two steps and written by a thread, so that only the copy takes the loop's time.
"""

import errno
import re
import zipfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specvit.training.state import TrainState
from specvit.training.step import Learner
from specvit.utils.errors import CheckpointError, is_out_of_memory, os_fault
from specvit.utils.files import write_atomic

FORMAT = 1
Parts = dict[str, type | tuple[type, ...]]
"""What a checkpoint holds, and of which type; a name with dots leads into dicts."""
CONSTANTS: Parts = {"run_id": str, "coder": dict, "flux_mean_P": Tensor, "flux_scale": (float, int), "wave_P": Tensor}
EPOCH = (int, float)
"""A whole number at an epoch's end."""
BEST: Parts = {**CONSTANTS, "epoch": EPOCH, "model": dict}
"""What a trained model is restored from."""
AGAIN = "remove it, or train again from the beginning with train.rerun=true"
MAX_PENDING = 2
"""Copies in the queue to be written (best and last of a validation); with a slower disk the training waits."""


def save(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write `content` (nested dicts and lists of numbers, text and tensors) atomically; `keep` takes the old file.

    Raises `OSError` where the disk refuses; the old file then stays where it was.
    """
    try:
        write_atomic(path, lambda stream: torch.save({"format": FORMAT, **content}, stream), keep=keep)
    except RuntimeError as problem:  # torch's own error about the file position hides the disk's
        if fault := os_fault(problem):
            raise fault from None
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of specvit as `read` does; raises `CheckpointError` for one of another format, too."""
    return check_format(read(path), path)


def check_format(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of specvit; raises `CheckpointError` for anything else."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            "is not a specvit checkpoint of this format", where=str(path), remedy="use the specvit that made it"
        )
    return content


def read(path: Path) -> Any:
    """Read what `torch.save` wrote onto the CPU, without running code in it.

    Raises `CheckpointError` if it is missing, damaged, or holds Python objects; `OSError` or `MemoryError` where the
    fault is not the file's.
    """
    try:
        if zipfile.is_zipfile(path):  # before version 1.6 torch wrote no archive
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(broken)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as problem:
        raise CheckpointError("is not there", where=str(path), remedy="name a run folder or a .ckpt file") from problem
    except Exception as problem:  # damaged files give RuntimeError, UnpicklingError, EOFError, KeyError, ...
        if is_out_of_memory(problem) or _is_access_error(problem):
            raise
        what, remedy = f"cannot be read as a checkpoint ({type(problem).__name__})", AGAIN
        if found := re.search(r"(?:GLOBAL|class) ([A-Za-z_][\w.]*)", str(problem)):
            what = f"holds Python objects ({found[1]}) that may run code"
            remedy = "save its weights alone, with torch.save(model.state_dict(), FILE)"
        raise CheckpointError(what, where=str(path), remedy=remedy) from problem


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
    """Return whether every floating-point tensor in nested dicts and lists is finite; one sync of a device in all."""
    tensors = [t for t in _tensors(content) if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    # Least and greatest are NaN if any element is: one pass over memory without a mask, 20 times as fast as isfinite.
    ends = [torch.stack(tensor.aminmax()).double() for tensor in tensors]
    return bool(torch.isfinite(torch.stack([end.to(ends[0].device) for end in ends])).all())


def host_copy(content: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts and lists with every tensor copied to host memory; views of one buffer still share one."""
    buffers: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if (address := storage.data_ptr()) not in buffers or address == 0:
                whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(storage)
                buffers[address] = whole.detach().to("cpu", copy=True)
            return buffers[address].as_strided(value.shape, value.stride(), value.storage_offset())
        if isinstance(value, dict):
            return {name: copy(inner) for name, inner in value.items()}
        return type(value)(map(copy, value)) if isinstance(value, list | tuple) else value

    return copy(content)


class AsyncCheckpointWriter:
    """Writes checkpoints on one thread, in the order of the calls; an error is raised at the next call."""

    def __init__(self) -> None:
        """The thread starts with the first file, and ends with `finish`."""
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def put(self, path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
        """Queue `content`, which must be a copy, for `save`; waits while `MAX_PENDING` files are in the queue."""
        self.check()
        while len(self._pending) >= MAX_PENDING:
            self._pending.popleft().result()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending.append(self._pool.submit(self._save, path, content, keep))

    def check(self) -> None:
        """Raise the first error of a write, at each call until `finish`; never waits."""
        if self._error is not None:
            raise self._error
        while self._pending and self._pending[0].done():
            self._pending.popleft()

    def finish(self) -> None:
        """Wait until everything is on disk; raises the first error."""
        if self._pool is not None:
            self._pool.shutdown()
        error, self._error, self._pool = self._error, None, None
        self._pending.clear()
        if error is not None:
            raise error

    def _save(self, path: Path, content: dict[str, Any], keep: Path | None) -> None:
        """Write one file, but none after an error: a last checkpoint refers to the best one before it."""
        if self._error is None:
            try:
                save(path, content, keep=keep)
            except BaseException as error:
                self._error = error


@dataclass
class CheckpointManager:
    """Writes the checkpoints of a run: `last` to resume from, `best` as `TrainState.update_best` chose.

    `constants` go into both. `last` replaces the one before it, which stays as `previous.ckpt`. Files are written in
    the background: all are on disk when `writer.finish` returns.
    """

    last: Path
    best: Path
    constants: dict[str, Any]
    writer: AsyncCheckpointWriter = field(default_factory=AsyncCheckpointWriter)

    def save_last(self, learner: Learner, state: TrainState) -> bool:
        """Write everything needed to resume and return True; return False, writing nothing, if it is not finite."""
        parts = {"model": learner.module.state_dict(), "optimizer": learner.optimizer.state_dict()}
        content = host_copy({"state": state.to_plain(), **parts, "scaler": learner.scaler.state_dict()})
        if not is_finite([content["model"], content["optimizer"]]):
            return False
        self.writer.put(self.last, {**self.constants, **content}, keep=self.last.with_name("previous.ckpt"))
        return True

    def save_best(self, learner: Learner, state: TrainState) -> None:
        """Write the best weights so far."""
        model = host_copy(learner.module.state_dict())
        if is_finite(model):
            facts = {"epoch": state.best_epoch, "step": state.step}
            self.writer.put(self.best, {**self.constants, **facts, "model": model})


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [tensor for value in inner for tensor in _tensors(value)]


def _is_access_error(problem: Exception) -> bool:
    """Return whether a file could not be read for a reason outside it; a bad block (EIO) is damage of the file."""
    outside = (errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
    return isinstance(problem, OSError) and problem.errno in outside
