"""A run or study in a tracking server's terms: names, parameters, tags, points, results, files. Knows no server."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specvit.config.build import flatten
from specvit.config.tracking_uri import KEY_CHARACTERS
from specvit.run_folder.folder import ALIVE, LINES, RunFolder, moment
from specvit.utils.files import read_json, read_json_lines, read_yaml

WATCHED = (*LINES, "status.json", "summary.json", "config.yaml")
"""Files whose change means that there is something to send."""
SHOWN = ("config.yaml", "summary.json", "status.json", "attempts.jsonl", "log.txt")
"""Files that are copied to the server when the run has ended; figures are, too. Predictions stay in the folder."""
_SYNTHETIC = {
    "builtin": "built-in spectra, made by specvit from a physical model",
    "synth": "synthetic spectra, made by specvit as it trained, from a physical model",
}


@dataclass(frozen=True)
class MetricPoint:
    """One metric at one optimizer step; `time` in milliseconds since 1970."""

    name: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Record:
    """Everything about one run, in a tracking server's terms. `key` identifies it on every server."""

    key: str
    name: str
    experiment: str
    state: str
    started: int
    ended: int | None
    params: dict[str, str]
    tags: dict[str, str]
    notes: str
    rows: list[list[MetricPoint]]
    results: list[MetricPoint]
    files: list[tuple[Path, str]]
    fingerprint: str

    @property
    def alive(self) -> bool:
        """Whether more is to come."""
        return self.state in ALIVE


@dataclass(frozen=True)
class StudyRecord:
    """A study's own run, the parent of those of its trials."""

    key: str
    name: str
    experiment: str
    status: str
    """MLflow's word: RUNNING, FINISHED, or KILLED for a study that ended with open trials."""
    started: int
    notes: str
    folder: str
    metrics: dict[str, float]
    step: int
    """The number of trials that have ended."""
    tags: dict[str, str] = field(default_factory=dict)


def read_record(folder: RunFolder) -> Record:
    """Return what `folder` holds now; a run that was killed counts as `lost`."""
    fingerprint = fingerprint_of(folder)  # first: what is written meanwhile then changes the next one
    about = folder.about()
    config = read_yaml(folder.file("config.yaml"))
    status, state = folder.status(), folder.state()
    summary = read_json(folder.file("summary.json"), {}) or {}
    attempts = read_json_lines(folder.file("attempts.jsonl"))
    started = milliseconds(attempts[0].get("time") if attempts else None, status.get("updated"))
    ended = None if state in ALIVE else milliseconds(status.get("updated"))
    settings = flatten({name: part for name, part in config.items() if name != "tracking"})
    rows = list(_rows(folder, whole=state not in ALIVE))
    last_step = rows[-1][0].step if rows else 0
    return Record(
        key=str(about.get("record") or folder.run_id),
        name=_name(folder, config),
        experiment=str(config["tracking"]["experiment"]),
        state=state,
        started=started,
        ended=ended,
        params={name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()},
        tags=_tags(folder, config, about, status, attempts) | {"state": state},
        notes=_notes(config, status, state),
        rows=rows,
        results=[MetricPoint(name, value, last_step, ended or started) for name, value in _numbers(summary)],
        files=_files(folder, state),
        fingerprint=fingerprint,
    )


