"""Checkpoints written while training goes on: copied at once, written by one thread in the order they were given.

What a run goes on from is as before: each file is whole or absent, and an older one is never written after a newer.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specvit.training import checkpoint

WAITING = 2
"""Copies that may wait to be written (an epoch's best and last); a slow disk then holds up the training."""


class AsyncCheckpointWriter:
    """Writes checkpoints behind the training's back; what fails is raised at the next call."""

    def __init__(self) -> None:
        """The thread starts with the first file, and ends when all is on disk."""
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()
        self._problem: BaseException | None = None

    def put(self, path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
        """Have `content`, which must be a copy, written to `path` as `checkpoint.save` does."""
        self.check()
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._waiting.append(self._pool.submit(self._save, path, content, keep))

    def check(self) -> None:
        """Raise what went wrong with a file, at each call until `finish`; waits for nothing."""
        if self._problem is not None:
            raise self._problem
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()

    def finish(self) -> None:
        """Wait until everything is on disk; raises the first thing that went wrong."""
        if self._pool is not None:
            self._pool.shutdown()
        problem, self._problem, self._pool = self._problem, None, None
        self._waiting.clear()
        if problem is not None:
            raise problem

    def _save(self, path: Path, content: dict[str, Any], keep: Path | None) -> None:
        """Write one file, but none after one that failed: a last checkpoint names the best one before it."""
        if self._problem is None:
            try:
                checkpoint.save(path, content, keep=keep)
            except BaseException as problem:
                self._problem = problem


def copied(content: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts and lists with every tensor copied to host memory; views of one buffer stay so."""
    buffers: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if (at := storage.data_ptr()) not in buffers or at == 0:
                whole = torch.empty(0, dtype=value.dtype, device=value.device).set_(storage)
                buffers[at] = whole.detach().to("cpu", copy=True)
            return buffers[at].as_strided(value.shape, value.stride(), value.storage_offset())
        if isinstance(value, dict):
            return {name: copy(inner) for name, inner in value.items()}
        return type(value)(map(copy, value)) if isinstance(value, list | tuple) else value

    return copy(content)
