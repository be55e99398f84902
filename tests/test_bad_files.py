"""A set that cannot be trained on is refused in one sentence, and nothing is left behind.

Files that are damaged stand in test_fault_files.py.

All cases enter through `specvit.train.main`, as a user does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import table

from specvit.data.shards import find_files
from specvit.train import main as train_main

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
