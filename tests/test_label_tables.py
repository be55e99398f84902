"""Tables of labels are read as pandas reads them, without PyTables, and nothing in them is unpickled but names."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from damage import change_attribute
from hostile import Canary

from specvit.data.hdf5 import open_file
from specvit.data.tables import label_table, read_table
from specvit.utils.errors import DataError
from specvit.utils.quantities import PARAMS

ROWS = 5
FRAME = pd.DataFrame(
    {
        "log_g": np.arange(ROWS) / 7,
        "T_eff": np.arange(ROWS, dtype=np.float32) / 3,
        "[Fe/H]": -np.arange(ROWS) / 3,
        "class": np.arange(ROWS),
        "small": np.arange(ROWS, dtype=np.int8),
        "good": np.arange(ROWS) % 2 == 0,
        "when": pd.date_range("2020", periods=ROWS),
    }
)
NAMED = FRAME.assign(name=["HD 1", None, "nan", "", "ü"], time=FRAME.when.dt.tz_localize("UTC"))
FIXED, TABLE = {"format": "fixed"}, {"format": "table"}


def read(path: Path) -> pd.DataFrame:
    with open_file(path) as file:
        return read_table(label_table(file, path), path)


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        (FRAME, FIXED),
        (FRAME.set_index("class"), FIXED),
        (FRAME.set_axis([3, 1, 2, 0, 5, 9, 7], axis=1), FIXED),
        (FRAME[["log_g", "T_eff"]].T, FIXED),
        (FRAME, TABLE),
        (FRAME, {**TABLE, "index": False}),
        (FRAME.set_index("when"), TABLE),
        (FRAME.set_axis([*"abcdef", "x y"], axis=1), {**TABLE, "data_columns": ["a", "e", "f"]}),
        (FRAME, {**TABLE, "complib": "zlib", "complevel": 4}),
        (NAMED.drop(columns="time"), TABLE),
        (NAMED[["log_g", "name"]], {**TABLE, "data_columns": True, "nan_rep": "gone"}),
        (pd.DataFrame(np.eye(3, 900)).add_prefix("label_"), TABLE),
    ],
)
def test_a_table_is_what_pandas_reads(frame: pd.DataFrame, options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    frame.to_hdf(path, key=PARAMS, **options)
    expected: Any = pd.read_hdf(path)
    expected = expected.reset_index(drop=True)
    found = read(path)
    assert list(found.columns) == list(map(str, expected.columns))
    assert list(found.dtypes) == list(expected.dtypes)
    assert found.equals(expected.set_axis(found.columns, axis=1))


def test_times_of_a_zone_are_kept_in_utc(tmp_path: Path) -> None:
    NAMED[["log_g", "time"]].to_hdf(tmp_path / "set.h5", key=PARAMS, format="table")
    assert read(tmp_path / "set.h5").time.equals(NAMED.when.astype(read(tmp_path / "set.h5").time.dtype))


@pytest.mark.parametrize(
    ("frame", "options", "expected"),
    [
        (NAMED[["log_g", "name"]], FIXED, f"{PARAMS}/block1_values: holds Python objects (pickles)"),
        (FRAME.assign(kind=pd.Categorical(list("ababa"))), TABLE, "column kind holds categories"),
        (pd.concat({"a": FRAME}, axis=1), TABLE, "names a column by a tuple"),
        (pd.concat({"a": FRAME}, axis=1), FIXED, "has names of several levels"),
        (FRAME.set_index(["log_g", "small"]), TABLE, "has an index of several levels"),
        (FRAME.set_axis([1, "1", *"abcde"], axis=1), TABLE, "has 6 names for 7 columns"),
        (FRAME.log_g, TABLE, "holds a Series, not a table of labels"),
        (FRAME.log_g, FIXED, "holds a Series, not a table of labels"),
        (FRAME[:0], FIXED, "is empty"),
    ],
)
def test_other_tables_are_refused_by_name(frame: Any, options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    frame.to_hdf(path, key=PARAMS, **options)
    with pytest.raises(DataError) as refused:
        read(path)
    assert expected in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_table_of_the_layout_is_read_beside_others_and_an_only_one_wherever_it_is(tmp_path: Path) -> None:
    path, other = tmp_path / "set.h5", FRAME[["log_g"]] + 1
    other.to_hdf(path, key="catalog/gaia", format="table")
    assert read(path).equals(other)
    FRAME.to_hdf(path, key=PARAMS, format="table", mode="a")
    assert list(read(path)) == list(FRAME)
    with h5py.File(path, "r+") as file:
        file.move(PARAMS, "labels")
    with pytest.raises(DataError, match=r"has 2 tables \(catalog/gaia, labels\), none of them at dataset/params"):
        read(path)


PICKLES = {
    "names a function": Canary,
    "holds one in a list": lambda place: [(1, ["log_g", Canary(place)])],
    "is no list": lambda place: "log_g",
    "names by a list of tuples that hash without end": lambda place: _folded(60),
}


def _folded(times: int) -> list[Any]:
    names: Any = "log_g"
    for _ in range(times):
        names = (names, names)
    return [names]


@pytest.mark.parametrize("what", PICKLES)
@pytest.mark.parametrize("attribute", ["non_index_axes", "values_block_0_kind"])
def test_names_that_are_no_names_run_nothing(what: str, attribute: str, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    FRAME.to_hdf(path, key=PARAMS, format="table")
    place = PARAMS if attribute == "non_index_axes" else f"{PARAMS}/table"
    change_attribute(path, place, attribute, PICKLES[what](tmp_path / "canary"))
    with pytest.raises(DataError, match=f"{path}:{PARAMS}.*(list of names|pandas writes|by a tuple)"):
        read(path)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    FRAME.to_hdf(path, key=PARAMS, format="table")
    with h5py.File(path, "r+") as file:
        file[PARAMS].attrs["non_index_axes"] = np.bytes_(b"(lp4294967290\n.")
    with pytest.raises(DataError, match="non_index_axes: is not a plain list of names: its memo is longer than itself"):
        read(path)


def test_a_table_that_claims_more_rows_than_memory_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    FRAME[["log_g"]].to_hdf(path, key=PARAMS, format="table", complib="zlib", complevel=1)
    with h5py.File(path, "r+") as file:
        file[f"{PARAMS}/table"].resize((2**50,))
    with pytest.raises(DataError, match=f"{PARAMS}/table: would take .* GB of memory"):
        read(path)


def test_a_table_packed_by_a_filter_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    FRAME.to_hdf(path, key=PARAMS, format="table", complib="blosc", complevel=5)
    with pytest.raises(DataError, match=r"packed by the filter blosc \(32001\), which `pip install hdf5plugin` brings"):
        read(path)
