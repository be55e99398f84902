"""Where a run resumes, whatever happened to its files: an unusable checkpoint is set aside, never an error.

A run resumes from the newest checkpoint that is intact, belongs to the run, and whose epochs are all in
`metrics.jsonl`; the best weights must exist, too, or be those of another checkpoint. Otherwise it starts from the
beginning. Every draw is keyed by its step, so each way leads to the same numbers.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specvit.run_folder.folder import CHECKPOINTS, RunFolder
from specvit.training import checkpoint
from specvit.training.state import TrainState
from specvit.utils.errors import CheckpointError

ONLY_LAST = ("state", "model", "optimizer", "scaler")
LAST: checkpoint.Parts = {
    **dict.fromkeys(ONLY_LAST, (dict, list)),
    "state.step": int,
    "state.best_epoch": int,
}
"""What `last.ckpt` holds besides the constants; `best.ckpt` has `epoch`, `step` and `model` in their place."""


@dataclass(frozen=True)
class Start:
    """The content of the checkpoint to resume from, or None, and a note for the user if that is not the last one."""

    saved: dict[str, Any] | None
    note: str = ""


def find_start(folder: RunFolder, epoch_steps: int) -> Start:
    """Return where the run in `folder` resumes; sets unusable checkpoints aside and repairs `best.ckpt`.

    `epoch_steps` are its steps an epoch.
    """
    faults: list[str] = []
    usable = _usable(folder, epoch_steps, faults)
    newest = next(usable, None)
    if newest is not None:
        name, saved = newest
        state = TrainState.from_plain(saved["state"])
        if _has_best(folder, state, epoch_steps, faults) or _restore_best(folder, newest, usable, epoch_steps, faults):
            if name != CHECKPOINTS[0] and not faults:
                faults.append(f"{CHECKPOINTS[0]} is missing")
            return Start(saved, _note(faults, f"resuming from {name}, step {state.step}"))
    if not faults and folder.epochs_on_file():
        faults.append("there is no checkpoint")
    for name in CHECKPOINTS:  # a later start must not resume from what this one could not use
        folder.file(name).unlink(missing_ok=True)
    return Start(None, _note(faults, "starting from nothing, which leads to the same numbers"))


def faults_of_best(folder: RunFolder, state: TrainState, epoch_steps: int) -> str:
    """Return what is wrong with `best.ckpt` of a run that has ended with `state`, "" if nothing is; sets it aside."""
    faults: list[str] = []
    return "" if _has_best(folder, state, epoch_steps, faults) else "; ".join(faults)


def _usable(folder: RunFolder, epoch_steps: int, faults: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the checkpoints that a run can resume from, newest first."""
    on_file = folder.epochs_on_file()
    for name in CHECKPOINTS:
        content = _read(folder, name, LAST, faults)
        if content is None:
            continue
        missing = set(range(1, content["state"]["step"] // epoch_steps + 1)) - on_file
        if missing:
            faults.append(f"metrics.jsonl lacks epoch {min(missing)}, which {name} has behind it")
            continue
        yield name, content


def _has_best(folder: RunFolder, state: TrainState, epoch_steps: int, faults: list[str]) -> bool:
    """Return whether `best.ckpt` holds the best weights that `state` names.

    Later ones are valid, too: the run will reach that epoch again.
    """
    if state.best_epoch == 0:
        return True
    exists = folder.file("best.ckpt").exists()
    content = _read(folder, "best.ckpt", {"epoch": int, "model": dict}, faults)
    if content is None:
        faults += [] if exists else ["best.ckpt is missing"]
        return False
    if content["epoch"] == state.best_epoch or content["epoch"] > state.step // epoch_steps:
        return True
    faults.append(f"best.ckpt is of epoch {content['epoch']}, not {state.best_epoch}")
    return False


def _restore_best(
    folder: RunFolder,
    newest: tuple[str, dict[str, Any]],
    older: Iterator[tuple[str, dict[str, Any]]],
    epoch_steps: int,
    faults: list[str],
) -> bool:
    """Write `best.ckpt` again from a checkpoint of the end of the best epoch, if there is one."""
    best_epoch = newest[1]["state"]["best_epoch"]
    for name, content in (newest, *older):
        if content["state"]["step"] == best_epoch * epoch_steps:
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
