"""Errors that reach the user as one sentence: what is wrong, where, and what to do."""

import errno

from specvit.utils.text import hide_secrets

_RESUME = "then run the same command again to resume"
_FREE = f"free some space there, {_RESUME}"
_CHECK = f"check the disk or the file server, {_RESUME}"
_OS_FAULTS = {
    errno.ENOSPC: ("the disk is full ({where})", _FREE),
    errno.EDQUOT: ("the disk quota is used up ({where})", _FREE),
    errno.EIO: ("input/output error ({where})", _CHECK),
    errno.ESTALE: ("the file server no longer knows an open file ({where})", _CHECK),
    errno.EROFS: ("the file system is read-only ({where})", "name a folder elsewhere, or have it mounted for writing"),
    errno.EACCES: ("permission denied ({where})", "name a folder of your own, or have the permission changed"),
    errno.ENOLCK: ("this file system gives no locks ({where})", "name a folder on another file system"),
    errno.ENOSYS: ("this file system gives no locks ({where})", "name a folder on another file system"),
    errno.EMFILE: ("too many files are open ({where})", f"type `ulimit -n 65536`, {_RESUME}"),
}
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EMFILE)
"""Faults that pass and are not the fault of a run: other runs meet them, too, and a retry may succeed."""


_MEMORY_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "alloc_failed",
    "cublas_status_not_initialized",
    "nvml_success == r",
    "could not execute a primitive",
)
"""What torch, the CUDA libraries and oneDNN (the last one) say when memory is short.

cuBLAS has no room for its handle; NVML cannot tell torch what is free on a MIG slice, and torch takes that for its bug.
"""


class SpecvitError(Exception):
    """A fault of the input or the environment, never of specvit itself.

    `what` and `where` say what is wrong and at which key, file or row; `remedy` says what to type or
    change. The entry points print `str(error)` without a traceback and exit with `exit_code`.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        """Join the non-empty parts into one sentence."""
        self.what, self.where, self.remedy = what, where, remedy
        sentence = ": ".join(part for part in (where, what) if part) + (f"; {remedy}" if remedy else "")
        super().__init__(hide_secrets(sentence if sentence.endswith(("?", ".")) else f"{sentence}."))


class ConfigError(SpecvitError):
    """A key, value or combination that cannot be a run; `where` is the dotted key."""

    parts: "tuple[ConfigError, ...]" = ()
    """The faults that it reports together; none for a single fault."""


class Faults(list[ConfigError]):
    """Collects the faults of the blocks `with faults:`, so that `report` raises them together."""

    MOST_LINES = 30

    def __enter__(self) -> None:
        """Begin a block."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        """Keep a `ConfigError` for `report`; let any other exception pass."""
        if not isinstance(error, ConfigError):
            return False
        self.extend(error.parts or [error])
        return True

    def report(self) -> None:
        """Raise the fault, or several as one `ConfigError` with a line for each; equal ones share a line."""
        if not self:
            return
        if len(self) == 1:
            raise self[0]
        places: dict[tuple[str, str], list[str]] = {}
        for fault in self:
            places.setdefault((fault.what, fault.remedy), []).append(fault.where)
        groups = places.items()
        lines = [str(ConfigError(what, where=", ".join(where), remedy=remedy)) for (what, remedy), where in groups]
        if len(lines) > self.MOST_LINES:
            lines[self.MOST_LINES :] = [f"and {len(lines) - self.MOST_LINES} more."]
        head = [f"{len(self)} faults:"] if len(lines) > 1 else []
        together = ConfigError("\n  ".join([*head, *lines]))
        together.parts = tuple(self)
        raise together


class DeviceError(ConfigError):
    """A GPU assigned to this process that cannot compute."""


class DataError(SpecvitError):
    """A file that cannot be trusted; `where` names file, dataset and row."""


class FolderError(SpecvitError):
    """A run folder that is in use, foreign or of another version."""


class CheckpointError(SpecvitError):
    """A checkpoint that is truncated, foreign or from an incompatible configuration."""


class TrackingError(SpecvitError):
    """MLflow could not be reached; the run folder has everything, and a later sync sends it."""

    exit_code = 1


class TrackingRefused(TrackingError):
    """MLflow refuses the record for good; a retry is useless."""


class Diverged(Exception):
    """Training broke down: the loss, the gradients or the weights are no longer finite."""


class Pruned(Exception):
    """A study stops this run: others are better at the same epoch."""


class Interrupted(BaseException):
    """A signal asked the run to stop; not an `Exception`, so that no broad handler swallows it."""

    def __init__(self, signal_name: str, signal_number: int) -> None:
        """Remember which signal it was: the state's cause and the exit code come from it."""
        self.signal_name, self.signal_number = signal_name, signal_number
        super().__init__(signal_name)


def os_fault(problem: BaseException | None) -> OSError | None:
    """Return what the operating system refused: `problem` itself, or the error it was raised from or after.

    torch hides a full disk behind a RuntimeError, as do others that write through a stream.
    """
    seen: list[BaseException] = []
    while problem is not None and problem not in seen:  # chains may be circular
        if isinstance(problem, OSError) and problem.errno in _OS_FAULTS:
            return problem
        seen.append(problem)
        problem = problem.__cause__ or problem.__context__
    return None


def passing_fault(problem: BaseException | None) -> OSError | None:
    """Return the `os_fault` that is the cause of a problem if it is one that passes."""
    fault = os_fault(problem)
    return fault if fault is not None and fault.errno in PASSING else None


def explain(fault: OSError, where: str) -> tuple[str, str]:
    """Return cause and remedy of an `os_fault`; `where` is the file or folder that it was about, "" if unknown."""
    assert fault.errno is not None
    cause, remedy = _OS_FAULTS[fault.errno]
    return cause.format(where=where).removesuffix(" ()"), remedy


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether memory, the device's or the host's, was short."""
    text = str(problem).lower()
    by_name = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"  # the latter is torch's
    return by_name or any(words in text for words in _MEMORY_WORDS)
