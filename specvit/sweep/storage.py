"""Where Optuna keeps a study: a journal file with a lock that dies with its holder, or a database by URL."""

from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock  # the base that lock_obj asks for

from specvit.files import locked
from specvit.sweep.folder import StudyFolder


class KernelLock(BaseJournalFileLock):
    """Guards a journal by `flock`. Optuna's own locks stay behind when their process is killed, for 30 seconds."""

    def __init__(self, path: Path) -> None:
        """`path` is a file beside the journal."""
        self.path = path
        self._held: list[Any] = []

    def acquire(self) -> bool:
        """Wait for the lock."""
        held = locked(self.path)
        held.__enter__()
        self._held.append(held)
        return True

    def release(self) -> None:
        """Let go of it."""
        self._held.pop().__exit__(None, None, None)


def open_storage(study: StudyFolder, url: str | None) -> Any:
    """Return Optuna's storage: the study's journal, or a database by URL."""
    if url is None:
        journal = study.file("journal.log")
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=KernelLock(study.file("journal.lock"))))
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=wait)
