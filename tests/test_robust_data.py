"""Data that is no number, changes, vanishes or is locked: each is named, and none is mistaken for something else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import rewrite_chunked
from mounts import read_only
from whole_runs import assert_same_run, only_run

from specvit import provenance
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folder import RunFolder
from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data import finite
from specvit.data.finite import check_rows, check_view
from specvit.data.noise import fit_flux_norm
from specvit.data.resident import Store
from specvit.data.shards import open_shard, read_labels
from specvit.data.stamps import note_of_changes
from specvit.data.views import Spectra, open_spectra
from specvit.engine import checkpoint
from specvit.errors import DataError
from specvit.quantities import ERROR, FLUX
from specvit.run import Result, run
from specvit.tracking import files as trackers
from specvit.tracking.files import StatusTracker

SETTINGS = ("train.epochs=4", "train.threads=1")
CPU = torch.device("cpu")
SPOILT: dict[str, tuple[str, float, str, str]] = {
    "flux NaN": (FLUX, np.nan, "float32", "flux is not finite"),
    "flux inf": (FLUX, np.inf, "float32", "flux is not finite"),
    "flux -inf": (FLUX, -np.inf, "float32", "flux is not finite"),
    "error NaN": (ERROR, np.nan, "float32", "error is not finite"),
    "error inf": (ERROR, np.inf, "float32", "error is not finite"),
    "error -inf": (ERROR, -np.inf, "float32", "error is not finite"),
    "error negative": (ERROR, -1e-3, "float32", "error is negative"),
    "flux beyond float16": (FLUX, 7e4, "float16", "flux 7e+04 does not fit into float16"),
    "error beyond float16": (ERROR, 1e5, "float16", "error 1e+05 does not fit into float16"),
}
HARMLESS: dict[str, tuple[str, float, str]] = {
    "flux negative": (FLUX, -3.0, "float32"),
    "flux very negative": (FLUX, -1e30, "float16"),
    "flux large": (FLUX, 7e4, "float32"),
    "flux at the end of float16": (FLUX, 65504.0, "float16"),
    "error zero": (ERROR, 0.0, "float32"),
}


def spoil(path: Path, name: str, row: int, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][row, 100] = value


@pytest.fixture
def sets(toy_sets: Path, tmp_path: Path) -> Path:
    """Return a copy of the toy sets that may be spoilt."""
    return Path(shutil.copytree(toy_sets, tmp_path / "sets"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["specvit train"])


def words(tiny: list[str], sets: Path, *overrides: str) -> list[str]:
    return [*tiny, f"data.root={sets}", *SETTINGS, *overrides]


def train(tiny: list[str], sets: Path, *overrides: str) -> Result:
    return run(build_config(compose(words(tiny, sets, *overrides))))


# rows that are no numbers


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_row_is_refused_by_file_and_row_wherever_rows_come_out(case: str, chunked: bool, sets: Path) -> None:
    name, value, storage, what = SPOILT[case]
    spoil(sets / "train_1" / "dataset.h5", name, 17, value)
    paths = [sets / "train_0" / "dataset.h5", sets / "train_1" / "dataset.h5"]
    if chunked:
        rewrite_chunked(paths[1])
    view, data = open_spectra(paths, -1), DataConfig(storage=storage, resident="never")
    sentence = f"{paths[1]} row 17: {what}"
    store = Store(view, data, CPU)
    index_B = np.array([3, 112, 113, 5])  # row 17 of the second file, whose rows start at 96
    for gather in (store.gather, store.host, lambda index: check_rows(view, index, *view.gather(index), storage)):
        with pytest.raises(DataError) as refusal:
            gather(index_B)
        assert sentence in str(refusal.value)
    store.gather(np.array([3, 112, 5]))
    with pytest.raises(DataError, match="row 17"):
        check_view(view, storage)
    remedy = "set data.storage=float32" if storage == "float16" else f"`specvit data inspect {paths[1]}` lists all"
    assert remedy in str(refusal.value)
    if storage == "float32":
        with pytest.raises(DataError, match="row 17"):
            fit_flux_norm(view, "standard", NoiseConfig())
    if chunked:
        with pytest.raises(DataError, match="row 17"):
            Store(view, DataConfig(storage=storage), CPU)


@pytest.mark.parametrize("case", HARMLESS)
def test_a_number_that_means_no_harm_passes(case: str, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_refuse_first", lambda *_: pytest.fail("a second pass"))
    name, value, storage = HARMLESS[case]
    spoil(sets / "val" / "dataset.h5", name, 17, value)
    view = open_spectra([sets / "val" / "dataset.h5"], -1)
    check_view(view, storage)
    assert torch.isfinite(Store(view, DataConfig(storage=storage), CPU).gather(np.array([17]))[0]).all()


def test_the_first_of_several_spoilt_rows_is_named(sets: Path) -> None:
    path = sets / "val" / "dataset.h5"
    for row in (40, 21, 30):
        spoil(path, ERROR, row, np.nan)
    with pytest.raises(DataError, match="row 21: error"):
        check_view(open_spectra([path], -1), "float32")


def test_good_rows_are_looked_through_once(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_refuse_first", lambda *_: pytest.fail("a second pass"))
    check_view(spectra, "float16")


@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("where", ["statistics", "steps"])
def test_a_spoilt_training_row_is_no_divergence_and_no_skipped_step(
    precision: str, where: str, tiny: list[str], sets: Path, capsys: Any
) -> None:
    path = sets / "train_1" / "dataset.h5"
    spoil(path, FLUX, 61, np.nan)
    norm = "standard" if where == "statistics" else "none"
    result = train(tiny, sets, f"train.precision={precision}", f"data.flux_norm={norm}")
    status = RunFolder(result.folder, "").status()
    assert (result.state, result.exit_code, status["traceback"]) == ("crashed", 1, "")
    inspect = f"`specvit data inspect {path}` lists all"
    assert status["cause"] == f"{path} row 61: flux is not finite; mend or remove that row; {inspect}."
    assert "Traceback" not in capsys.readouterr().out
    spoil(path, FLUX, 61, 0.9)
    assert train(tiny, sets, f"train.precision={precision}", f"data.flux_norm={norm}").exit_code == 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_spoilt_row_of_the_other_sets_is_refused_before_there_is_a_folder(
    split: str, tiny: list[str], sets: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    path = sets / split / "dataset.h5"
    spoil(path, FLUX, 47, np.nan)
    assert f"{path} row 47: flux is not finite" in refused(words(tiny, sets))


def test_rows_of_the_other_sets_are_looked_through_at_the_start_only(
    tiny: list[str], sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specvit import pipeline

    looked: list[int] = []
    monkeypatch.setattr(pipeline, "check_view", lambda view, storage: looked.append(len(view)))
    with monkeypatch.context() as patched:
        stop_at(2, patched)
        assert train(tiny, sets).state == "preempted"
    assert looked == [48, 64]
    assert train(tiny, sets).exit_code == 0
    assert train(tiny, sets).exit_code == 0
    assert looked == [48, 64]
    assert train(tiny, sets, "train.rerun=true").exit_code == 0
    assert looked == [48, 64, 48, 64]


def test_a_test_row_that_is_spoilt_on_the_way_is_named_at_the_test(tiny: list[str], sets: Path, monkeypatch) -> None:
    real = StatusTracker.metrics

    def metrics(self: StatusTracker, row: dict[str, Any]) -> None:
        real(self, row)
        spoil(sets / "test" / "dataset.h5", ERROR, 5, np.nan)

    monkeypatch.setattr(StatusTracker, "metrics", metrics)
    result = train(tiny, sets)
    assert result.state == "crashed"
    assert "row 5: error is not finite" in RunFolder(result.folder, "").status()["cause"]


def test_built_in_rows_are_not_looked_through_at_the_start(tiny: list[str], sets: Path, monkeypatch) -> None:
    from specvit import pipeline
    from specvit.data.splits import open_splits

    config = build_config(compose(words(tiny, sets)))
    splits = open_splits(config, lambda *_: None)
    builtin = build_config(compose(["data=builtin", f"data.val_path={sets / 'val' / 'dataset.h5'}"]))
    looked: list[Spectra] = []
    monkeypatch.setattr(pipeline, "check_view", lambda view, storage: looked.append(view))
    pipeline.check_evaluation_rows(builtin, splits)
    assert looked == [splits.val]


def stop_at(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a signal come at the end of an epoch."""
    real = StatusTracker.metrics

    def metrics(self: StatusTracker, row: dict[str, Any]) -> None:
        real(self, row)
        if row["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StatusTracker, "metrics", metrics)


# what changed between two attempts


@pytest.fixture
def stopped(tiny: list[str], sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Result:
    """Return a run that was stopped at the end of its second epoch."""
    with monkeypatch.context() as patched:
        stop_at(2, patched)
        result = train(tiny, sets)
    assert result.state == "preempted"
    assert "note:" not in capsys.readouterr().out
    return result


def notes_of(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("note: ")]


def test_nothing_changed_means_no_note(stopped: Result, tiny: list[str], sets: Path, capsys: Any) -> None:
    assert train(tiny, sets).exit_code == 0
    assert notes_of(capsys.readouterr().out) == []
    ready = [attempt for attempt in RunFolder(stopped.folder, "").attempts() if attempt["event"] == "ready"]
    assert [attempt["made_by"] for attempt in ready] == [provenance.made_by()] * 2
    assert set(ready[0]["files"]) == {str(path.resolve()) for path in sets.rglob("dataset.h5")}
    assert all("changed" not in attempt for attempt in ready)


@pytest.mark.parametrize("change", ["touched", "changed"])
def test_a_file_that_was_touched_is_noted_when_a_run_goes_on(
    change: str, stopped: Result, tiny: list[str], sets: Path, capsys: Any
) -> None:
    path = sets / "train_0" / "dataset.h5"
    if change == "changed":
        spoil(path, FLUX, 37, 0.5)  # no row that the manifest samples
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert train(tiny, sets).folder == stopped.folder
    (note,) = notes_of(capsys.readouterr().out)
    since = RunFolder(stopped.folder, "").attempts()[1]["time"]
    ending = "labels and sampled spectra are the same. If spectra were changed, train.rerun=true"
    assert note == f"note: {path} was changed or touched since {since}; {ending}"
    assert RunFolder(stopped.folder, "").attempts()[-2]["changed"] == [note]


def test_a_rerun_notes_no_change(stopped: Result, tiny: list[str], sets: Path, capsys: Any) -> None:
    train(tiny, sets)
    os.utime(sets / "train_0" / "dataset.h5", (1_000_000_000, 1_000_000_000))
    capsys.readouterr()
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


@pytest.mark.parametrize(
    ("changed", "text"),
    [("code", "specvit's code changed since this run's last checkpoint (0123 → "), ("torch", "torch changed since")],
)
def test_other_code_is_noted_kept_on_file_and_goes_on(
    changed: str, text: str, stopped: Result, tiny: list[str], sets: Path, capsys: Any
) -> None:
    path = stopped.folder / "last.ckpt"
    content = torch.load(path)
    assert content["made_by"] == provenance.made_by()
    content["made_by"] = {**content["made_by"], changed: "0123"}
    torch.save(content, path)
    assert train(tiny, sets).exit_code == 0
    (note,) = notes_of(capsys.readouterr().out)
    assert note.startswith(f"note: {text}")
    assert note.endswith("its last bits may differ from an unbroken run")
    assert RunFolder(stopped.folder, "").attempts()[-2]["changed"] == [note]


def test_a_checkpoint_that_does_not_know_its_code_goes_on_silently() -> None:
    assert provenance.changes({}, {"specvit": "1", "code": "a", "torch": "2"}) == []


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
    assert notes_of(capsys.readouterr().out) == []


def test_other_settings_or_another_size_of_the_data_are_no_change_of_it(
    tiny: list[str], sets: Path, capsys: Any
) -> None:
    for override in ("train.seed=1", "train.seed=2", "data.num_samples=96", "data.num_samples=100"):
        train(tiny, sets, "tracking.name=study", override)
    assert notes_of(capsys.readouterr().out) == []


# files that are locked, cut off, or cannot be read


WRITER = """
import sys, time, h5py
file = h5py.File(sys.argv[1], "r+")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(sets: Path) -> Any:
    """Return the path of a file that another process has open for writing."""
    path = sets / "train_1" / "dataset.h5"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    yield path
    child.kill()
    child.communicate()


def test_a_file_that_is_being_written_is_one_sentence(
    writer: Path, tiny: list[str], sets: Path, refused: Callable[[list[str]], str]
) -> None:
    sentence = refused(words(tiny, sets))
    assert sentence.startswith(f"specvit: {writer}: is being written by another process; wait for it")
    assert "HDF5_USE_FILE_LOCKING=FALSE" in sentence


def test_labels_of_a_file_that_is_being_written_are_one_sentence(sets: Path, writer: Path) -> None:
    shard = open_shard(sets / "train_0" / "dataset.h5")
    locked = type(shard)(path=writer, flux=shard.flux, error=shard.error, wave_P=shard.wave_P)
    with pytest.raises(DataError, match="is being written by another process"):
        read_labels(locked)


def test_a_chunked_file_that_is_locked_later_is_one_sentence(sets: Path) -> None:
    path = sets / "train_1" / "dataset.h5"
    rewrite_chunked(path)
    view = open_spectra([path], -1)
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(DataError, match=r"train_1/dataset\.h5: is being written"):
            view.gather(np.arange(3))
    finally:
        child.kill()
        child.communicate()


def test_a_mapped_file_that_was_cut_off_before_it_was_mapped_is_one_sentence(sets: Path) -> None:
    path = sets / "train_1" / "dataset.h5"
    view = open_spectra([path], -1)
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(DataError, match=r"train_1/dataset\.h5: is truncated"):
        view.gather(np.arange(3))


def test_a_chunk_that_cannot_be_read_names_its_file(sets: Path) -> None:
    path = sets / "train_1" / "dataset.h5"
    rewrite_chunked(path)
    view = open_spectra([path], -1)
    view.gather(np.arange(1))
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(DataError) as refusal:
        view.gather(np.arange(90))
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_a_file_that_is_cut_off_while_it_is_read_leaves_a_lost_run_and_is_refused_then(
    tiny: list[str], sets: Path, tmp_path: Path
) -> None:
    path = sets / "train_1" / "dataset.h5"
    whole = path.read_bytes()
    command = [sys.executable, "-m", "specvit.train"]
    command += words(tiny, sets, "train.epochs=400", f"tracking.folder={tmp_path / 'outputs'}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            break
    os.truncate(path, 8192)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGBUS
    folder = RunFolder(only_run(tmp_path / "outputs"), "")
    assert folder.state() == "lost"
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    assert again.stderr == f"specvit: {path}: is truncated; copy or make it again.\n"
    assert folder.state() == "lost"
    path.write_bytes(whole)
    assert checkpoint.load(folder.file("last.ckpt"))["state"]["step"] >= 12


def test_a_run_on_read_only_data_goes_on_there_too(
    stopped: Result, tiny: list[str], sets: Path, tmp_path: Path
) -> None:
    unbroken = train(tiny, sets, f"tracking.folder={tmp_path / 'unbroken'}")
    with read_only(sets):
        assert train(tiny, sets).folder == stopped.folder
    assert_same_run(stopped.folder, unbroken.folder)


# clocks


def test_a_forecast_survives_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = {"monotonic": 100.0, "time": 1_700_000_000.0}
    monkeypatch.setattr(trackers.time, "monotonic", lambda: moments["monotonic"])
    monkeypatch.setattr(trackers.time, "time", lambda: moments["time"])
    folder = RunFolder(tmp_path, "")
    status = StatusTracker(folder, start_step=10, total_steps=110)
    moments["monotonic"] += 50.0
    moments["time"] -= 86_400.0  # the clock is set back by a day
    status.metrics({"step": 60, "epoch": 6, "val_loss": 1.0})
    forecast = time.mktime(time.strptime(folder.status()["forecast"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert forecast == moments["time"] + 50.0
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 60
