"""Whatever is wrong with a file, its user reads one sentence, and nothing is left behind.

All cases enter through `specvit.train.main`, as a user does.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from specvit.data.shards import find_files
from specvit.quantities import ERROR, FLUX, PARAMS, WAVE
from specvit.train import main as train_main

CLASSES = ["model.task_type=cls", "loss=ce", "train.early_stopping.monitor=val_accuracy"]
CLASSES += ["train.early_stopping.mode=max"]

Damage = Callable[[Path], Any]


def array(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    """Return a damage that puts `change(array)` in the place of an array, or removes it."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            value = change(file[name][()])
            del file[name]
            if value is not None:
                file[name] = value

    return damage


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Damage:
    """Return a damage that puts `change(table)` in the place of the label table, or removes it."""

    def damage(path: Path) -> None:
        changed = change(pd.read_hdf(path))
        with pd.HDFStore(path) as store:
            store.remove(PARAMS)
            if changed is not None:
                store.put(PARAMS, changed, format="table", track_times=False)

    return damage


def cut(share: float) -> Damage:
    """Return a damage that keeps a share of the file's bytes."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def set_at(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILES: dict[str, tuple[Damage, list[str]]] = {
    "missing": (Path.unlink, ["nothing lies at"]),
    "a folder": (as_folder, ["is a folder"]),
    "empty": (lambda path: path.write_bytes(b""), ["HDF5"]),
    "text": (lambda path: path.write_text("wave,flux,error\n" * 1000), ["not a readable HDF5 file"]),
    "cut after the signature": (cut(0.001), ["is truncated"]),
    "cut in the flux": (cut(0.2), ["is truncated"]),
    "cut in the error": (cut(0.6), ["is truncated"]),
    "cut in the labels": (cut(0.97), ["is truncated"]),
    "one byte short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["is truncated"]),
    "no flux": (array(FLUX, lambda a: None), [FLUX, "is missing"]),
    "no error": (array(ERROR, lambda a: None), [ERROR, "is missing"]),
    "no wavelengths": (array(WAVE, lambda a: None), [WAVE, "is missing"]),
    "no labels": (table(lambda t: None), ["no label table"]),
    "error of other length": (array(ERROR, lambda a: a[:-1]), [ERROR, "has shape (63, 256)", "(64, 256)"]),
    "error of other width": (array(ERROR, lambda a: a[:, :-1]), [ERROR, "has shape (64, 255)"]),
    "one-dimensional flux": (array(FLUX, np.ravel), [FLUX, "has shape (16384,)"]),
    "no spectra": (array(FLUX, lambda a: a[:0]), [FLUX, "has shape (0, 256)"]),
    "integer flux": (array(FLUX, lambda a: (1000 * a).astype(np.int32)), [FLUX, "int32"]),
    "label rows missing": (table(lambda t: t[:-3]), [PARAMS, "has 61 label rows but 64 spectra"]),
    "wavelengths missing": (array(WAVE, lambda a: a[:-1]), [WAVE, "has shape (255,) for 256 pixels"]),
    "wavelengths falling": (array(WAVE, lambda a: a[::-1]), [WAVE, "does not rise at pixel 1"]),
    "two pixels swapped": (array(WAVE, lambda a: np.r_[a[:9], a[10], a[9], a[11:]]), ["does not rise at pixel 10"]),
    "NaN in the wavelengths": (array(WAVE, set_at(7, np.nan)), [WAVE, "is not finite at pixel 7"]),
    "NaN label": (table(lambda t: t.assign(log_g=t.log_g.where(t.index != 5))), ["row 5", "label log_g is nan"]),
    "infinite label": (table(lambda t: t.assign(log_g=t.log_g.where(t.index != 6, np.inf))), ["row 6", "is inf"]),
    "label missing": (table(lambda t: t.drop(columns="log_g")), ["no label 'log_g'", "T_eff", "data.param"]),
    "labels as a series": (table(lambda t: t["log_g"]), ["holds a Series, not a table"]),
    "label of text": (table(lambda t: t.assign(log_g="dwarf")), ["label log_g: is not a number"]),
}


SPLITS = itertools.cycle(["file_path", "val_path", "test_path"])


@pytest.mark.parametrize(("fault", "key"), list(zip(FILES, SPLITS, strict=False)))
def test_a_damaged_file_is_refused_by_name(
    fault: str, key: str, tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    damage, texts = FILES[fault]
    path = write_set(tmp_path / "damaged", 64)
    damage(path)
    sentence = refused([*tiny, f"data.{key}={path}"])
    assert str(path) in sentence or "label log_g: is not a number" in sentence
    for text in texts:
        assert text in sentence


def test_rows_are_counted_in_the_file_that_holds_them(
    tmp_path: Path, write_set: Any, toy_sets: Path, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    path = write_set(tmp_path / "second", 64, seed=5)
    table(lambda t: t.assign(log_g=t.log_g.where(t.index != 5)))(path)
    assert f"{path} row 5: label log_g is nan" in refused([*tiny, f"data.file_path=train_0/dataset.h5,{path}"])


SETS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "constant label": ({"log_g": 4.4}, [], ["label log_g: is the same in every training row"]),
    "other pixel count than validation": ({"pixels": 320}, [], ["has 256 pixels", "320"]),
    "patch wider than the spectrum": ({}, ["model.patch_size=512"], ["is 512 but a spectrum has 256 pixels"]),
    "unknown label": ({}, ["data.param=logg"], ["no label 'logg'", "log_g"]),
    "too few rows": ({}, ["data.num_samples=65"], ["data.num_samples: is 65 but the files hold 64 spectra"]),
    "too few validation rows": ({}, ["data.val_samples=999"], ["data.val_samples: is 999 but the files hold 48"]),
    "constant validation label": ({}, ["data.val_samples=1"], ["val_r2 is undefined", "monitor=val_mae"]),
    "batch larger than the set": ({}, ["train.batch_size=65"], ["one step takes 65 spectra", "has 64"]),
    "steps larger than the set": ({}, ["train.accumulate=5"], ["one step takes 80 spectra", "has 64"]),
    "no classes": ({}, CLASSES, ["label log_g: is no column of class numbers", "data.class_edges"]),
}


@pytest.mark.parametrize("fault", SETS)
def test_a_set_that_cannot_be_trained_on_is_refused(
    fault: str, tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    made, overrides, texts = SETS[fault]
    path = write_set(tmp_path / "set", 64, **made)
    sentence = refused([*tiny, f"data.file_path={path}", *overrides])
    for text in texts:
        assert text in sentence


@pytest.mark.parametrize(
    ("change", "paths", "text"),
    [
        (lambda wave_P: wave_P + 0.5, "data.file_path=train_0/dataset.h5,{path}", "has other wavelengths than"),
        (lambda wave_P: wave_P + 0.5, "data.val_path={path}", "wavelengths"),
        (lambda wave_P: wave_P, "data.file_path={path},{path}", "is named twice"),
        (lambda wave_P: wave_P, "data.test_path=val/../val/dataset.h5", "serves as validation and as test set"),
        (lambda wave_P: wave_P, "data.val_path=train_1/dataset.h5", "serves as training and as validation set"),
        (lambda wave_P: wave_P, "data.file_path={path},{path.parent}/../set/dataset.h5", "is named twice"),
    ],
    ids=[
        "shards on two grids",
        "validation on another grid",
        "one shard twice",
        "test is val",
        "val is train",
        "by two names",
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    change: Any, paths: str, text: str, tmp_path: Path, write_set: Any, tiny: list[str], refused: Any
) -> None:
    path = write_set(tmp_path / "set", 64)
    array(WAVE, change)(path)
    assert text in refused([*tiny, paths.format(path=path)])


def test_a_class_that_training_never_saw_is_refused(
    tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    train = write_set(tmp_path / "train", 64, log_g=np.arange(64) % 3)
    other = write_set(tmp_path / "val", 64, log_g=np.arange(64) % 4)
    paths = [f"data.file_path={train}", f"data.val_path={other}", f"data.test_path={train}"]
    assert "label log_g: holds class 3" in refused([*tiny, *CLASSES, *paths])


def test_weights_of_another_model_are_refused_before_there_is_a_folder(
    tmp_path: Path, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    assert train_main([*tiny, "train.epochs=1", f"tracking.folder={tmp_path / 'first'}"]) == 0
    (first,) = (tmp_path / "first").iterdir()
    sentence = refused([*tiny, "model.hidden_size=24", f"train.init_from={first}"])
    assert "does not fit the configured model" in sentence
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a checkpoint")
    sentence = refused([*tiny, f"train.init_from={foreign}"])
    assert "cannot be read as a checkpoint" in sentence and "remove" not in sentence


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "run[1].h5").touch()
    assert find_files(["run[1].h5"], root=str(tmp_path), where="data.file_path") == [tmp_path / "run[1].h5"]
