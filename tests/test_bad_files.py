"""A set that cannot be trained on is refused in one sentence, and nothing is left behind.

Files that are damaged stand in test_faulty_spectra.py.

All cases enter through `specvit.commands.train.main`, as a user does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import table

from specvit.commands.train import main as train_main
from specvit.data.shards import find_files
from specvit.data.validate import check_view
from specvit.data.views import open_spectra

CLASSES = ["model.task_type=cls", "loss=ce", "train.early_stopping.monitor=val_accuracy"]
CLASSES += ["train.early_stopping.mode=max"]


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
    "a class without rows": (
        {},
        [*CLASSES, "data.class_edges=[10,20]"],
        ["leaves a class without training"],
    ),
    "an empty class between": (
        {},
        [*CLASSES, "data.class_edges=[2,2.000001]"],
        ["(log_g < 2: ", ", 2 to 2.000001: 0, ≥ 2.000001: ", "choose edges between the values of the label"],
    ),
    "subnormal label": ({"log_g": np.arange(64) * 1e-310}, [], ["label log_g: varies by 6.3e-309", "another unit"]),
    "label with a slash": (
        {},
        ["data.param=[T_eff,'[Fe/H]']"],
        ["'[Fe/H]' cannot", "--columns NAME='[Fe/H]'"],
    ),
    "label of dots": ({}, ["data.param='..'"], ["data.param: '..' cannot be part of folder and metric names"]),
    "label with a line break": ({}, ["data.param=\"'a\\nb'\""], ["cannot be part of folder and metric names"]),
    "label that is a formula": ({}, ["data.param=\"'=1+1'\""], ["=1+1", "cannot be part of folder and metric names"]),
    "label without an end": ({}, [f"data.param={'x' * 300}"], ["cannot be part of folder and metric names"]),
    "label without a name": ({}, ["data.param=[log_g,'']"], ["data.param: is empty; is a variable not set?"]),
    "no classes": ({}, CLASSES, ["label log_g: is not a column of class numbers", "data.class_edges"]),
}


QUICK = ("constant label", "unknown label", "too few rows", "batch larger than the set", "a class without rows")


@pytest.mark.parametrize("faults", [QUICK, pytest.param(sorted(set(SETS) - set(QUICK)), marks=pytest.mark.slow)])
def test_a_set_that_cannot_be_trained_on_is_refused(
    faults: list[str], tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    wrong = []
    for number, fault in enumerate(faults):
        made, overrides, words = SETS[fault]
        path = write_set(tmp_path / str(number), 64, **made)
        sentence = refused([*tiny, f"data.file_path={path}", *overrides])
        wrong += [(fault, word, sentence) for word in words if word not in sentence]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "factor", "storage", "expected"),
    [
        ("flux", 1e-8, "float16", "row 0: flux is mostly below 6.1e-05, which float16 turns into zeros"),
        ("error", 1e-46, "float32", "error: holds spectra that are too faint for float32"),
        pytest.param("error", 1e-8, "float16", "row 0: error is mostly below 6.1e-05", marks=pytest.mark.slow),
        pytest.param("flux", 1e-46, "float32", "flux: holds spectra that are too faint", marks=pytest.mark.slow),
    ],
)
def test_spectra_that_would_become_zeros_are_refused(
    name: str, factor: float, storage: str, expected: str, tmp_path: Path, write_set: Any, tiny: list[str], refused: Any
) -> None:
    path, place = write_set(tmp_path / "faint", 64), f"dataset/arrays/{name}/value"
    with h5py.File(path, "r+") as file:
        values = file[place][()]
        del file[place]
        file[place] = values.astype(np.float64 if storage == "float32" else np.float32) * factor
    sentence = refused([*tiny, f"data.val_path={path}", f"data.storage={storage}"])
    assert expected in sentence
    assert "multiply flux and error by one factor" in sentence


def test_faint_pixels_among_others_are_no_fault(tmp_path: Path, write_set: Any) -> None:
    path = write_set(tmp_path / "dips", 8)
    with h5py.File(path, "r+") as file:
        file["dataset/arrays/flux/value"][:, :100] = 1e-7
    check_view(open_spectra([path], -1), "float16")


def test_a_class_that_training_never_saw_is_refused(
    tmp_path: Path, write_set: Any, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    train = write_set(tmp_path / "train", 64, log_g=np.arange(64) % 3)
    other = write_set(tmp_path / "val", 64, log_g=np.arange(64) % 4)
    paths = [f"data.file_path={train}", f"data.val_path={other}", f"data.test_path={train}"]
    assert "label log_g: holds class 3" in refused([*tiny, *CLASSES, *paths])


@pytest.mark.slow
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
