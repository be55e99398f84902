"""A converted file beside its manifest: whether it is still what was written."""

from pathlib import Path

from specvit.convert.piece import digest_of
from specvit.convert.work import MANIFEST
from specvit.utils.files import read_json


def check(path: Path) -> tuple[str, str]:
    """Return a line about a file that a manifest in a folder above names, and a fault; "" where there is none."""
    full = path.resolve()
    for folder in list(full.parents)[:2]:
        outputs = read_json(folder / MANIFEST, {}).get("outputs", [])
        name = full.relative_to(folder).as_posix()
        entry = next((output for output in outputs if isinstance(output, dict) and output.get("file") == name), None)
        if entry is not None:
            if digest_of(full).get("sha256") == entry.get("sha256"):
                return f"{MANIFEST}: these bytes were written by `specvit data convert`", ""
            return "", f"it is not the file that {folder / MANIFEST} describes: it was changed or damaged since"
    return "", ""
