"""Lists of runs and of studies for the terminal, read from their folders and files alone."""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from specvit.config.build import flatten
from specvit.run_folder.folder import RunFolder, moment
from specvit.run_folder.identity import num_rows
from specvit.study.find import studies_in
from specvit.study.options import study_files
from specvit.study.results import Outcome, outcome_of, value_of
from specvit.study.store import StudyFolder
from specvit.study.trial_queue import group_counts
from specvit.utils.errors import SpecvitError
from specvit.utils.text import text_table

MAIN_METRICS = ("r2", "accuracy")
STARTED = "not started"
ROWS = {"train": "data.num_samples", "val": "data.val_samples", "test": "data.test_samples"}


def run_list(runs: list[RunFolder]) -> list[str]:
    """Return a table of runs, the latest last: state, scores, and the settings in which they differ; [] without runs.

    A setting that more than half of the runs share is left out; so is one that runs of other kinds of model lack.
    """
    settings = [_settings(run.about().get("identity") or {}) for run in runs]
    rows: list[tuple[float, list[str]]] = []
    for run, differing in zip(runs, _differing(settings), strict=True):
        status, outcome = run.status(), outcome_of(run)
        updated = moment(status.get("updated"))
        when = f"{datetime.fromtimestamp(updated):%Y-%m-%d %H:%M}" if updated else "-"
        scores = [_score(outcome, "val"), _score(outcome, "test")]
        name = run.path.name.removesuffix(f"-{run.run_id}")
        state = run.shown_state() or "-"
        rows.append((updated, [run.run_id, state, *scores, when, name, " ".join(differing)]))
    head = ["hash", "state", "val R²", "test R²", "updated", "run", "differs in"]
    return list(text_table([head, *(row for _, row in sorted(rows, key=lambda row: row[0]))])) if rows else []


def study_list(studies: Path) -> list[str]:
    """Return a table of the studies that can be run or have begun: runs, progress, question."""
    files, begun = study_files(), {study.name: study for study in studies_in(studies)}
    names = sorted({**files, **begun})
    rows = [[name, *(_begun(begun[name]) if name in begun else _to_run(files[name]))] for name in names]
    return list(text_table([["study", "runs", "state", "question"], *rows]))


def _begun(study: StudyFolder) -> list[str]:
    about = study.about()
    states = [study.state(trial) for trial in study.trials()]
    states += ["waiting"] * max(0, about["trials"] - len(states))
    cancelled = ", cancelled" if study.is_cancelled else ""
    return [str(len(states)), group_counts(states).partition(": ")[2] + cancelled, about.get("question") or "-"]


def _to_run(file: Path) -> list[str]:
    """Return a study's row by its file; points that are the same run count more than once until it is planned."""
    from specvit.study.grid import points_of
    from specvit.study.schema import read_definition

    try:
        study = read_definition(file)
        count = study.search.trials if study.search else len(points_of(study))
    except SpecvitError as fault:
        return ["-", "refused", str(fault)]
    return [str(count), STARTED, study.question or "-"]


def _score(outcome: Outcome, split: str) -> str:
    for metric in MAIN_METRICS:
        if (value := value_of(outcome, f"{split}_{metric}")) is not None:
            return f"{value:.3f}" if metric == "r2" else f"{value:.3f} {metric}"
    return "-"


def _differing(settings: list[dict[str, Any]]) -> list[list[str]]:
    """Return for each run the settings that at most half of the runs share, as overrides.

    Keys that other kinds of model lack are compared among runs of its kind, and are left out if all of them agree.
    """
    texts = [{key: _text(value) for key, value in one.items()} for one in settings]
    kinds = [one.get("model.kind", "vit") if one else "" for one in texts]
    keys: dict[str, set[str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for kind, one in zip(kinds, texts, strict=True):
        keys.setdefault(kind, set()).update(one)
        counts.update([*one.items(), *((kind, *pair) for pair in one.items())])

    def differs(kind: str, key: str, text: str) -> bool:
        if all(key in known for known in keys.values() if known):
            return counts[key, text] <= len(texts) / 2
        return counts[kind, key, text] <= kinds.count(kind) / 2

    return [[f"{k}={v}" for k, v in one.items() if differs(kind, k, v)] for kind, one in zip(kinds, texts, strict=True)]


def _settings(identity: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings, with the rows of its data as the keys that choose them."""
    settings = flatten(identity.get("config") or {})
    for split, part in (identity.get("data") or {}).items():
        settings[ROWS[split]] = num_rows(part)
    return settings


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
