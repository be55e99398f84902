"""Where a run resumes, whatever happened to its files: an unusable checkpoint is set aside, never an error.

A run resumes from the newest checkpoint that is intact, belongs to the run, and whose validations are all in
`metrics.jsonl`; the best weights must exist, too, or be those of another checkpoint. Otherwise it starts from the
beginning. Every draw is keyed by its step, so each way leads to the same numbers.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specvit.run_folder.folder import CHECKPOINTS, RunFolder
from specvit.training import checkpoint
from specvit.training.schedule import Rhythm
from specvit.training.state import TrainState
from specvit.utils.errors import CheckpointError

ONLY_LAST = ("state", "model", "optimizer", "scaler")
LAST: checkpoint.Parts = {
    **dict.fromkeys(ONLY_LAST, (dict, list)),
    "state.step": int,
    "state.best_epoch": checkpoint.EPOCH,
}
"""What `last.ckpt` holds besides the constants; `best.ckpt` has `epoch`, `step` and `model` in their place."""


@dataclass(frozen=True)
class Start:
    """The content of the checkpoint to resume from, or None, and a note for the user if that is not the last one."""

    saved: dict[str, Any] | None
    note: str = ""


def find_start(folder: RunFolder, rhythm: Rhythm) -> Start:
    """Return where the run in `folder` resumes; sets unusable checkpoints aside and repairs `best.ckpt`.

    `rhythm` says when it validates.
    """
    faults: list[str] = []
    usable = _usable(folder, rhythm, faults)
    newest = next(usable, None)
    if newest is not None:
        name, saved = newest
        state = TrainState.from_plain(saved["state"])
        if _has_best(folder, state, rhythm, faults) or _restore_best(folder, newest, usable, rhythm, faults):
            if name != CHECKPOINTS[0] and not faults:
                faults.append(f"{CHECKPOINTS[0]} is missing")
            return Start(saved, _note(faults, f"resuming from {name}, step {state.step}"))
    if not faults and folder.steps_on_file():
        faults.append("there is no checkpoint")
    for name in CHECKPOINTS:  # a later start must not resume from what this one could not use
        folder.file(name).unlink(missing_ok=True)
    return Start(None, _note(faults, "starting from nothing, which leads to the same numbers"))


def faults_of_best(folder: RunFolder, state: TrainState, rhythm: Rhythm) -> str:
    """Return what is wrong with `best.ckpt` of a run that has ended with `state`, "" if nothing is; sets it aside."""
    faults: list[str] = []
    return "" if _has_best(folder, state, rhythm, faults) else "; ".join(faults)


def _usable(folder: RunFolder, rhythm: Rhythm, faults: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the checkpoints that a run can resume from, newest first."""
    on_file = folder.steps_on_file()
    for name in CHECKPOINTS:
        content = _read(folder, name, LAST, faults)
        if content is None:
            continue
        if missing := rhythm.evaluate.until(content["state"]["step"]) - on_file:
            faults.append(f"metrics.jsonl lacks epoch {rhythm.epoch(min(missing))}, which {name} has behind it")
            continue
        yield name, content


def _has_best(folder: RunFolder, state: TrainState, rhythm: Rhythm, faults: list[str]) -> bool:
    """Return whether `best.ckpt` holds the best weights that `state` names.

    Later ones are valid, too: the run will reach that validation again.
    """
    if state.best_epoch == 0:
        return True
    exists = folder.file("best.ckpt").exists()
    content = _read(folder, "best.ckpt", {"epoch": checkpoint.EPOCH, "model": dict}, faults)
    if content is None:
        faults += [] if exists else ["best.ckpt is missing"]
        return False
    if content["epoch"] == state.best_epoch or content["epoch"] > rhythm.epoch(state.step):
        return True
    faults.append(f"best.ckpt is of epoch {content['epoch']}, not {state.best_epoch}")
    return False


def _restore_best(
    folder: RunFolder,
    newest: tuple[str, dict[str, Any]],
    older: Iterator[tuple[str, dict[str, Any]]],
    rhythm: Rhythm,
    faults: list[str],
) -> bool:
    """Write `best.ckpt` again from a checkpoint of the same step, if there is one."""
    best_epoch = newest[1]["state"]["best_epoch"]
    for name, content in (newest, *older):
        if rhythm.epoch(content["state"]["step"]) == best_epoch:
            constants = {key: value for key, value in content.items() if key not in ONLY_LAST}
            facts = {"epoch": best_epoch, "step": content["state"]["step"], "model": content["model"]}
            checkpoint.save(folder.file("best.ckpt"), {**constants, **facts})
            faults.append(f"it is written again from {name}")
            return True
    return False


def _read(folder: RunFolder, name: str, parts: checkpoint.Parts, faults: list[str]) -> dict[str, Any] | None:
    """Return a checkpoint of this run; one that cannot be used is set aside and becomes a fault."""
    path = folder.file(name)
    if not path.exists():
        return None
    try:
        content = checkpoint.load(path)
        if content.get("run_id") != folder.run_id:
            raise CheckpointError(f"belongs to run {content.get('run_id')}")
        checkpoint.check_parts(content, parts)
    except CheckpointError as problem:
        os.replace(path, path.with_name(f"{name}.damaged"))
        faults.append(f"{name} {problem.what} and is set aside as {name}.damaged")
        return None
    return content


def _note(faults: list[str], outcome: str) -> str:
    return f"note: {'; '.join(faults)}; {outcome}" if faults else ""
