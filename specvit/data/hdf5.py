"""HDF5 files opened for reading; each failure becomes a `DataError` of one sentence."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from specvit.utils.errors import DataError, explain, os_fault

OF_HDF5PLUGIN = {307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028}
"""Numbers of the filters of the package hdf5plugin."""
REPACK = "copy the values into this file, as `h5repack FILE NEW` does"


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; a failure becomes a `DataError` that names the file."""
    if path.is_dir():
        raise DataError("is a folder, not an HDF5 file", where=str(path), remedy="name the file in it")
    if not path.exists():
        raise DataError("is not there", where=str(path), remedy="check the path")
    try:
        opened = h5py.File(path, "r")
    except OSError as problem:
        raise unreadable(problem, path) from problem
    with opened as file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError) as problem:  # the latter two where its structure is damaged
            raise unreadable(problem, path) from problem


def unreadable(problem: Exception, path: Path) -> DataError:
    """Return HDF5's error about a file as one sentence."""
    if "unable to lock file" in str(problem):
        remedy = "wait for it; where no process has it open, set HDF5_USE_FILE_LOCKING=FALSE"
        return DataError("is being written by another process", where=str(path), remedy=remedy)
    if fault := os_fault(problem):
        cause, remedy = explain(fault, str(path))
        return DataError(cause, remedy=remedy)
    if "filter returned failure" in str(problem):
        remedy = "`specvit data inspect FILE` names the rows; copy or make it again"
        return DataError("has a damaged chunk, which cannot be unpacked", where=str(path), remedy=remedy)
    reason = "is truncated" if "truncated" in str(problem) else f"is not a readable HDF5 file ({short(problem)})"
    return DataError(reason, where=str(path), remedy="copy or make it again")


def open_dataset(group: h5py.Group, path: Path, name: str) -> h5py.Dataset:
    """Return a dataset by its path in a file or group, after checking that h5py can read all of its values.

    A link leads to another HDF5 file, `dataset.file.filename`. Raises `DataError` if it is missing, links to
    what cannot be opened, is packed by a filter that is not installed, or keeps its values in files that are not HDF5.
    """
    where = at(path, f"{group.name}/{name}")
    dataset = group.get(name)
    if not isinstance(dataset, h5py.Dataset):
        if link := _link(group, name):
            raise DataError(f"links to {link}, which cannot be opened", where=where, remedy="put that file there")
        remedy = "`specvit data inspect FILE` shows what it holds; docs/data.md has the layout"
        raise DataError("is missing", where=where, remedy=remedy)
    try:
        shape = dataset.dtype and dataset.shape
    except TypeError as problem:
        raise DataError(f"has an odd type ({problem})", where=where, remedy="store it as float32") from problem
    if shape is None:
        raise DataError("is empty", where=where, remedy="make the file again")
    if dataset.external:
        what = f"keeps its values in {dataset.external[0][0]}, which is not an HDF5 file and is not read"
        raise DataError(what, where=where, remedy=REPACK)
    if dataset.is_virtual:
        _check_sources(dataset, where)
    check_filters(dataset, where)
    return dataset


def check_filters(dataset: h5py.Dataset, where: str) -> None:
    """Raise `DataError` for a dataset that is packed by a filter that HDF5 lacks here, also with hdf5plugin."""
    plan = dataset.id.get_create_plist()
    for number, _, _, name in map(plan.get_filter, range(plan.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            with contextlib.suppress(ImportError):
                importlib.import_module("hdf5plugin")  # registers its filters
        if not h5py.h5z.filter_avail(number):
            called = name.decode(errors="replace") or "without a name"
            what = f"is packed by the filter {called} ({number})"
            remedy = "have it written with gzip or without a filter"
            if number in OF_HDF5PLUGIN:
                what, remedy = f"{what}, which `pip install hdf5plugin` brings", f"install it, or {remedy}"
            else:
                what += ", which is not known here"
            raise DataError(what, where=where, remedy=remedy)


def filter_of(dataset: h5py.Dataset) -> str:
    """Return the names of the filters that pack a dataset, "" for none."""
    plan = dataset.id.get_create_plist()
    return " ".join(plan.get_filter(i)[3].decode(errors="replace") for i in range(plan.get_nfilters()))


def _check_sources(dataset: h5py.Dataset, where: str) -> None:
    """Raise `DataError` unless every value of a virtual dataset has a source: HDF5 reads zeros for those without."""
    owner = Path(dataset.file.filename)
    covered = 0
    for space, file_name, name, _ in dataset.virtual_sources():
        covered += space.get_select_npoints()
        source = owner if file_name == "." else owner.parent / file_name
        if "%" in file_name + name or not source.is_file():
            what = f"takes values from {file_name}, which is not there"
            raise DataError(what, where=where, remedy="put that file there")
        with open_file(source) as file:
            open_dataset(file, source, name)
    if covered < int(dataset.size or 0):
        what = f"is virtual and has sources for {covered} of its {dataset.size} values"
        raise DataError(what, where=where, remedy=REPACK)


def _link(group: h5py.Group, name: str) -> str:
    """Return where the first link to another file on a path leads, "" if there is none."""
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        with contextlib.suppress(KeyError, ValueError, OSError):
            link = group.get("/".join(parts[:end]), getlink=True)
            if isinstance(link, h5py.ExternalLink):
                return f"{link.filename} ({link.path})"
    return ""


def at(path: Path, name: str) -> str:
    """Return file and path in it, for a message."""
    return f"{path}:{name.strip('/')}"


def short(problem: Exception) -> str:
    """Return the first line of a library's message, at most 120 characters."""
    return str(problem).splitlines()[0][:120] if str(problem) else type(problem).__name__
