"""Files of spectra that are damaged, foreign or changed: refused by name, or noticed and said."""

import errno
import fcntl
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import (
    Damage,
    array,
    as_folder,
    change_attribute,
    cut,
    damage_chunk,
    packed_by_blosc,
    replace,
    replaced,
    set_at,
    table,
)
from hostile import Canary
from mounts import read_only
from planted import At, Fail, Stop
from whole_runs import STEADY, only_run, state_of

from specvit.data.inspect import inspect_file
from specvit.run_folder.folder import RunFolder
from specvit.utils.quantities import ERROR, FLUX, PARAMS, WAVE

REFUSED: dict[str, Damage] = {
    "missing": Path.unlink,
    "a folder": as_folder,
    "not HDF5: empty": cut(0.0),
    "not HDF5: text": lambda path: path.write_text("wave,flux,error\n" * 1000),
    "cut after the signature": cut(0.001),
    "cut in the flux": cut(0.2),
    "cut in the error": cut(0.6),
    "cut in the labels": cut(0.97),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "no array: flux": array(FLUX, lambda a: None),
    "no array: error": array(ERROR, lambda a: None),
    "no array: wavelengths": array(WAVE, lambda a: None),
    "no labels": table(lambda t: None),
    "error of other length": array(ERROR, lambda a: a[:-1]),
    "error of other width": array(ERROR, lambda a: a[:, :-1]),
    "one-dimensional flux": array(FLUX, np.ravel),
    "no spectra": array(FLUX, lambda a: a[:0]),
    "integer flux": array(FLUX, lambda a: (1000 * a).astype(np.int32)),
    "label rows missing": table(lambda t: t[:-3]),
    "wavelengths missing": array(WAVE, lambda a: a[:-1]),
    "two pixels swapped": array(WAVE, lambda a: np.r_[a[:9], a[10], a[9], a[11:]]),
    "NaN in the wavelengths": array(WAVE, set_at(7, np.nan)),
    "NaN label": table(lambda t: t.assign(log_g=t.log_g.where(t.index != 5))),
    "infinite label": table(lambda t: t.assign(log_g=t.log_g.where(t.index != 6, np.inf))),
    "label missing": table(lambda t: t.drop(columns="log_g")),
    "labels as a series": table(lambda t: t["log_g"]),
    "names that run code": lambda path: change_attribute(
        path, PARAMS, "non_index_axes", Canary(path.parent / "canary")
    ),
    "labels as objects": table(lambda t: t.assign(name="HD 1"), format="fixed"),
    "link to nothing": replaced(lambda file: file.__setitem__(FLUX, h5py.ExternalLink("gone.h5", "/flux"))),
    "values outside": replaced(lambda file: file.create_dataset(FLUX, (64, 256), "f4", external=Path("/etc/hostname"))),
    "packed by blosc": packed_by_blosc,
    "damaged chunk": lambda path: damage_chunk(path, FLUX, chunk=1),
    "label of text": table(lambda t: t.assign(log_g="dwarf")),
}
SPLITS = itertools.cycle(["file_path", "val_path", "test_path"])
KEYS = dict(zip(REFUSED, SPLITS, strict=False))
NUMBERS: dict[str, tuple[Damage, str]] = {
    "flux NaN": (array(FLUX, set_at((9, 77), np.nan)), "val_path"),
    "flux infinite": (array(FLUX, set_at((9, 77), np.inf)), "test_path"),
    "error NaN": (array(ERROR, set_at((3, 0), np.nan)), "test_path"),
    "error negative": (array(ERROR, set_at((63, 255), -0.1)), "val_path"),
}


