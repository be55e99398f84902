"""A table of runs from Weights & Biases or MLflow, exported as CSV: states, settings and scores in our words."""

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specvit.importing.translate import architecture, find_entry
from specvit.importing.values import is_number, metric_name, problem_with, value_of
from specvit.run_folder.folder import ALIVE, RESUMABLE
from specvit.study.schema import SEED
from specvit.study.store import WAITING
from specvit.study.trial_queue import CLOSED_STATES, group_counts
from specvit.study.yaml_schema import valued
from specvit.utils.errors import DataError
from specvit.utils.text import csv_text

STATES = {
    **{state: state for state in (*ALIVE, *RESUMABLE, *CLOSED_STATES, WAITING)},
    **{"finished": "completed", "failed": "crashed", "killed": "cancelled"},
    **{"pending": WAITING, "scheduled": WAITING, "preempting": "preempted"},
}
"""Our states by those of W&B and MLflow, in lower case."""
STATE, NAME, SECONDS = (
    ("state", "status"),
    ("name", "run name", "run_name", "runname"),
    ("runtime", "_runtime", "seconds"),
)
ABOUT = {
    *("id", "run id", "run_id", "experiment_id", "artifact_uri", "start_time", "end_time", "user", "tags"),
    *("created", "updated", "end time", "start time", "sweep", "notes", "hostname", "host", "group"),
    *("job type", "duration", "source type", "source name", "epoch", "step", "global_step"),
    *("trainer/global_step", "github", "gpu type", "gpu count"),
}
"""Columns that say nothing of settings and scores; a logged epoch is the last one that a run came to."""
BEFORE = re.compile(r"^(metrics|params|config|summary|tags[./]mlflow)[./]")
NO_SCORE = ("", "-", "nan", "none", "null", "n/a", "inf", "-inf", "infinity", "-infinity", ".inf", "-.inf", ".nan")
"""Cells of a run without a score."""
MOST_VALUES = 8
"""Different values of a column that is neither key nor score, up to which it is a setting of its own."""


@dataclass(frozen=True)
class RunTable:
    """Runs of a table, a row each."""

    source: str
    rows: list[dict[str, Any]]
    """`name`, `state`, `seed`, `seconds`, `factors` (the settings in which runs differ) and `scores`."""
    notes: list[str]


def read_run_table(path: Path) -> RunTable:
    """Return the runs of a CSV file; raises `DataError` for a file that is not a table of runs."""
    names, cells = _read_csv(path)
    lower = {_bare(name).lower(): name for name in names}
    state, title, seconds = (next((lower[one] for one in ones if one in lower), "") for ones in (STATE, NAME, SECONDS))
    if not state:
        what = "has no column State or Status, so it is not a table of runs"
        raise DataError(what, where=str(path), remedy="export the runs' table of W&B or MLflow, all columns")
    about = {name for name in names if _bare(name).lower() in ABOUT or name in (state, title, seconds)}
    about |= {name for name in names if name[:1] == "_" or name.startswith(("tags.", "tags/"))}
    scores = {name: own for name in names if name not in about and (own := metric_name(_bare(name)))}
    _check_scores(path, scores, cells)
    others = [name for name in names if name not in about and name not in scores]
    settings, left_out = _settings_of({name: [row[name] for row in cells] for name in others})
    rows = []
    for number, row in enumerate(cells, 2):
        if (said := STATES.get(row[state].strip().lower())) is None:
            what = f"has the state {row[state]!r}"
            raise DataError(what, where=f"{path} row {number}", remedy=f"write one of {', '.join(STATES)}")
        factors = {}
        for name, key in settings.items():
            factors |= _factor(key, _value(row[name]))
        known = {own: value for name, own in scores.items() if (value := _number(row[name])) is not None}
        about_run = {"name": row.get(title) or f"row{number}", "state": said, "seed": factors.get(SEED) or 0}
        results = {"seconds": _number(row.get(seconds, "")), "scores": known}
        rows.append({**about_run, **results, "factors": factors})
    keys = [key for key in dict.fromkeys(key for row in rows for key in row["factors"]) if key != SEED]
    varied = [key for key in keys if len({repr(row["factors"].get(key)) for row in rows}) > 1]
    for row in rows:
        row["factors"] = {key: row["factors"].get(key) for key in varied}
    shared = [f"{name} -> {own}" if name != own else name for name, own in {**scores, **settings}.items()]
    notes = [f"columns: {', '.join(shared) or 'none that specvit has'}"]
    notes += [f"left out, neither a key nor a score here: {', '.join(left_out)}"] if left_out else []
    return RunTable(str(path), rows, notes)


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns and the rows; raises `DataError`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            sample = stream.readline()
            stream.seek(0)
            lines = list(csv.reader(stream, delimiter=max(",\t;", key=sample.count)))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"is not a CSV table ({problem})", where=str(path), remedy="export it again") from problem
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if len(lines) < 2:
        raise DataError("has no rows below its header", where=str(path), remedy="export it again, with rows")
    names, *cells = lines
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"names a column twice: {twice[0]}", where=str(path), remedy="rename one of the two")
    for number, line in enumerate(cells, 2):
        if len(line) != len(names):
            what = f"has {len(line)} cells where the header has {len(names)}"
            raise DataError(what, where=f"{path} row {number}", remedy="correct that row")
    return names, [dict(zip(names, line, strict=True)) for line in cells]


