"""What changed between two attempts at a run, its files, its code or its device, is noted."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harm import stop_at

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.shards import open_shard, read_labels
from specvit.data.splits import note_of_changes
from specvit.run.run import Result, run
from specvit.run_folder.folder import RunFolder
from specvit.training.device import hardware, resolve_device
from specvit.utils import provenance

SETTINGS = ("train.epochs=2", "train.threads=1")
HERE = hardware(resolve_device("auto"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["specvit train"])


def words(tiny: list[str], sets: Path, *overrides: str) -> list[str]:
    return [*tiny, f"data.root={sets}", *SETTINGS, *overrides]


def train(tiny: list[str], sets: Path, *overrides: str) -> Result:
    return run(build_config(compose(words(tiny, sets, *overrides))))


def notes_of(shown: str) -> list[str]:
    """Return the notes of changes; that so short a run learnt nothing is not one."""
    return [text for text in shown.splitlines() if text.startswith("note: ") and "it learnt nothing" not in text]


@pytest.mark.slow
def test_nothing_changed_means_no_note_and_a_rerun_notes_none(
    tiny: list[str], sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        stop_at(1, patched)
        stopped = train(tiny, sets)
    assert stopped.state == "preempted"
    assert train(tiny, sets).exit_code == 0
    assert notes_of(capsys.readouterr().out) == []
    ready = [attempt for attempt in RunFolder(stopped.folder, "").attempts() if attempt["event"] == "ready"]
    assert [attempt["made_by"] for attempt in ready] == [{**provenance.made_by(), **HERE}] * 2
    assert set(ready[0]["files"]) == {str(path.resolve()) for path in sets.rglob("dataset.h5")}
    assert all("changed" not in attempt for attempt in ready)
    os.utime(sets / "train_0" / "dataset.h5", (1_000_000_000, 1_000_000_000))
    train(tiny, sets, "train.rerun=true")
    assert notes_of(capsys.readouterr().out) == []


def test_several_changed_files_are_one_note_and_moved_ones_are_none() -> None:
    attempts: list[dict[str, Any]] = [
        {"time": "yesterday", "files": {"a": [1, 1], "b": [2, 2], "c": [3, 3]}},
        {"time": "today"},
    ]
    assert note_of_changes(attempts, {"a": [1, 1], "d": [9, 9]}) == ""
    assert "a and 1 more were changed or touched since yesterday" in note_of_changes(
        attempts, {"a": [1, 9], "b": [9, 2]}
    )
    assert note_of_changes([{"time": "today"}], {"a": [1, 1]}) == ""
    known = {"time": "tomorrow", "files": {"a": [1, 9]}}
    assert note_of_changes([*attempts, known], {"a": [1, 9]}) == ""


def test_a_checkpoint_without_a_code_digest_resumes_silently() -> None:
    assert provenance.changes({}, {"specvit": "1", "code": "a", "torch": "2"}) == []


def test_another_card_cuda_or_cudnn_is_noted_and_a_record_without_them_is_not() -> None:
    before = {"device": "A100 (sm_80, 108 multiprocessors)", "cuda": "12.8", "cudnn": "91002"}
    (note,) = provenance.changes(before, {**before, "device": "H100 (sm_90, 132 multiprocessors)"})
    assert note.startswith(
        "note: the device changed since this run's last checkpoint (A100 (sm_80, 108 multiprocessors"
    )
    found = provenance.changes(before, {**before, "cuda": "13.0", "cudnn": "92000"})
    assert [line.split(" changed")[0] for line in found] == ["note: CUDA", "note: cuDNN"]
    assert provenance.changes({"torch": "2"}, {**before, "torch": "2"}) == []
    assert len(provenance.changes(before, {"device": "cpu"})) == 1


def test_the_digest_is_of_names_and_contents_of_all_sources(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        shutil.rmtree(tmp_path / "code", ignore_errors=True)
        for name, text in files.items():
            path = tmp_path / "code" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".py").write_text(text)
        (tmp_path / "code" / "notes.txt").write_text(str(time.monotonic()))
        return provenance._digest(tmp_path / "code")

    one = digest(a="x = 1", part__b="y = 2")
    assert one == digest(part__b="y = 2", a="x = 1")
    others = [
        digest(a="x = 2", part__b="y = 2"),
        digest(a="x = 1", part__c="y = 2"),
        digest(a="x = 1y = 2", part__b=""),
    ]
    assert len({one, *others}) == 4


@pytest.mark.slow
def test_a_changed_label_is_a_new_run_that_names_the_old_one(tiny: list[str], sets: Path, capsys: Any) -> None:
    first = train(tiny, sets)
    path = sets / "train_0" / "dataset.h5"
    table = read_labels(open_shard(path))
    table.loc[50, "log_g"] += 0.25
    table.to_hdf(path, key="dataset/params", mode="a", format="table", index=False)
    assert notes_of(capsys.readouterr().out) == []
    second = train(tiny, sets)
    assert second.folder != first.folder
    words_ = f"{first.folder} has the same settings on other data (train labels differ); this is a new run"
    assert notes_of(capsys.readouterr().out) == [f"note: {words_}"]
    train(tiny, sets, "train.rerun=true")
    name = first.folder.name.rpartition("-")[0]
    train(tiny, sets, f"tracking.name={name}", "train.seed=7")
    assert notes_of(capsys.readouterr().out) == []


@pytest.mark.slow
def test_other_settings_or_another_size_of_the_data_are_no_change_of_it(
    tiny: list[str], sets: Path, capsys: Any
) -> None:
    for override in ("train.seed=1", "train.seed=2", "data.num_samples=96", "data.num_samples=100"):
        train(tiny, sets, "tracking.name=study", override)
    assert notes_of(capsys.readouterr().out) == []
