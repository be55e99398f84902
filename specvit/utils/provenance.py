"""Provenance of a run: specvit's version, a digest of its sources, its commit if known, torch's version."""

import functools
import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

from specvit import __version__

SOURCE = Path(__file__).resolve().parents[1]
COMMIT_FILE = ".specvit-commit"
"""File beside a copy of the code with the commit that was copied."""


@functools.cache
def made_by() -> dict[str, str]:
    """Return versions and a digest of every Python file of specvit, read once a process."""
    return {"specvit": __version__, "code": _digest(SOURCE), "torch": metadata.version("torch")}


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return one note for each difference in code, libraries or device since a resumed run's last checkpoint."""
    names = {"code": "specvit's code", "torch": "torch", "device": "the device", "cuda": "CUDA", "cudnn": "cuDNN"}
    shared = [name for name in names if name in before.keys() & now.keys()]
    return [
        f"note: {names[name]} changed since this run's last checkpoint ({before[name]} → {now[name]}); its "
        f"{'noise, dropout masks and ' if name == 'device' else ''}last bits may differ from an unbroken run"
        for name in shared
        if before[name] != now[name]
    ]


@functools.cache
def commit() -> str | None:
    """Return the commit of specvit's own source tree, or of the one it was copied from; asked once a process."""
    if (note := SOURCE.parent / COMMIT_FILE).exists():
        return note.read_text().strip() or None
    if not (SOURCE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(SOURCE.parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
