"""Where Optuna keeps a study: a journal file with a lock that dies with its holder, or a database by URL."""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file  # what lock_obj asks for

from specvit.study.store import StudyFolder
from specvit.utils.errors import ConfigError, FolderError
from specvit.utils.files import locked

JOURNAL = "journal.log"


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


class Journal(JournalFileBackend):
    """A journal whose last line may have been cut off by a full disk or a power failure."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, after the end has been mended: each line holds one record."""
        self.mend()
        super().append_logs(logs)

    def mend(self) -> None:
        """Remove a last line that was cut off: nobody has read it, and its writer has not gone on."""
        with get_lock_file(self._lock), open(self._file_path, "rb+") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            if end == 0 or stream.read() == b"\n":
                return
            stream.seek(0)
            last = stream.read().rpartition(b"\n")[2]
            try:
                json.loads(last)
                stream.write(b"\n")
            except ValueError:
                stream.truncate(end - len(last))


def open_storage(study: StudyFolder, url: str | None) -> Any:
    """Return Optuna's storage: the study's journal, or a database by URL. Raises `ConfigError` or `FolderError`."""
    if url is None:
        return _open_journal(study.file(JOURNAL), study.file("journal.lock"))
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs=wait)
    except ImportError as problem:
        what = f"needs a driver for such a database ({problem})"
        remedy = "for PostgreSQL `pip install 'specvit[postgres]'`"
        raise ConfigError(what, where="sweep.storage", remedy=remedy) from problem
    except Exception as problem:
        what = f"does not answer ({type(problem).__name__}: {' '.join(str(problem).split())[:200]})"
        raise ConfigError(what, where="sweep.storage", remedy="see to it, or drop the key") from problem


def _open_journal(path: Path, lock: Path) -> Any:
    journal = Journal(str(path), lock_obj=KernelLock(lock))
    journal.mend()
    try:
        return JournalStorage(journal)
    except (ValueError, KeyError) as problem:
        bad = next((n for n, line in enumerate(path.read_bytes().splitlines(), 1) if not _is_json(line)), "some")
        what = f"line {bad} is damaged"
        remedy = "put back a copy of the file, or take that line out and give the same command"
        raise FolderError(what, where=str(path), remedy=remedy) from problem


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
