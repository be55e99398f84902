"""A study in one small file, from which every table can be rebuilt: records and predictions, without weights."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specvit.run_folder.folder import LINES, TABLES
from specvit.study.store import StudyFolder
from specvit.utils.errors import FolderError
from specvit.utils.files import write_atomic
from specvit.utils.text import hide_secrets

RUN_FILES = ("run.json", "config.yaml", "status.json", "summary.json", *LINES, *TABLES.values())
WHERE = ("cwd", "host", "pid", "job", "log", "storage")
"""Keys about the machine that a run used; no reader of an archive needs them."""


def pack(folder: Path, file: Path) -> tuple[int, int]:
    """Write the archive of a study; return the number of its runs and the archive's bytes."""
    study = StudyFolder(folder)
    study.about()
    if not file.name.endswith(".tar.xz"):
        raise FolderError("is not a name for an archive", where=str(file), remedy="let it end in .tar.xz")
    members = dict(_members(study))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=9) as packed:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            packed.addfile(info, io.BytesIO(members[name]))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda target: target.write(stream.getvalue()))
    return len(study.trials()), len(stream.getvalue())


def unpack(file: Path, target: Path) -> Path:
    """Unpack an archive into `target` and return the study's folder there."""
    with tarfile.open(file) as packed:
        packed.extractall(target, filter="data")
    (study,) = (target / "multirun").iterdir()
    return study


def _members(study: StudyFolder) -> Iterator[tuple[str, bytes]]:
    """Yield paths and contents as in a working folder: multirun/STUDY and outputs/."""
    top = f"multirun/{study.name}"
    yield f"{top}/study.json", _without_machine(study.file("study.json"))
    for path in sorted(study.file("trials").glob("*.json")):
        trial = json.loads(path.read_text())
        trial["folder"] = f"../../outputs/{Path(trial['folder']).name}"
        yield f"{top}/trials/{path.name}", _json(trial)
    for trial in study.trials():
        for name in RUN_FILES:
            path = trial.run.file(name)
            if path.exists():
                content = _without_machine(path) if name.endswith(".json") else path.read_bytes()
                content = hide_secrets(content.decode()).encode() if name.endswith(".yaml") else content
                yield f"outputs/{trial.run.path.name}/{name}", content


def _without_machine(path: Path) -> bytes:
    value = {name: value for name, value in json.loads(path.read_text()).items() if name not in WHERE}
    if "command" in value:
        value["command"] = [word for word in value["command"] if "://" not in word]
    return _json(value)


def _json(value: Any) -> bytes:
    return (hide_secrets(json.dumps(value, indent=1)) + "\n").encode()
