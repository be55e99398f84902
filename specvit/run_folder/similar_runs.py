"""Finds runs with the same settings on other data: where a file changed, the run's name does, too, and that is said."""

from typing import Any

from specvit.run_folder.folder import RunFolder
from specvit.utils.files import read_json


def note_of_other_data(folder: RunFolder, identity: dict[str, Any]) -> str:
    """Return the note of a new run beside which one with the same settings has data of the same shape, else ""."""
    name = folder.path.name.removesuffix(f"-{folder.run_id}")
    found = []
    for path in sorted(folder.path.parent.glob(f"{name}-*/run.json")):
        if path.parent == folder.path:
            continue
        try:
            other = (read_json(path) or {}).get("identity", {})
        except OSError:  # somebody else's, perhaps: the note is a courtesy
            continue
        if _without_data(other) == _without_data(identity) and (words := _differences(other["data"], identity["data"])):
            found.append(f"{path.parent} has the same settings on other data ({words} differ)")
    return f"note: {found[-1]}; this is a new run" if found else ""


def _without_data(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in identity.items() if name != "data"}


def _differences(other: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return which digests of two manifests differ; "" if the data is of other kind or shape, which is no accident."""
    if any(split not in other or other[split].get("shape") != part.get("shape") for split, part in ours.items()):
        return ""
    kinds = {"labels": "labels", "rows": "spectra"}
    differing = [
        f"{split} {kinds[kind]}"
        for split, part in ours.items()
        for kind in kinds
        if kind in part and part[kind] != other[split].get(kind)
    ]
    return ", ".join(differing)