def _bare(name: str) -> str:
    """Return the name of a column without what W&B and MLflow put before it: `metrics.val_r2`, `config/lr`."""
    return name if name.lower() in ABOUT else BEFORE.sub("", name)


def _check_scores(path: Path, scores: dict[str, str], cells: list[dict[str, str]]) -> None:
    """Raise `DataError` for a score that is not a number, and for two columns of a score that differ."""
    for number, row in enumerate(cells, 2):
        seen: dict[str, str] = {}
        for name, own in scores.items():
            if row[name].strip().lower() in NO_SCORE:
                continue
            where = f"{path} row {number}"
            if not is_number(_value(row[name])):
                raise DataError(f"has {name}={row[name]!r}, not a number", where=where, remedy="correct or empty it")
            if _value(row[seen.setdefault(own, name)]) != _value(row[name]):
                what = f"has columns {seen[own]} and {name}, both {own}, that differ"
                raise DataError(what, where=where, remedy="remove one of the two columns")


def _settings_of(columns: dict[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """Return the columns that are settings with their keys, ours or their own name, and those that are left out."""
    settings: dict[str, str] = {}
    left_out = []
    for name, cells in columns.items():
        values, entry = {cell for cell in cells if cell != ""}, find_entry(_bare(name))
        key = entry.key if entry and not entry.key.startswith("tracking.") else ""
        if entry and entry.why and entry.same is None and not entry.special:
            continue  # it changes no result
        if key and key not in settings.values() and all(_fits(key, _value(cell)) for cell in values):
            settings[name] = key
        elif 1 < len(values) <= MOST_VALUES:
            settings[name] = name
        elif len(values) > 1:
            left_out.append(name)
    return settings, left_out


def _fits(key: str, value: Any) -> bool:
    return bool(key == "model.kind" and architecture(str(value))) or not problem_with(key, value)


def _factor(key: str, value: Any) -> dict[str, Any]:
    """Return what a cell sets; a name such as p16_h256_L6_a8 several keys, an empty cell nothing."""
    if value is None:
        return {}
    if key == "model.kind" and (parts := architecture(str(value))):
        return parts
    return {key: value_of(key, value) if "." in key else value}


def _value(cell: str) -> Any:
    """Return a cell as YAML reads it: a number, a flag, text; None for an empty one."""
    try:
        value = valued(yaml.safe_load(cell)) if cell.strip() else None
    except yaml.YAMLError:
        return cell
    return value if isinstance(value, int | float | str | list | None) else cell


def _number(cell: str) -> float | None:
    value = _value(cell)
    return float(value) if is_number(value) and math.isfinite(value) else None


def summary(table: RunTable) -> str:
    """Return the counts of a table: `94 runs: 27 finished, 67 failed (40 crashed, 27 cancelled)`."""
    states = Counter(row["state"] for row in table.rows)
    others = ", ".join(f"{count} {state}" for state, count in states.items() if state != "completed")
    return f"{group_counts(row['state'] for row in table.rows)}{f' ({others})' * bool(others)}"


def as_csv(table: RunTable) -> str:
    """Return a table in our words, which `read_run_table` reads, too."""
    about = [{"name": row["name"], "state": row["state"]} | row["factors"] | {SEED: row["seed"]} for row in table.rows]
    results = [row["scores"] | {"seconds": row["seconds"]} for row in table.rows]
    return csv_text([first | second for first, second in zip(about, results, strict=True)])
