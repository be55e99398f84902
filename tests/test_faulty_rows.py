"""Rows that are not finite, and files that are locked or cut off: each is named wherever rows are read."""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import rewrite_chunked
from faults import by_day
from harm import spoil, stop_at
from processes import ready_process

from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data import validate
from specvit.data.batches import SpectraStore
from specvit.data.noise import fit_flux_norm
from specvit.data.shards import open_shard, read_labels
from specvit.data.splits import open_splits
from specvit.data.validate import check_rows, check_view
from specvit.data.views import Spectra, open_spectra
from specvit.run import train_network
from specvit.run.run import Result, run
from specvit.run_folder.folder import RunFolder
from specvit.tracking.metric_files import StatusTracker
from specvit.utils.errors import DataError
from specvit.utils.quantities import ERROR, FLUX

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


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["specvit train"])


def words(tiny: list[str], sets: Path, *overrides: str) -> list[str]:
    return [*tiny, f"data.root={sets}", *SETTINGS, *overrides]


def train(tiny: list[str], sets: Path, *overrides: str) -> Result:
    return run(build_config(compose(words(tiny, sets, *overrides))))


# rows that are not finite


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
    store = SpectraStore(view, data, CPU)
    index_B = np.array([3, 112, 113, 5])  # row 17 of the second file, whose rows start at 96
    for gather in (
        store.gather,
        store.gather_host,
        lambda index: check_rows(view, index, *view.gather(index), storage),
    ):
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
            SpectraStore(view, DataConfig(storage=storage), CPU)


@pytest.mark.parametrize("case", HARMLESS)
def test_a_number_that_means_no_harm_passes(case: str, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_refuse_first", lambda *_: pytest.fail("a second pass"))
    name, value, storage = HARMLESS[case]
    spoil(sets / "val" / "dataset.h5", name, 17, value)
    view = open_spectra([sets / "val" / "dataset.h5"], -1)
    check_view(view, storage)
    assert torch.isfinite(SpectraStore(view, DataConfig(storage=storage), CPU).gather(np.array([17]))[0]).all()


def test_the_first_of_several_spoilt_rows_is_named(sets: Path) -> None:
    path = sets / "val" / "dataset.h5"
    for row in (40, 21, 30):
        spoil(path, ERROR, row, np.nan)
    with pytest.raises(DataError, match="row 21: error"):
        check_view(open_spectra([path], -1), "float32")


def test_good_rows_are_looked_through_once(spectra: Spectra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_refuse_first", lambda *_: pytest.fail("a second pass"))
    check_view(spectra, "float16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "where"),
    by_day(
        itertools.product(["32", "16-mixed", "bf16-mixed"], ["statistics", "steps"]),
        ("16-mixed", "steps"),
        ("bf16-mixed", "statistics"),
    ),
)
def test_a_spoilt_training_row_is_no_divergence_and_no_skipped_step(
    precision: str, where: str, tiny: list[str], sets: Path, capsys: Any
) -> None:
    path = sets / "train_1" / "dataset.h5"
    spoil(path, FLUX, 61, np.nan)
    norm = "standard" if where == "statistics" else "none"
    result = train(tiny, sets, f"train.precision={precision}", f"data.flux_norm={norm}")
    status = RunFolder(result.folder, "").status()
    assert (result.state, result.exit_code, status["traceback"]) == ("crashed", 1, "")
    inspect = f"`specvit data inspect {path}` lists all, and `specvit data convert FILE NEW` masks such pixels"
    assert status["cause"] == f"{path} row 61: flux is not finite; correct or remove that row; {inspect}."
    assert "Traceback" not in capsys.readouterr().out
    spoil(path, FLUX, 61, 0.9)
    assert train(tiny, sets, f"train.precision={precision}", f"data.flux_norm={norm}").exit_code == 0


@pytest.mark.slow
def test_rows_of_the_other_sets_are_looked_through_at_the_start_only(
    tiny: list[str], sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(train_network, "check_view", lambda view, storage: looked.append(len(view)))
    with monkeypatch.context() as patched:
        stop_at(2, patched)
        assert train(tiny, sets).state == "preempted"
    assert looked == [48, 64]
    assert train(tiny, sets).exit_code == 0
    assert train(tiny, sets).exit_code == 0
    assert looked == [48, 64]
    assert train(tiny, sets, "train.rerun=true").exit_code == 0
    assert looked == [48, 64, 48, 64]


@pytest.mark.slow
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
    config = build_config(compose(words(tiny, sets)))
    splits = open_splits(config, lambda *_: None)
    builtin = build_config(compose(["data=builtin", f"data.val_path={sets / 'val' / 'dataset.h5'}"]))
    looked: list[Spectra] = []
    monkeypatch.setattr(train_network, "check_view", lambda view, storage: looked.append(view))
    train_network.check_evaluation_rows(builtin, splits)
    assert looked == [splits.val]


# files that are locked or cut off


WRITER = """
import sys, time, h5py
file = h5py.File(sys.argv[1], "r+")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_file_that_is_being_written_is_named_wherever_it_is_read(
    tiny: list[str], sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, shard = sets / "train_1" / "dataset.h5", open_shard(sets / "train_0" / "dataset.h5")
    rewrite_chunked(path)
    view = open_spectra([path], -1)
    locked = type(shard)(path=path, flux=shard.flux, error=shard.error, wave_P=shard.wave_P)
    with ready_process(WRITER, str(path)):
        with pytest.raises(DataError, match="is being written by another process"):
            read_labels(locked)
        with pytest.raises(DataError, match=r"train_1/dataset\.h5: is being written"):
            view.gather(np.arange(3))
        assert main(words(tiny, sets)) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"specvit: {path}: is being written by another process; wait for it")
    assert "HDF5_USE_FILE_LOCKING=FALSE" in sentence


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