def fingerprint_of(folder: RunFolder) -> str:
    """Return a digest of the sizes and times of the files above, and of the state."""
    state = folder.state()
    facts: list[Any] = [state]
    for name in WATCHED if state in ALIVE else WATCHED + SHOWN:
        path = folder.file(name)
        facts.append([path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _rows(folder: RunFolder, *, whole: bool) -> Iterator[list[MetricPoint]]:
    """Yield the points of each line; while the run is alive a validation waits for its wall-clock figures.

    Files are read in this order so that none has lines before one that is missing in the next.
    """
    timing = {row["step"]: row for row in read_json_lines(folder.file("timing.jsonl")) if "step" in row}
    timing |= (between := {row["step"]: row for row in read_json_lines(folder.file("training.jsonl"))})
    rows = [*read_json_lines(folder.file("metrics.jsonl")), *between.values()]
    for row in sorted(rows, key=lambda row: row["step"]):
        times = timing.get(row["step"])
        if times is None and not whole:
            return
        times = dict(times or {})
        moment = times.pop("time", None)
        if moment is None:
            moment = folder.file("metrics.jsonl").stat().st_mtime
        step = row["step"]
        yield [
            MetricPoint(name, value, step, int(1000 * moment))
            for name, value in _numbers({**times, **row}, "")
            if name not in ("step", "time")
        ]


def _numbers(values: dict[str, Any], prefix: str | tuple[str, ...] = ("test_", "best_")) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name.startswith(prefix) and math.isfinite(value):
            yield metric_key(name), float(value)


def metric_key(name: str) -> str:
    """Return a metric's name with the characters that MLflow accepts; that of a label may have others."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:KEY_CHARACTERS]


def _name(folder: RunFolder, config: dict[str, Any]) -> str:
    """Return the folder's name, for a trial after what its study varies: `lr=0.003, seed=1: c1d-...-2836b534`."""
    tags = config["tracking"].get("tags") or {}
    varied = f"{tags['setting']}: " if "study" in tags and tags.get("setting") else ""
    return f"{varied}{folder.path.name}"


def _tags(
    folder: RunFolder,
    config: dict[str, Any],
    about: dict[str, Any],
    status: dict[str, Any],
    attempts: list[dict[str, Any]],
) -> dict[str, str]:
    model, data = config["model"], config["data"]
    train = about.get("identity", {}).get("data", {}).get("train", {})
    tags = {
        "signature": folder.run_id,
        "data": data["kind"],
        "labels": ",".join(data["param"]),
        "model": model["kind"],
        **_network_tags(model),
        "seed": config["train"]["seed"],
        "rows": (train.get("shape") or [train.get("rows")])[0],
        "cause": status.get("cause") or None,
        "remedy": status.get("remedy") or None,
        "host": status.get("host"),
        "device": status.get("device"),
        "attempts": sum(attempt.get("event") == "start" for attempt in attempts),
        "commit": _latest(attempts, "commit"),
        "slurm_job": _latest(attempts, "job"),
        "folder": str(folder.path.resolve()),
    }
    tags = (config["tracking"].get("tags") or {}) | tags
    return {name: str(value) for name, value in tags.items() if value is not None}


def _network_tags(model: dict[str, Any]) -> dict[str, str]:
    """Return the tags that only a ViT has: tokenizer and size."""
    if model["kind"] != "vit":
        return {}
    size = f"h{model['hidden_size']}-L{model['num_hidden_layers']}-p{model['patch_size']}"
    return {"tokenizer": model["proj_fn"], "size": size}


def _notes(config: dict[str, Any], status: dict[str, Any], state: str) -> str:
    """Return the description shown on the run's page."""
    parts = [config["tracking"].get("notes") or ""]
    if origin := _SYNTHETIC.get(config["data"]["kind"]):
        parts.append(f"Data: {origin}, not observations.")
    if status.get("cause"):
        parts.append(f"**{state}**: {status['cause']}")
    if status.get("remedy"):
        parts.append(f"Remedy: {status['remedy']}")
    return "\n\n".join(part for part in parts if part)


def _files(folder: RunFolder, state: str) -> list[tuple[Path, str]]:
    """Return (file, folder on the server) of what is copied: the configuration at once, the rest at the end."""
    names = SHOWN[:1] if state in ALIVE else SHOWN
    files = [(folder.file(name), "") for name in names if folder.file(name).exists()]
    if state not in ALIVE:
        files += [(path, "figures") for path in sorted(folder.file("figures").glob("*.png"))]
    return files


def _latest(attempts: list[dict[str, Any]], name: str) -> Any:
    return next((attempt[name] for attempt in reversed(attempts) if attempt.get(name)), None)


def milliseconds(*moments: str | None) -> int:
    """Return the first recorded moment in milliseconds since 1970; 0 if there is none."""
    return next((int(1000 * seconds) for seconds in map(moment, moments) if seconds), 0)
