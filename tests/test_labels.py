"""Labels and classes, encoded for the network and back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.labels import coder_from_dict, coder_to_dict, fit_classes, fit_scaler
from specvit.data.shards import write_shard
from specvit.data.splits import note_of_classes, open_splits
from specvit.data.views import Spectra, open_spectra
from specvit.utils.errors import DataError


@pytest.mark.parametrize("kind", ["standard", "minmax", "none"])
def test_labels_come_back_in_their_units(kind: str, spectra: Spectra) -> None:
    names = ("log_g", "T_eff")
    labels_NK = spectra.label_values(names)
    scaler = fit_scaler(labels_NK, names, kind)
    encoded_NK = scaler.encode(labels_NK)
    np.testing.assert_allclose(scaler.decode(encoded_NK), labels_NK, rtol=1e-5)
    found = {"standard": (encoded_NK.mean(0), encoded_NK.std(0)), "minmax": (encoded_NK.min(0), encoded_NK.max(0))}
    if kind == "none":
        np.testing.assert_array_equal(encoded_NK, labels_NK.astype(np.float32))
    else:
        np.testing.assert_allclose(found[kind], [[0, 0], [1, 1]], atol=1e-5)
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(scaler)))) == scaler


def test_statistics_come_from_the_chosen_training_rows_alone(toy_sets: Path, tiny: list[str], write_set: Any) -> None:
    config = build_config(compose([*tiny, "data.num_samples=100", "data.subset=random", "data.param=log_g,mag"]))
    splits = open_splits(config, lambda *progress: None)
    tables = [pd.read_hdf(toy_sets / name / "dataset.h5") for name in ("train_0", "train_1")]
    chosen = pd.concat(tables).iloc[splits.train.rows_N][["log_g", "mag"]]
    assert len(chosen) == 100
    np.testing.assert_allclose(splits.coder.offset, chosen.mean())
    np.testing.assert_allclose(splits.coder.scale, chosen.std(ddof=0))


def test_classes_are_bins_between_edges_that_hold_their_lower_end() -> None:
    coder = fit_classes(np.array([[1.0], [3.0], [5.0]]), ("log_g",), (2.0, 3.5))
    assert coder.num_outputs == 3
    assert coder.encode(np.array([[1.9], [2.0], [3.4], [3.5], [9.0]])).tolist() == [0, 1, 1, 2, 2]
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(coder)))) == coder
    assert coder.class_names == ("< 2", "2 to 3.5", "≥ 3.5")
    assert fit_classes(np.array([[1.0], [5e6]]), ("T_eff",), (4812345.5,)).class_names == ("< 4812345.5", "≥ 4812345.5")


def test_an_integer_column_is_classes_and_a_new_value_is_refused() -> None:
    coder = fit_classes(np.array([[7.0], [3.0], [5.0], [3.0]]), ("kind",), None)
    assert coder.encode(np.array([[3.0], [5.0], [7.0]])).tolist() == [0, 1, 2]
    assert coder.class_names == ("3", "5", "7")
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(coder)))) == coder
    with pytest.raises(DataError, match="class 4, which the training rows do not"):
        coder.encode(np.array([[4.0]]))


def test_classes_without_validation_or_test_rows_are_named(toy_sets: Path, tiny: list[str]) -> None:
    words = [*tiny, "model.task_type=cls", "loss=ce", "data.class_edges=[2,3,4]", "train.early_stopping.mode=max"]
    config = build_config(compose([*words, "train.early_stopping.monitor=val_accuracy", "data.val_samples=1"]))
    splits = open_splits(config, lambda *progress: None)
    (value,) = pd.read_hdf(toy_sets / "val" / "dataset.h5").log_g[:1]
    names = ["< 2", "2 to 3", "3 to 4", "≥ 4"]
    names.pop(int(np.digitize(value, [2, 3, 4])))
    assert note_of_classes(config, splits) == f"note: classes of log_g without validation rows: {', '.join(names)}"
    assert note_of_classes(config, replace(splits, val=splits.train)) == ""


@pytest.mark.parametrize("without", [0, 1, 2])
def test_a_label_that_one_shard_lacks_is_refused_by_that_shards_name(
    without: int, tmp_path: Path, write_set: Any, stars: Any
) -> None:
    paths = [write_set(tmp_path / f"part_{part}", 10, seed=part, age=1.0) for part in range(3)]
    part = stars(10, seed=without, mass=2.0)
    write_shard(paths[without], **part)
    spectra = open_spectra(paths, -1)
    assert spectra.label_values(("log_g",)).shape == (30, 1)
    with pytest.raises(DataError) as refusal:
        spectra.label_values(("log_g", "age"))
    assert str(refusal.value).startswith(f"{paths[without]}: has no label 'age'; there are T_eff")
    assert "mass" in str(refusal.value)
    assert "all 3 files" in str(refusal.value)


def test_a_label_is_asked_of_those_shards_only_that_rows_come_from(tmp_path: Path, write_set: Any, stars: Any) -> None:
    paths = [write_set(tmp_path / "with", 10, age=1.0), write_set(tmp_path / "without", 10, seed=1)]
    assert (open_spectra(paths, 8).label_values(("age",)) == 1.0).all()
    with pytest.raises(DataError, match=r"without/dataset\.h5: has no label"):
        open_spectra(paths, 12).label_values(("age",))
