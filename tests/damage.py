"""Ways to damage a file of spectra."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import tables

from specvit.utils.quantities import ERROR, FLUX, PARAMS

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


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None], format: str = "table") -> Damage:
    """Return a damage that puts `change(table)` in the place of the label table, or removes it."""

    def damage(path: Path) -> None:
        changed = change(pd.read_hdf(path))
        with pd.HDFStore(path) as store:
            store.remove(PARAMS)
            if changed is not None:
                store.put(PARAMS, changed, format=format, track_times=False)

    return damage


def replaced(put: Callable[[h5py.File], Any]) -> Damage:
    """Return a damage that puts what `put(file)` makes in the place of the flux."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[FLUX]
            put(file)

    return damage


def packed_by_blosc(path: Path) -> None:
    """Pack the flux by a filter that PyTables has and h5py lacks."""
    with h5py.File(path, "r+") as file:
        flux = file[FLUX][()]
        del file[FLUX]
    with tables.open_file(path, "r+") as file:
        folder, name = f"/{FLUX}".rsplit("/", 1)
        file.create_carray(folder, name, obj=flux, filters=tables.Filters(complevel=5, complib="blosc"))


def change_attribute(path: Path, name: str, attribute: str, value: object) -> None:
    """Pickle a value into an attribute, as PyTables does."""
    with h5py.File(path, "r+") as file:
        file[name].attrs[attribute] = np.bytes_(pickle.dumps(value, protocol=0))


def cut(share: float) -> Damage:
    """Return a damage that keeps a share of the file's bytes."""
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


def set_at(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that sets one value of an array."""

    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def as_folder(path: Path) -> None:
    """Put a folder in the file's place."""
    path.unlink()
    path.mkdir()


def replace(path: Path) -> None:
    """Put another file of that name in the file's place, as `mv` does."""
    other = path.with_name("other.h5")
    other.write_bytes(b"other" * 1000)
    os.replace(other, path)


def rewrite_chunked(path: Path) -> None:
    """Store flux and error in compressed chunks, as many tools do."""
    with h5py.File(path, "r+") as file:
        for name in (FLUX, ERROR):
            value = file[name][()]
            del file[name]
            file.create_dataset(name, data=value, chunks=(min(7, len(value)), 50), compression="gzip")


def damage_chunk(path: Path, name: str, *, chunk: int, rows: int = 4) -> None:
    """Pack an array with gzip, `rows` a chunk, and overwrite bytes of one chunk."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        made = file.create_dataset(name, data=values, chunks=(rows, values.shape[1]), compression="gzip")
        place = made.id.get_chunk_info(chunk).byte_offset
    with open(path, "r+b") as stream:
        stream.seek(place + 30)
        stream.write(bytes(40))
