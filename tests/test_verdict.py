"""One verdict on how a run ended: by its best epoch, and by what its loss came to."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from specvit.run_folder.folder import RunFolder
from specvit.run_folder.verdict import LEARNT_R2, verdict

NAN = math.nan


def epochs(val_r2: list[Any] | None, train_loss: list[Any], **more: list[Any]) -> list[dict[str, Any]]:
    """Return rows of a network's epochs."""
    columns = {"train_loss": train_loss, **({} if val_r2 is None else {"val_r2": val_r2}), **more}
    return [
        {"epoch": n + 1, "step": 10 * (n + 1), "lr": 0.1, **{name: values[n] for name, values in columns.items()}}
        for n in range(len(train_loss))
    ]


@pytest.mark.parametrize(
    ("rows", "state", "cause"),
    [
        (epochs([0.1, 0.8, 0.7], [0.9, 0.3, 0.2]), "completed", ""),
        (epochs([0.1, 0.8, 0.01], [0.9, 0.3, 1.0]), "completed", "collapsed: val R² was 0.8 in epoch 2 and 0.01 in"),
        (epochs([0.1, 0.8, -50.0], [0.9, 0.3, 60.0]), "completed", "collapsed"),
        (epochs([0.1, 0.8, NAN], [0.9, 0.3, None]), "completed", "0.8 in epoch 2 and not finite in the last (3)"),
        (epochs([0.0, LEARNT_R2, -0.1], [1.0, 1.0, 1.9]), "plateau", "val R² was 0.02 at best, not above 0.02"),
        (epochs([0.0, LEARNT_R2 + 1e-9, -0.1], [1.0, 1.0, 1.0]), "completed", "collapsed"),
        (epochs([0.0, -0.5], [1.0, 2.1]), "diverged", "loss was 1 at first and 2.1 at the end (epoch 2)"),
        (epochs([-60.0, -49.0], [5000.0, 4281.0]), "diverged", "val R² is -49 and the training loss 4281"),
        (epochs([-1.1], [2.2]), "diverged", "val R² was -1.1 at best"),
        (epochs([-1.1], [2.2], first_step_loss=[1.0]), "diverged", "the training loss 2.2 at the end (epoch 1)"),
        (epochs([-9.0, -8.0], [10.0, 9.0], first_step_loss=[10.5, None]), "plateau", "-8 at best"),  # label_norm=none
        (epochs([0.0, 0.0], [1.0, NAN]), "diverged", "the training loss at the end (epoch 2) is not finite"),
        (epochs([0.0, None], [1.0, 1.0], val_loss=[1.0, None]), "diverged", "the validation loss at the end"),
        (epochs([None, None], [1.0, 0.5]), "completed", ""),  # a label that is the same in all validation rows
        (epochs([0.0, 0.0], [1.0, 0.5], val_r2_T_eff=[0.1, 0.9]), "completed", ""),  # it has learnt the other label
        (epochs(None, [1.0, 0.5], val_accuracy=[0.5, 0.9]), "completed", ""),
        (epochs(None, [1.0, 1.0], val_accuracy=[0.5, 0.5]), "completed", ""),
        (epochs(None, [1.0, 5.0], val_accuracy=[0.5, 0.5]), "diverged", "5 at the end (epoch 2)"),
        (epochs(None, [1.0, 0.1, 5.0], val_accuracy=[0.5, 0.9, 0.5]), "completed", ""),
        (epochs([0.0, 0.0], [-6.0, -6.7], val_nll=[0.1, 0.1]), "plateau", "0 at best"),  # minus a log-likelihood
        (epochs([0.0, 0.0], [0.1, 0.9], val_nll=[0.1, 0.1]), "plateau", "0 at best"),
        (epochs([0.0, -3.0], [-6.0, -4.9], val_nll=[0.1, 9.0]), "diverged", "loss was -6 at first and -4.9 at the end"),
        (epochs([-1.1], [2.5], val_nll=[9.0], first_step_loss=[1.4]), "diverged", "the training loss 2.5 at the end"),
        (epochs([-1.1], [2.2], val_nll=[9.0], first_step_loss=[1.4]), "plateau", "-1.1 at best"),
        ([{"epoch": 1, "step": 1, "val_loss": 2.1, "val_r2": -1.1}], "plateau", "-1.1 at best"),  # templates
        ([{"epoch": 1, "step": 1, "train_loss": 0.1, "val_r2": -1.1}], "plateau", "-1.1 at best"),  # ridge
        ([], "completed", ""),
    ],
)
def test_the_best_epoch_decides_and_a_loss_far_above_the_first_is_an_explosion(
    rows: list[dict[str, Any]], state: str, cause: str
) -> None:
    found = verdict("completed", rows)
    assert found.state == state and cause in found.cause and bool(cause) == bool(found.cause)
    early = verdict("early_stopped", rows)
    assert early.state == ("early_stopped" if state == "completed" else state) and early.cause == found.cause
    assert verdict("plateau", rows) == (found if rows else verdict("plateau", []))


@pytest.mark.parametrize("state", ["preempted", "pruned", "crashed", "running", "lost", ""])
def test_a_run_that_has_not_come_to_its_end_gets_no_verdict(state: str) -> None:
    assert verdict(state, epochs([0.0, -0.5], [1.0, 2.1])).state == state


@pytest.mark.parametrize(
    ("rows", "state", "remedy"),
    [
        (epochs([0.1, 0.8, 0.0], [0.9, 0.3, 1.0]), "completed", ""),
        (epochs([0.0, -9.0], [1.0, 9.0]), "diverged", "try a quarter of its opt.lr"),
        (epochs([0.0, 0.0], [1.0, 1.0]), "plateau", "try opt.lr=1"),
    ],
)
def test_a_plateau_of_an_older_version_is_judged_anew_wherever_it_is_read(
    tmp_path: Path, rows: list[dict[str, Any]], state: str, remedy: str
) -> None:
    run = RunFolder(tmp_path, "")
    run.file("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.set_status("plateau", cause="", remedy="try opt.lr=1")
    assert (run.state(), run.status()["remedy"]) == (state, remedy)
    assert run.status()["cause"] == verdict("completed", rows).cause != ""
    run.file("status.json").write_text("{")  # damaged: the other records speak
    run.file("summary.json").write_text(json.dumps({"state": "plateau"}))
    assert run.state() == state