FAST = {"missing", "a folder", "not HDF5: text", "cut in the flux", "no array: flux", "no labels", "NaN label"}
FAST |= {"error of other width", "label rows missing", "names that run code", "damaged chunk", "flux NaN"}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in (*REFUSED, *NUMBERS)],
)
def test_refused(
    fault: str, promised: Any, tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    damage, key = NUMBERS[fault] if fault in NUMBERS else (REFUSED[fault], KEYS[fault])
    path = write_set(tmp_path / "damaged", 64)
    damage(path)
    sentence = refused([*tiny, f"data.{key}={path}"])
    promised.kept(state="refused", said=sentence)
    assert str(path) in sentence or fault == "label of text"
    assert not path.with_name("canary").exists()


TOGETHER: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "shards on two grids": (lambda wave_P: wave_P + 0.5, "data.file_path=train_0/dataset.h5,{path}"),
    "validation on another grid": (lambda wave_P: wave_P + 0.5, "data.val_path={path}"),
    "test on another grid": (lambda wave_P: wave_P * 1.001, "data.test_path={path}"),
    "one shard twice: by its name": (np.copy, "data.file_path={path},{path}"),
    "one shard twice: by two names": (np.copy, "data.file_path={path},{path.parent}/../set/dataset.h5"),
    "one file for test and validation": (np.copy, "data.test_path=val/../val/dataset.h5"),
    "one file for validation and training": (np.copy, "data.val_path=train_1/dataset.h5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TOGETHER)
def test_files_that_do_not_belong_together(
    fault: str, promised: Any, tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    change, paths = TOGETHER[fault]
    path = write_set(tmp_path / "set", 64)
    array(WAVE, change)(path)
    promised.kept(state="refused", said=refused([*tiny, paths.format(path=path)]))


def test_a_writer_holds_the_file(promised: Any, tmp_path: Path, write_set: Any, tiny: list[str], refused: Any) -> None:
    path = write_set(tmp_path / "set", 64)
    with open(path, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # as HDF5 does while it writes
        promised.kept(state="refused", said=refused([*tiny, f"data.test_path={path}"]))


# faults that only a whole run shows


@pytest.fixture
def sets(tmp_path: Path, toy_sets: Path) -> Path:
    """Return a copy of the files that is the test's own to damage."""
    return Path(shutil.copytree(toy_sets, tmp_path / "sets"))


@pytest.fixture
def arguments(tiny: list[str], sets: Path, tmp_path: Path) -> list[str]:
    return [*tiny, *STEADY, f"data.root={sets}", f"tracking.folder={tmp_path / 'runs'}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [FLUX, ERROR], ids=["flux", "error"])
def test_a_training_row_is_not_finite(
    name: str, promised: Any, trained: Any, arguments: list[str], sets: Path, tmp_path: Path
) -> None:
    array(name, set_at((80, 5), np.nan))(sets / "train_1" / "dataset.h5")
    ended = trained(arguments)
    assert ended.code == 1
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)


@pytest.mark.slow
def test_repeated_rows(promised: Any, trained: Any, arguments: list[str], sets: Path, tmp_path: Path) -> None:
    path = sets / "train_0" / "dataset.h5"
    array(FLUX, set_at(10, h5py.File(path)[FLUX][2]))(path)
    assert trained(arguments).code == 0
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said="\n".join(inspect_file(path).faults))


CHANGES: dict[str, Damage] = {
    "touched": Path.touch,
    "a spectrum changed": array(FLUX, set_at((3, 5), 0.7)),
    "a label changed": table(lambda t: t.assign(log_g=t.log_g.where(t.index != 3, 2.0))),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", CHANGES)
def test_changed_since_the_checkpoint(
    fault: str, promised: Any, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str], sets: Path, tmp_path
) -> None:
    stopped = trained(arguments, At("specvit.training.step.Learner.step", Stop(signal.SIGTERM), call=30))
    assert stopped.code == 143, stopped.said
    CHANGES[fault](sets / "train_0" / "dataset.h5")
    again = trained(arguments)
    assert again.code == 0, again.said
    runs = sorted((tmp_path / "runs").iterdir(), key=lambda run: run.stat().st_mtime_ns)
    assert len(runs) == (2 if fault == "a label changed" else 1)
    promised.kept(state=state_of(runs[-1]), said=again.said)
    if len(runs) == 1:
        note = RunFolder(runs[0], "").attempts()[-2]["changed"]
        assert [line for line in again.said.splitlines() if "was changed or touched" in line] == note
    if promised.row.loses_nothing:
        promised.whole(runs[-1], unbroken([*tiny, *STEADY]))


CUT = partial(os.truncate, length=4096)
WHILE: dict[str, tuple[Callable[..., Any], int]] = {
    "truncated": (CUT, -signal.SIGBUS),
    "replaced": (replace, 0),
    "removed": (os.unlink, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", WHILE)
def test_while_the_run_reads_it(
    fault: str, promised: Any, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str], sets: Path, tmp_path
) -> None:
    harm, code = WHILE[fault]
    path, safe = sets / "train_0" / "dataset.h5", tmp_path / "safe.h5"
    shutil.copy(path, safe)
    ended = trained(arguments, At("specvit.training.step.Learner.step", partial(harm, path), call=30))
    assert ended.code == code, ended.said
    state = state_of(only_run(tmp_path / "runs"))
    if fault == "truncated":
        refusal = trained(arguments)
        assert (refusal.code, refusal.said) == (2, f"specvit: {path}: is truncated; copy or make it again.\n")
        assert state_of(only_run(tmp_path / "runs")) == state
    shutil.copy(safe, path)
    again = trained(arguments)
    assert again.code == 0, again.said
    promised.kept(state=state, said=again.said if ended.code < 0 else ended.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *STEADY]))


@pytest.mark.slow
def test_the_disk_of_the_files_fails_and_comes_back(
    promised: Any, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str], tmp_path: Path
) -> None:
    fault = OSError(errno.EIO, "Input/output error", "dataset.h5")
    ended = trained(arguments, At("specvit.data.views.Spectra.gather", Fail(fault), call=30))
    assert ended.code == 1
    state = state_of(only_run(tmp_path / "runs"))
    assert trained(arguments).code == 0
    promised.kept(state=state, said=ended.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *STEADY]))


@pytest.mark.slow
def test_files_in_a_folder_that_cannot_be_written(
    promised: Any, trained: Any, unbroken: Any, arguments: list[str], tiny: list[str], sets: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in sets.rglob("*")}
    with read_only(sets):
        with pytest.raises(OSError, match="Read-only"):
            (sets / "new").touch()
        assert trained(arguments, At("specvit.training.step.Learner.step", Stop(signal.SIGTERM), call=30)).code == 143
        ended = trained(arguments)
    assert ended.code == 0, ended.said
    promised.kept(state=state_of(only_run(tmp_path / "runs")), said=ended.said)
    promised.whole(only_run(tmp_path / "runs"), unbroken([*tiny, *STEADY]))
    assert {path: path.stat().st_mtime_ns for path in sets.rglob("*")} == before
