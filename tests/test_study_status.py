"""A study's folder: claims that die with their process, what became of each trial, and what is news of it."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from handmade import at_work, ended, epochs, holder, make_run, mixed_study, run_of

from specvit.cluster.slots import LauncherConfig
from specvit.study import status
from specvit.study.driver import write
from specvit.study.request import StudyRequest, SweepOptions
from specvit.study.schema import definition_of
from specvit.study.status import StudyMonitor
from specvit.study.store import StudyFolder
from specvit.study.worker import note_missing_ends
from specvit.utils.errors import FolderError
from specvit.utils.files import write_json


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    monkeypatch.chdir(tmp_path)
    return mixed_study(tmp_path)


def states(study: StudyFolder) -> list[str]:
    return [study.state(trial) for trial in study.trials()]


# the folder


def test_a_study_keeps_its_key_and_its_start(study: StudyFolder) -> None:
    before = {**study.about(), "started": "long ago"}
    write_json(study.file("study.json"), before)
    study.create(kind="grid", trials=9)
    assert study.about() == {"format": 1, "key": before["key"], "started": "long ago", "kind": "grid", "trials": 9}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not a study"),
        ("{", "is not a study"),
        ("[1]", "is not a study"),
        ('{"format": 99}', "has format 99, this"),
    ],
)
def test_what_is_no_study_is_refused(text: str | None, words: str, study: StudyFolder) -> None:
    other = StudyFolder(study.path.parent / "other")
    other.path.mkdir()
    if text is not None:
        other.file("study.json").write_text(text)
    with pytest.raises(FolderError) as refusal:
        other.about()
    assert f"{other.path}: {words}" in str(refusal.value)
    assert ("the specvit that made it" if "format" in words else "toy") in str(refusal.value)


def test_where_there_is_no_study_yet_it_is_said_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="is not a study; start one with `specvit train sweeps=NAME`"):
        StudyFolder(tmp_path / "multirun" / "toy").about()


def test_trials_come_back_by_number_wherever_the_study_lies(study: StudyFolder, tmp_path: Path) -> None:
    (first, *_) = study.trials()
    study.write_trial(replace(first, number=10000))
    study.write_trial(replace(first, number=9999))
    assert [trial.number for trial in study.trials()] == [0, 1, 2, 3, 9999, 10000]
    assert study.trial(0) == first
    assert study.trial(4) is None
    study.remove_trials_from(3)
    assert [trial.number for trial in study.trials()] == [0, 1, 2]
    assert study.file("runs").joinpath(first.name, "summary.json").exists()  # a link
    (tmp_path / "moved").mkdir()
    for name in ("outputs", "multirun"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = StudyFolder(tmp_path / "moved" / "multirun" / "toy")
    assert run_of(moved, 0).state() == "completed"


def test_a_claim_dies_with_its_process(study: StudyFolder) -> None:
    with holder(study, 0, "claim") as child:
        assert (study.is_claimed(0), study.is_claimed(1), study.busy_slots()) == (True, False, [3])
        with study.claim(0) as mine, study.claim(1) as other:
            assert (mine, other) == (False, True)
        assert study.state(study.trials()[0]) == "running"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert (study.is_claimed(0), study.busy_slots()) == (False, [])
        with study.claim(0) as mine:
            assert mine


def test_a_state_is_the_runs_or_what_its_worker_saw(study: StudyFolder) -> None:
    assert states(study) == ["completed", "crashed", "waiting", "waiting"]
    ended(study, 3, "refused")
    run_of(study, 2).set_status("pruned")
    assert states(study) == ["completed", "crashed", "waiting", "refused"]  # another study pruned it
    ended(study, 2, "pruned")
    run_of(study, 1).set_status("completed")  # by a command outside of the study
    assert states(study) == ["completed", "completed", "pruned", "refused"]
    with at_work(run_of(study, 0)):
        assert states(study)[0] == "running"
    assert states(study)[0] == "waiting"  # a rerun that was killed: whether a run is done, its own folder says


def test_another_try_is_asked_for_and_taken(study: StudyFolder) -> None:
    study.request_retry(study.trials()[1])
    assert (study.requested_retries(), study.retry_requested(1), study.retry_requested(0)) == ([1], True, False)
    assert states(study)[1] == "waiting"
    study.clear_retry(1)
    study.clear_retry(1)
    assert (study.requested_retries(), states(study)[1]) == ([], "crashed")


def test_a_cancel_mark_is_taken_once(study: StudyFolder) -> None:
    study.request_cancel(2)
    assert (study.clear_cancel(1), study.clear_cancel(2), study.clear_cancel(2)) == (False, True, False)


def test_an_end_that_a_killed_worker_wrote_but_did_not_note_is_noted_once_by_the_next(study: StudyFolder) -> None:
    trial = study.trial(1)
    assert trial is not None
    study.write_trial(replace(trial, end=None))
    study.log_event("begins", trial=1, slot=0, job="7_0")
    note_missing_ends(study)
    assert not study.events("ends", 0), "it may still go on"
    study.write_trial(replace(trial, end={"state": "completed", "seconds": 2.5, "slot": 0}))
    with study.claim(1):
        note_missing_ends(study)
        assert not study.events("ends", 0), "its own worker is about to note it"
    note_missing_ends(study)
    note_missing_ends(study)
    (end,) = study.events("ends", 0)
    assert (end["trial"], end["state"], end["seconds"], end["job"]) == (1, "completed", 2.5, "7_0")


def test_the_diary_has_one_line_an_event(study: StudyFolder) -> None:
    study.log_event("begins", trial=1, slot=0)
    study.log_event("ends", trial=1, slot=0, state="crashed")
    rows = [json.loads(line) for line in study.file("events.jsonl").read_text().splitlines()]
    assert [(row["event"], row["trial"]) for row in rows] == [("begins", 1), ("ends", 1)]


# news


def news(watching: StudyMonitor, capsys: pytest.CaptureFixture[str]) -> list[str]:
    watching.print_news()
    return capsys.readouterr().out.splitlines()


def test_each_end_is_news_once_and_a_retry_again(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    watching = StudyMonitor(study)
    assert news(watching, capsys) == []
    run_of(study, 2).set_status("completed")
    (run_of(study, 2).file("summary.json")).write_text('{"test_r2": 0.75}')
    assert news(watching, capsys) == []  # its worker has not told
    ended(study, 2, "completed")
    assert news(watching, capsys) == ["[3/4] completed     1:15  toy-aaaa0002  test_r2 0.75"]
    assert news(watching, capsys) == []
    study.request_retry(study.trials()[1])
    assert [news(watching, capsys) for _ in range(4)] == [[]] * 4  # it waits
    study.clear_retry(1)
    ended(study, 1, "crashed", cause="it broke again", seconds=3700.0)
    assert news(watching, capsys) == ["[3/4] crashed       1:01:40  toy-aaaa0001  it broke again"]
    trial = study.trials()[1]
    study.write_trial(replace(trial, end=None))
    assert news(watching, capsys) == []
    ended(study, 3, "refused")
    assert news(watching, capsys)[0].startswith("[3/4] refused ")


def test_records_that_are_settled_are_not_read_again(
    study: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    judged: list[int] = []
    parse, state = StudyFolder._parse, StudyFolder.state
    monkeypatch.setattr(StudyFolder, "_parse", lambda self, plain: parsed.append(plain["number"]) or parse(self, plain))
    monkeypatch.setattr(StudyFolder, "state", lambda self, trial: judged.append(trial.number) or state(self, trial))
    watching = StudyMonitor(study)
    news(watching, capsys)
    assert parsed == [0, 1, 2, 3]
    judged.clear()
    news(watching, capsys)
    assert (parsed[4:], judged) == ([], [2, 3])  # 0 has completed, 1 has crashed
    ended(study, 1, "crashed", cause="another one")
    assert "another one" in news(watching, capsys)[0]


def test_a_record_of_a_newer_version_may_hold_more(study: StudyFolder) -> None:
    file, before = study.file("trials") / "0001.json", study.trial(1)
    write_json(file, {**json.loads(file.read_text()), "priority": 3})
    assert study.trial(1) == before


@pytest.mark.parametrize(("of_file", "typed", "minutes"), [(None, None, 2), (6, None, 6), (6, 3.0, 3)])
def test_the_first_verdict_waits_for_the_minutes_of_the_study(
    of_file: int | None,
    typed: float | None,
    minutes: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "grids: [{}]" + (f"\nhealth_minutes: {of_file}" if of_file else "")
    defined = definition_of(yaml.safe_load(text), "toy", where="here")
    options = SweepOptions(health_minutes=typed)
    request = StudyRequest(defined, {}, options, LauncherConfig(), ())
    made = mixed_study(tmp_path)
    write(made, request, made.trials())
    now = [1000.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    watching, run = StudyMonitor(made), run_of(made, 2)
    with run.claimed():
        run.set_status("running", pid=os.getpid(), host=os.uname().nodename)
        make_run(run.path, rows=epochs(train_loss=[None]))
        said = []
        for seconds in (0, 60 * minutes - 1, 2):
            now[0] += seconds
            said.append(news(watching, capsys))
    assert said == [[], [], [f"{run.path.name}: the loss is not finite"]]


def test_a_verdict_is_given_after_a_while_and_when_it_changes(
    study: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    watching, run = StudyMonitor(study), run_of(study, 2)

    def later(seconds: float, losses: list[float | None]) -> list[str]:
        now[0] += seconds
        make_run(run.path, rows=epochs(train_loss=losses))
        return news(watching, capsys)

    with run.claimed():
        run.set_status("running", pid=os.getpid(), host=os.uname().nodename)
        said = [
            later(0.0, [None]),
            later(119.0, [None]),
            later(2.0, [None]),
            later(20.0, [None, None]),
            later(20.0, [1.0, 0.5]),
            later(20.0, [1.0, 0.5, 0.4]),
            later(20.0, [1.0] * 5),
            later(20.0, [1.0] * 6),
            later(5.0, [None]),
        ]
    name = run.path.name
    expected = [[], [], [f"{name}: the loss is not finite"], [], [f"{name}: healthy"], []]
    assert said == [*expected, [f"{name}: the training loss has not fallen in 5 validations"], [], []]
