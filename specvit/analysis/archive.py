"""A study in one small file, from which every table can be made again: records and predictions, without weights."""

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specvit.study.store import StudyFolder
from specvit.utils.errors import FolderError
from specvit.utils.files import write_atomic
from specvit.utils.urls import hide_secrets

RUN_FILES = (
    "run.json",
    "config.yaml",
    "status.json",
    "summary.json",
    "metrics.jsonl",
    "timing.jsonl",
    "predictions.csv",
)
WHERE = ("cwd", "host", "pid", "job", "log", "storage")
"""Keys that say on which machine something ran, and where; nothing that is read from an archive needs them."""


def archive(options: argparse.Namespace) -> int:
    """Write the archive of a study."""
    study = StudyFolder(options.study)
    study.about()
    if not options.file.name.endswith(".tar.xz"):
        raise FolderError("is no name for an archive", where=str(options.file), remedy="let it end in .tar.xz")
    members = dict(_members(study))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=9) as packed:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            packed.addfile(info, io.BytesIO(members[name]))
    options.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.file, lambda target: target.write(stream.getvalue()))
    print(f"written: {options.file}, {len(study.trials())} runs, {len(stream.getvalue()) / 1e6:.1f} MB", flush=True)
    return 0


def unpack(file: Path, place: Path) -> Path:
    """Unpack an archive into `place` and return the study's folder there."""
    with tarfile.open(file) as packed:
        packed.extractall(place, filter="data")
    (study,) = (place / "multirun").iterdir()
    return study


def _members(study: StudyFolder) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents, as they lie in a working folder: multirun/STUDY and outputs/."""
    top = f"multirun/{study.name}"
    yield f"{top}/study.json", _plain(study.file("study.json"))
    for path in sorted(study.file("trials").glob("*.json")):
        trial = json.loads(path.read_text())
        trial["folder"] = f"../../outputs/{Path(trial['folder']).name}"
        yield f"{top}/trials/{path.name}", _dumped(trial)
    for trial in study.trials():
        for name in RUN_FILES:
            path = trial.run.file(name)
            if path.exists():
                content = _plain(path) if name.endswith(".json") else path.read_bytes()
                content = hide_secrets(content.decode()).encode() if name.endswith(".yaml") else content
                yield f"outputs/{trial.run.path.name}/{name}", content


def _plain(path: Path) -> bytes:
    value = {name: value for name, value in json.loads(path.read_text()).items() if name not in WHERE}
    if "command" in value:
        value["command"] = [word for word in value["command"] if "://" not in word]
    return _dumped(value)


def _dumped(value: Any) -> bytes:
    return (hide_secrets(json.dumps(value, indent=1)) + "\n").encode()
