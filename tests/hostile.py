"""Files whose author means harm: what is hidden in them makes a canary, a folder, when it is run.

Each maker takes the path of a sound file, which it changes, and the canary's. `attempt` runs a command on the result.
"""

import contextlib
import io
import os
import pickle
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import tables

from specvit.utils.quantities import ERROR, FLUX, PARAMS

Maker = Callable[[Path, Path], Any]
SECONDS = 90


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        """`place` is the folder."""
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def attempt(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code, -1 for a traceback and -2 if it does not end, and output."""
    from specvit.cli import main

    def out_of_time(*_: object) -> None:
        raise TimeoutError

    screen, words = io.StringIO(), sys.argv
    signal.signal(signal.SIGALRM, out_of_time)
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        try:
            sys.argv = ["specvit", *arguments]
            signal.alarm(SECONDS)
            code = int(main(arguments) or 0)
        except SystemExit as problem:
            code = problem.code if isinstance(problem.code, int) else 1
        except TimeoutError:
            code = -2
        except BaseException:
            code = -1
            screen.write(traceback.format_exc())
        finally:
            signal.alarm(0)
            sys.argv = words
    return code, screen.getvalue()


def _attribute(place: str, name: str) -> Maker:
    def change(path: Path, canary: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[place].attrs[name] = np.bytes_(pickle.dumps(Canary(canary), protocol=0))

    return change


def _names(pickled: Callable[[], bytes]) -> Maker:
    def change(path: Path, canary: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[PARAMS].attrs["non_index_axes"] = np.bytes_(pickled())

    return change


def _folded() -> bytes:
    names: Any = "log_g"
    for _ in range(60):
        names = (names, names)
    return pickle.dumps([(1, [names])], protocol=0)


def _instead(name: str, put: Callable[[h5py.File, Path], Any]) -> Maker:
    def change(path: Path, canary: Path) -> None:
        with h5py.File(path, "r+") as file:
            values = file[name][()]
            del file[name]
            with h5py.File(path.with_name("outside.h5"), "w") as other:
                other["before"], other["values"] = np.ones(5000, np.float32), values
            put(file, path)

    return change


def _frame(change_frame: Callable[[pd.DataFrame, Path], pd.DataFrame], format: str) -> Maker:
    def change(path: Path, canary: Path) -> None:
        frame: Any = pd.read_hdf(path)
        with h5py.File(path, "r+") as file:
            del file[PARAMS]
        change_frame(frame, canary).to_hdf(path, key=PARAMS, mode="r+", format=format)

    return change


def _object_array(where: str, name: str) -> Maker:
    def change(path: Path, canary: Path) -> None:
        with tables.open_file(path, "r+") as file:
            if name in file.get_node(where):
                file.remove_node(where, name)
            array = file.create_vlarray(where, name, atom=tables.ObjectAtom())
            array.append(Canary(canary))

    return change


def _fixed_names(path: Path, canary: Path) -> None:
    _frame(lambda frame, canary: frame, "fixed")(path, canary)
    _object_array(f"/{PARAMS}", "axis0")(path, canary)
    with h5py.File(path, "r+") as file:
        file[f"{PARAMS}/axis0"].attrs["kind"] = np.bytes_(b"object")


def _raw(file: h5py.File, path: Path) -> None:
    path.with_name("secret").write_bytes(b"password" * 65536)
    file.create_dataset(FLUX, (64, 256), np.float32, external=[(path.with_name("secret"), 0, 65536)])


def _virtual(file: h5py.File, path: Path) -> None:
    layout = h5py.VirtualLayout((64, 256), np.float32)
    layout[:] = h5py.VirtualSource("gone.h5", "values", (64, 256))
    file.create_virtual_dataset(FLUX, layout)


def _claims(path: Path, canary: Path) -> None:
    with h5py.File(path, "r+") as file:
        file[f"{PARAMS}/table"].resize((2**50,))


HDF5: dict[str, Maker] = {
    "attribute of /": _attribute("/", "x"),
    "title of /": _attribute("/", "TITLE"),
    "attribute of dataset": _attribute("dataset", "x"),
    "attribute of the flux": _attribute(FLUX, "x"),
    "attribute of the table's group": _attribute(PARAMS, "x"),
    **{f"{name} of the table": _attribute(PARAMS, name) for name in ("info", "non_index_axes", "values_cols")},
    **{f"{name} of the table": _attribute(PARAMS, name) for name in ("data_columns", "TITLE", "FILTERS", "nan_rep")},
    "attribute of the table itself": _attribute(f"{PARAMS}/table", "x"),
    "names of a block": _attribute(f"{PARAMS}/table", "values_block_0_kind"),
    "type of a block": _attribute(f"{PARAMS}/table", "values_block_0_dtype"),
    "array of objects beside": _object_array("/", "extra"),
    "labels as objects": _frame(lambda frame, canary: frame.assign(name=[Canary(canary)] * len(frame)), "fixed"),
    "names as objects": _fixed_names,
    "names without end": _names(_folded),
    "names with a long memo": _names(lambda: b"(lp4294967290\n."),
    "table that claims 2**50 rows": _claims,
    "flux in another HDF5 file": _instead(
        FLUX, lambda f, _: f.__setitem__(FLUX, h5py.ExternalLink("outside.h5", "values"))
    ),
    "error in another HDF5 file": _instead(
        ERROR, lambda f, _: f.__setitem__(ERROR, h5py.ExternalLink("outside.h5", "values"))
    ),
    "flux that is other values": _instead(
        FLUX, lambda f, _: f.__setitem__(FLUX, h5py.ExternalLink("outside.h5", "before"))
    ),
    "flux in a secret file": _instead(FLUX, _raw),
    "flux linked to nothing": _instead(FLUX, lambda f, _: f.__setitem__(FLUX, h5py.SoftLink("/nothing"))),
    "flux linked to itself": _instead(FLUX, lambda f, _: f.__setitem__(FLUX, h5py.SoftLink(f"/{FLUX}"))),
    "flux without a source": _instead(FLUX, _virtual),
    "circle of links": lambda path, canary: h5py.File(path, "r+").__setitem__("dataset/circle", h5py.SoftLink("/")),
}


def _npz(change: Callable[[dict[str, Any], Path], Any]) -> Maker:
    def make(path: Path, canary: Path) -> None:
        with np.load(path) as arrays:
            held = dict(arrays)
        change(held, canary)
        np.savez(path, **held)

    return make


def _header(claim: str, version: bytes = b"\x01\x00") -> Maker:
    """Return a maker that gives flux.npy a header of its own."""

    def make(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        head = (claim.replace("CANARY", str(canary)) + "\n").encode()
        size = len(head).to_bytes(2 if version == b"\x01\x00" else 4, "little")
        members["flux.npy"] = b"\x93NUMPY" + version + size + head + members["flux.npy"][128:]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return make


def _member(name: str, content: bytes, flag: int = 0) -> Maker:
    def make(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)
        if flag:
            raw = bytearray(path.read_bytes())
            for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
                place = raw.rindex(mark)
                raw[place + at] |= flag
            path.write_bytes(bytes(raw))

    return make


def _bomb(path: Path, canary: Path) -> None:
    """Add 400 MB of zeros, 400 kB in the file, as a label would be read."""
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez_compressed(path, **held, logg2=np.zeros((len(held["flux"]), 780_000)))


def _described(shape: str, kind: str = "'<f8'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


NPZ: dict[str, Maker] = {
    "labels of objects": _npz(lambda held, canary: held.update(log_g=np.array([Canary(canary)] * 64, dtype=object))),
    "flux of objects": _npz(lambda held, canary: held.update(flux=np.array([[Canary(canary)]] * 64, dtype=object))),
    "records of objects": _npz(lambda held, canary: held.update(flux=np.zeros(64, dtype=[("a", object)]))),
    "1e9 rows claimed": _header(_described("(1000000000, 256)")),
    "2**62 rows claimed": _header(_described(f"({2**62}, 256)")),
    "negative rows": _header(_described("(-64, 256)")),
    "header that is a call": _header(
        "{'descr': __import__('os').mkdir('CANARY'), 'fortran_order': False, 'shape': (1,)}"
    ),
    "header of brackets": _header("(" * 5000),
    "header of 20 MB": _header(" " * 20_000_000, b"\x02\x00"),
    "type without end": _header(_described("(64,)", repr([("x" * 9, "<f8", (2**40,))]))),
    "name that leads out": _member("../../escape.npy", b"no array"),
    "locked member": _member("extra.npy", b"\x93NUMPY", flag=1),
    "zip bomb": _bomb,
    "no zip": lambda path, canary: path.write_bytes(b"PK\x03\x04" + bytes(500)),
    "cut off": lambda path, canary: path.write_bytes(path.read_bytes()[:-3000]),
}


def _card(name: str, value: str) -> Maker:
    """Return a maker that puts a value into the last header that has a key, as it stands in the file."""

    def make(path: Path, canary: Path) -> None:
        raw = path.read_bytes()
        place = raw.rindex(f"{name:<8}=".encode())
        path.write_bytes(raw[:place] + f"{name:<8}= {value:>20}".encode().ljust(80)[:80] + raw[place + 80 :])

    return make


FITS: dict[str, Maker] = {
    "1e9 rows claimed": _card("NAXIS2", "1000000000"),
    "2**62 rows claimed": _card("NAXIS2", str(2**62)),
    "negative rows": _card("NAXIS2", "-64"),
    "rows of no length": _card("NAXIS1", "0"),
    "rows in words": _card("NAXIS2", "'many'"),
    "999 fields": _card("TFIELDS", "999"),
    "fields in words": _card("TFIELDS", "'x'"),
    "field of no type": _card("TFORM1", "'9999999999Z'"),
    "field of 10**12 values": _card("TFORM2", "'999999999999D'"),
    "field of differing lengths": _card("TFORM2", "'1PD(99)'"),
    "heap beyond the file": _card("PCOUNT", str(2**40)),
    "other bits": _card("BITPIX", "7"),
    "name of dots": _card("TTYPE1", "'../../x'"),
    "no end": lambda path, canary: path.write_bytes(path.read_bytes().replace(b"END     ", b"        ")),
    "cut off": lambda path, canary: path.write_bytes(path.read_bytes()[:-3000]),
}

YAML = {
    "call": "!!python/object/apply:os.mkdir [CANARY]",
    "new object": "data: !!python/object/new:os.mkdir [CANARY]",
    "name of a function": "data: {subset_seed: !!python/name:os.mkdir}",
    "module": "data: {subset_seed: !!python/module:antigravity}",
    "tuple": "data: {param: !!python/tuple [log_g]}",
    "local tag": "data: !secret {subset_seed: 1}",
    "3000 brackets": "data: {subset_seed: " + "[" * 3000 + "]" * 3000 + "}",
    "3000 brackets that stay open": "[" * 3000,
    "aliases without end": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 26)),
    "alias of itself": "data: &d {subset_seed: *d}",
    "target of Hydra": "data: {_target_: os.mkdir, path: CANARY}",
    "interpolation of itself": "data: {subset_seed: '${data.subset_seed}'}",
    "resolver that is not there": "data: {subset_seed: '${run:mkdir CANARY}'}",
    "5000 digits": "data: {subset_seed: " + "9" * 5000 + "}",
    "NUL": "data: {subset_seed: \0}",
    "not UTF-8": b"data: {subset_seed: \xff\xfe}",
    "a list": "- 1\n- 2\n",
    "a word": "hello",
}
"""Text of a file of settings."""

Content = Callable[[dict[str, Any], Any], dict[str, Any] | Any]
CHECKPOINT: dict[str, Content] = {
    "whole": lambda content, evil: evil,
    "one more key": lambda content, evil: content | {"x": evil},
    "a key": lambda content, evil: content | {evil: 1},
    "coder": lambda content, evil: content | {"coder": evil},
    "in the coder": lambda content, evil: content | {"coder": {**content["coder"], "names": [evil]}},
    "model": lambda content, evil: content | {"model": evil},
    "in the model": lambda content, evil: content | {"model": {**content["model"], "x": evil}},
    "run_id": lambda content, evil: content | {"run_id": evil},
    "epoch": lambda content, evil: content | {"epoch": evil},
    "in a list of lists": lambda content, evil: content | {"x": [[[evil]]]},
}
"""What an evil object takes the place of, in what torch saves."""


def plain_pickle(path: Path, canary: Path) -> None:
    """Put a plain pickle in a checkpoint's place."""
    path.write_bytes(pickle.dumps({"model": Canary(canary)}))


def old_pickle(path: Path, canary: Path) -> None:
    """Put a checkpoint of torch's old format, without a zip, in a checkpoint's place."""
    import torch

    torch.save({"model": Canary(canary)}, path, _use_new_zipfile_serialization=False)
