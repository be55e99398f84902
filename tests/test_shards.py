"""Files of spectra: their layouts, their order, and what tells two sets apart."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from toy_data import PIXELS, ROWS

from specvit.data.shards import find_files, write_shard
from specvit.data.views import Spectra, open_spectra
from specvit.utils.errors import DataError
from specvit.utils.quantities import FLUX


def test_a_written_file_is_read_by_pandas_and_h5py_at_the_documented_paths(write_set: Any, tmp_path: Path) -> None:
    path = write_set(tmp_path, 5)
    table: Any = pd.read_hdf(path)
    assert list(table.columns) == ["T_eff", "log_g", "M_H", "a_M", "C_M", "mag", "redshift", "snr"]
    assert (len(table), set(table.dtypes)) == (5, {np.dtype(np.float64)})
    with h5py.File(path) as file:
        assert file["spectrumdataset/wave"].shape == (PIXELS,)
        for name in ("flux", "error"):
            array = file[f"dataset/arrays/{name}/value"]
            assert (array.shape, array.dtype, array.chunks) == ((5, PIXELS), np.float32, None)


def test_a_failing_writer_leaves_the_old_file_and_no_other(write_set: Any, stars: Any, tmp_path: Path) -> None:
    path = write_set(tmp_path, 5)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_shard(path, **stars(3) | {"labels": "no table"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_every_layout_gives_the_same_rows_in_the_order_asked(files: dict[str, list[Path]], stars: Any) -> None:
    whole = stars(ROWS)
    for layout in ("contiguous", "chunked", "shards", "mixed"):
        for index in ([0], [79, 3, 10, 11, 3, 0], list(range(80)), [9, 8, 7, 12, 11, 10]):
            flux_BP, error_BP = open_spectra(files[layout], -1).gather(np.array(index))
            np.testing.assert_array_equal(flux_BP, whole["flux_NP"][index].astype(np.float32), err_msg=layout)
            np.testing.assert_array_equal(error_BP, whole["error_NP"][index].astype(np.float32), err_msg=layout)


def test_labels_and_origins_follow_the_rows_over_shards(files: dict[str, list[Path]], stars: Any) -> None:
    view = open_spectra(files["shards"], 40, subset="random", seed=1)
    expected = stars(ROWS)["labels"].iloc[view.rows_N]
    np.testing.assert_array_equal(view.label_values(("log_g", "mag")), expected[["log_g", "mag"]].to_numpy())
    names, rows = view.origins()
    starts = {str(path): start for path, start in zip(files["shards"], (0, 10, 11), strict=True)}
    assert [starts[name] + row for name, row in zip(names, rows, strict=True)] == view.rows_N.tolist()


def test_globs_come_in_natural_order_and_patterns_in_the_order_typed(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"set_{number}").mkdir()
        (tmp_path / f"set_{number}" / "dataset.h5").touch()
    found = find_files(["set_*/dataset.h5"], root=str(tmp_path), where="data.file_path")
    assert [path.parent.name for path in found] == ["set_1", "set_2", "set_10"]
    found = find_files(["set_10/dataset.h5", "set_[12]/*.h5"], root=str(tmp_path), where="data.file_path")
    assert [path.parent.name for path in found] == ["set_10", "set_1", "set_2"]


@pytest.mark.parametrize("layout", ["chunked", "shards", "mixed"])
def test_the_manifest_does_not_know_how_rows_are_stored(layout: str, files: Any, spectra: Spectra) -> None:
    assert open_spectra(files[layout], -1).manifest(("log_g",)) == spectra.manifest(("log_g",))


def one_label(made: dict[str, Any]) -> None:
    made["labels"].loc[33, "mag"] += 1e-9


def change_at(name: str, index: Any) -> Callable[[dict[str, Any]], None]:
    def change(made: dict[str, Any]) -> None:
        made[name][index] *= 1.001

    return change


@pytest.mark.parametrize(
    "change",
    [
        one_label,
        change_at("flux_NP", (0, 3)),
        change_at("flux_NP", (ROWS - 1, 200)),
        change_at("error_NP", (0, 0)),
        change_at("wave_P", PIXELS - 1),
        lambda made: made.update(labels=made["labels"].drop(columns="mag")),
        lambda made: made.update({name: made[name][:-1] for name in ("flux_NP", "error_NP", "labels")}),
    ],
    ids=["a label", "first pixel row", "last pixel row", "an error", "a wavelength", "a column", "a row less"],
)
def test_the_manifest_tells_other_data_apart(change: Any, stars: Any, spectra: Spectra, tmp_path: Path) -> None:
    made = stars(ROWS)
    change(made)
    write_shard(tmp_path / "a.h5", **made)
    assert open_spectra([tmp_path / "a.h5"], -1).manifest(("log_g",)) != spectra.manifest(("log_g",))


def test_a_further_column_does_not_rename_a_run_unless_it_is_the_label(
    stars: Any, spectra: Spectra, tmp_path: Path
) -> None:
    made = stars(ROWS)
    made["labels"]["age"] = np.arange(ROWS)
    write_shard(tmp_path / "a.h5", **made)
    wider = open_spectra([tmp_path / "a.h5"], -1)
    assert wider.manifest(("log_g",)) == spectra.manifest(("log_g",))
    assert wider.manifest(("age",)) != spectra.manifest(("log_g",))


def _raw(file: h5py.File, folder: Path) -> None:
    flux = file[FLUX][()]
    (folder / "raw.bin").write_bytes(flux.tobytes())
    del file[FLUX]
    file.create_dataset(FLUX, flux.shape, flux.dtype, external=[(folder / "raw.bin", 0, flux.nbytes)])


def _virtual(file: h5py.File, folder: Path, source: str = "flux.h5", rows: int = ROWS) -> None:
    layout = h5py.VirtualLayout((ROWS, PIXELS), np.float32)
    layout[:rows] = h5py.VirtualSource(source, "flux", (ROWS, PIXELS))[:rows]
    del file[FLUX]
    file.create_virtual_dataset(FLUX, layout)


def _linked(link: Any) -> Callable[[h5py.File, Path], None]:
    def change(file: h5py.File, folder: Path) -> None:
        del file[FLUX]
        file[FLUX] = link

    return change


@pytest.fixture
def linked(tmp_path: Path, write_set: Any) -> Callable[[Callable[[h5py.File, Path], None]], Path]:
    """Return a function that changes a set beside flux.h5, which holds its flux behind other values."""
    path = write_set(tmp_path, ROWS)
    with h5py.File(path) as file, h5py.File(tmp_path / "flux.h5", "w") as other:
        other["before"], other["flux"] = np.ones(1000), file[FLUX][()]

    def change(with_file: Callable[[h5py.File, Path], None]) -> Path:
        with h5py.File(path, "r+") as file:
            with_file(file, tmp_path)
        return path

    return change


@pytest.mark.parametrize(
    "change",
    [
        _linked(h5py.ExternalLink("flux.h5", "/flux")),
        _virtual,
        lambda file, folder: file.move(FLUX, "elsewhere") or _linked_to_itself(file),
    ],
    ids=["another file", "virtual", "elsewhere in the file"],
)
def test_links_lead_to_the_right_bytes(change: Any, linked: Any, spectra: Spectra) -> None:
    flux_BP, error_BP = open_spectra([linked(change)], -1).gather(np.arange(ROWS))
    expected, expected_error = spectra.gather(np.arange(ROWS))
    np.testing.assert_array_equal(flux_BP, expected)
    np.testing.assert_array_equal(error_BP, expected_error)


def _linked_to_itself(file: h5py.File) -> None:
    file[FLUX] = h5py.SoftLink("/elsewhere")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_linked(h5py.ExternalLink("gone.h5", "/flux")), f"{FLUX}: links to gone.h5 (/flux), which cannot be opened"),
        (_linked(h5py.ExternalLink("flux.h5", "/no")), f"{FLUX}: links to flux.h5 (/no), which cannot be opened"),
        (_linked(h5py.SoftLink("/no")), f"{FLUX}: is missing"),
        (_raw, "raw.bin, which is not an HDF5 file and is not read"),
        (lambda file, folder: _virtual(file, folder, "gone.h5"), "takes values from gone.h5, which is not there"),
        (lambda file, folder: _virtual(file, folder, rows=79), "has sources for 20224 of its 20480 values"),
    ],
)
def test_links_to_nothing_and_to_what_is_no_hdf5_are_refused(change: Any, expected: str, linked: Any) -> None:
    with pytest.raises(DataError) as refused:
        open_spectra([linked(change)], -1)
    assert expected in str(refused.value)


def test_a_linked_file_is_named_where_it_is_cut_off_and_not_taken_twice(linked: Any, tmp_path: Path) -> None:
    path = linked(_linked(h5py.ExternalLink("flux.h5", "/flux")))
    cut = tmp_path / "flux.h5"
    whole = cut.read_bytes()
    view = open_spectra([path], -1)
    cut.write_bytes(whole[:-4000])
    with pytest.raises(DataError, match=str(cut)):
        view.gather(np.arange(ROWS))
    cut.write_bytes(whole)
    shutil.copy(path, tmp_path / "other.h5")
    with pytest.raises(DataError, match=r"other\.h5: is named twice"):
        open_spectra([path, tmp_path / "other.h5"], -1)
