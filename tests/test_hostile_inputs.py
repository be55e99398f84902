"""Files whose author means harm run nothing: each command ends with a sentence, or with the right numbers.

A few seconds of it run in every test run, all places and commands every night.
"""

import contextlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hostile
import numpy as np
import pytest
import torch
from astropy.table import Table

from specvit.analysis.archive import unpack
from specvit.data.inspect import inspect_file
from specvit.data.shards import open_shard, read_labels
from specvit.utils.errors import DataError
from specvit.utils.quantities import ERROR, FLUX

RIDGE = ["model=ridge", "data=hdf5", "tracking.live=false", "tracking.progress=lines"]
KEEP = ["--wave", "keep", "--no-normalise", "--unit", "A"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, write_set: Any) -> dict[str, Path]:
    """Return three files of 64 spectra."""
    root = tmp_path_factory.mktemp("sets")
    return {name: write_set(root / name, 64, seed=seed) for seed, name in enumerate(("train", "val", "test"))}


@pytest.fixture(scope="module")
def sound(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what each command says of the sound file, and the run that `evaluate` takes."""
    work = tmp_path_factory.mktemp("sound")
    before = os.getcwd()
    os.chdir(work)
    try:
        code, text = hostile.attempt([*command("train", sets["train"], sets)])
        assert code == 0, text
        (run,) = (work / "outputs").iterdir()
        scores = {"train": score_of(text)}
        code, text = hostile.attempt(["evaluate", str(run), "--data", str(sets["train"])])
        assert code == 0, text
        return {"run": run, "evaluate": score_of(text), **scores}
    finally:
        os.chdir(before)


def command(name: str, path: Path, sets: dict[str, Path], run: Path = Path()) -> list[str]:
    """Return the arguments of a command on a file."""
    others = [f"data.val_path={sets['val']}", f"data.test_path={sets['test']}"]
    return {
        "inspect": ["data", "inspect", str(path)],
        "train": ["train", *RIDGE, f"data.file_path={path}", *others],
        "evaluate": ["evaluate", str(run), "--data", str(path)],
        "convert": ["data", "convert", str(path), "converted.h5"],
    }[name]


def score_of(text: str) -> str:
    """Return the first R² that a command prints."""
    return re.findall(r"R² +(-?[\d.]+)|r2 +(-?[\d.]+)", text)[0][0]


def fault(code: int, text: str, canary: Path, right: Callable[[], bool]) -> str:
    """Return what is wrong with how a command ended, "" for nothing."""
    if canary.exists():
        return "ran code"
    if code < 0 or "Traceback" in text:
        return "does not end" if code == -2 else f"traceback: {text.strip().splitlines()[-1][:150]}"
    if code == 0 and not right():
        return "wrong numbers"
    return "" if code == 0 or text.strip() else "says nothing"


def same_arrays(one: Path, other: Path) -> bool:
    with h5py.File(one) as first, h5py.File(other) as second:
        return all(np.array_equal(first[name][()], second[name][()]) for name in (FLUX, ERROR))


def test_a_hostile_file_of_spectra_is_refused_or_read_and_runs_nothing(sets: dict[str, Path], tmp_path: Path) -> None:
    wrong = []
    for number, (place, change) in enumerate(hostile.HDF5.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, canary = Path(shutil.copy(sets["train"], folder / "set.h5")), folder / "canary"
        change(path, canary)
        refused = bool(inspect_file(path).faults)
        try:
            right = len(read_labels(open_shard(path))) == 64
        except DataError as problem:
            right = refused and str(path) in str(problem)
        if not right or canary.exists():
            wrong.append(place)
    assert not wrong


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["inspect", "train", "evaluate", "convert"])
@pytest.mark.parametrize("place", hostile.HDF5)
def test_no_command_runs_what_a_file_of_spectra_hides(
    place: str, name: str, sets: dict[str, Path], sound: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, canary = Path(shutil.copy(sets["train"], tmp_path / "set.h5")), tmp_path / "canary"
    hostile.HDF5[place](path, canary)
    code, text = hostile.attempt(command(name, path, sets, sound["run"]))
    right = {
        "inspect": lambda: not canary.exists(),
        "train": lambda: score_of(text) == sound["train"] or place == "flux that is other values",
        "evaluate": lambda: score_of(text) == sound["evaluate"] or place == "flux that is other values",
        "convert": lambda: same_arrays(Path("converted.h5"), sets["train"]),
    }[name]
    assert fault(code, text, canary, right) == ""


def columns(write_set: Any, tmp_path: Path) -> dict[str, np.ndarray]:
    """Return spectra as others keep them."""
    shard = open_shard(write_set(tmp_path / "source", 64))
    labels = read_labels(shard)
    flux, error = (np.asarray(array.open()[:], dtype=np.float64) for array in (shard.flux, shard.error))
    return {"wave": shard.wave_P, "flux": flux, "error": error, **{n: labels[n].to_numpy() for n in ("T_eff", "log_g")}}


def converted(arguments: list[str], folder: Path, flux_NP: np.ndarray) -> bool:
    (path,) = folder.rglob("*.h5")
    with h5py.File(path) as file:
        return np.array_equal(file[FLUX][()], flux_NP.astype(np.float32))


@pytest.mark.nightly
@pytest.mark.parametrize("place", hostile.NPZ)
def test_no_numpy_file_runs_anything_or_takes_all_memory(
    place: str, write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "inner" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    held = columns(write_set, tmp_path)
    np.savez(work / "set.npz", **held)
    hostile.NPZ[place](work / "set.npz", tmp_path / "canary")
    arguments = ["data", "convert", "set.npz", "out", *KEEP]
    code, text = hostile.attempt(arguments)
    assert fault(code, text, tmp_path / "canary", partial(converted, arguments, work / "out", held["flux"])) == ""
    assert not list(tmp_path.rglob("escape.npy"))


@pytest.mark.nightly
@pytest.mark.parametrize("place", hostile.FITS)
def test_no_header_of_a_fits_file_breaks_a_conversion(
    place: str, write_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = columns(write_set, tmp_path)
    held["wave"] = np.tile(held["wave"], (64, 1))
    Table({name: held[name] for name in ("T_eff", "log_g", "wave", "flux", "error")}).write("set.fits")
    hostile.FITS[place](Path("set.fits"), tmp_path / "canary")
    arguments = ["data", "convert", "set.fits", "out", *KEEP]
    code, text = hostile.attempt(arguments)
    assert fault(code, text, tmp_path / "canary", lambda: converted(arguments, tmp_path / "out", held["flux"])) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["experiment", "sweeps"])
@pytest.mark.parametrize("place", hostile.YAML)
def test_no_file_of_settings_runs_anything(
    kind: str, place: str, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ("conf/experiment" if kind == "experiment" else "sweeps")
    folder.mkdir(parents=True)
    text = hostile.YAML[place]
    raw = text if isinstance(text, bytes) else text.replace("CANARY", str(tmp_path / "canary")).encode()
    (folder / "evil.yaml").write_bytes(b"# @package _global_\n" + raw if kind == "experiment" else raw)
    code, said = hostile.attempt([*command("train", sets["train"], sets), f"{kind}=evil", "sweep.dry_run=true"])
    assert fault(code, said, tmp_path / "canary", lambda: False) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("place", [*hostile.CHECKPOINT, "plain pickle", "old format"])
def test_no_checkpoint_runs_anything(
    place: str, sets: dict[str, Path], sound: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, canary = tmp_path / sound["run"].name, tmp_path / "canary"
    shutil.copytree(sound["run"], run)
    (path,) = run.glob("best.ckpt")
    if place in hostile.CHECKPOINT:
        content = torch.load(path)
        torch.save(hostile.CHECKPOINT[place](content, hostile.Canary(canary)), path)
    else:
        {"plain pickle": hostile.plain_pickle, "old format": hostile.old_pickle}[place](path, canary)
    code, text = hostile.attempt(command("evaluate", sets["test"], sets, run))
    assert fault(code, text, canary, lambda: False) == ""


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = 4 if kind == tarfile.REGTYPE else 0
    return info


ARCHIVE = {
    "path upwards": [_entry("../escape")],
    "path from the root": [_entry("/tmp/specvit-escape/escape")],
    "path up and down": [_entry("multirun/../../escape")],
    "link upwards": [_entry("multirun/s/up", tarfile.SYMTYPE, "../../.."), _entry("multirun/s/up/escape")],
    "link to the root": [_entry("multirun/s/up", tarfile.SYMTYPE, "/"), _entry("multirun/s/up/tmp/escape")],
    "hard link": [_entry("multirun/s/passwd", tarfile.LNKTYPE, "/etc/passwd")],
    "hard link upwards": [_entry("multirun/s/x", tarfile.LNKTYPE, "../../../secret")],
    "device": [_entry("multirun/s/null", tarfile.CHRTYPE)],
    "pipe": [_entry("multirun/s/pipe", tarfile.FIFOTYPE)],
    "link through a link": [
        _entry("multirun/s/a", tarfile.SYMTYPE, "."),
        _entry("multirun/s/a/b", tarfile.SYMTYPE, "../../.."),
        _entry("multirun/s/a/b/escape"),
    ],
}


def test_an_archive_puts_nothing_outside_its_folder(tmp_path: Path) -> None:
    outside = Path("/tmp/specvit-escape"), Path("/tmp/escape")
    for number, (place, entries) in enumerate(ARCHIVE.items()):
        folder = tmp_path / str(number)
        path, inside = folder / "study.tar.xz", folder / "a" / "inside"
        inside.mkdir(parents=True)
        (folder / "secret").write_text("secret")
        with tarfile.open(path, "w:xz") as packed:
            for entry in [_entry("multirun/s/study.json"), *entries]:
                packed.addfile(entry, io.BytesIO(b"null") if entry.size else None)
        with contextlib.suppress(tarfile.FilterError):
            unpack(path, inside)
        assert not [each for each in folder.rglob("*") if each.name == "escape" and inside not in each.parents], place
        assert not any(each.exists() for each in outside), place
        assert not [each for each in inside.rglob("*") if each.is_fifo() or each.is_char_device()], place
