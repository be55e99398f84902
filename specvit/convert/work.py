"""The target folder of a conversion: its lock, its options, its finished shards, and the manifest.

During the conversion `OUT/.convert` holds the plan, pieces of spectra and a record of each finished shard; at the end
`OUT/manifest.json` replaces them. Files of another conversion are never changed.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from specvit.convert.choose import companion
from specvit.convert.options import INSTRUMENT, KEEP, as_typed
from specvit.convert.piece import digest_of
from specvit.convert.plan import Plan
from specvit.utils.errors import DataError, FolderError
from specvit.utils.files import locked, read_json, remove_leftovers, write_json

FORMAT = 5
"""Of manifest and plan; raised when the same options make other spectra."""
UNMASKED = 4
"""The format before: no masked pixels, so that a spectrum with a bad one, or without a label, was refused."""
UNMARKED = 3
"""The one before that: also without the mark of observed flux."""
MANIFEST, HIDDEN = "manifest.json", ".convert"
FRESH = "name another target, or remove it first"
FACTS = {"format", "options", "inputs", "folder", "sources"}
"""Keys that plan and manifest share: options and inputs."""


class Work:
    """The target folder `out` of one plan."""

    def __init__(self, out: Path, plan: Plan) -> None:
        """Nothing is looked at or written yet."""
        self.out, self.plan, self.folder = out, plan, out / HIDDEN
        self.pieces, self.copies = self.folder / "pieces", self.folder / "unpacked"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[bool]:
        """Hold the folder, and say whether something is left to do; raises where it holds anything else.

        `FolderError` if another process uses it, `DataError` if it is not of this plan.
        """
        self._check_place()
        if self._finished():
            yield False
            return
        with locked(self.folder / ".lock", seconds=0) as mine:
            if not mine:
                raise FolderError(
                    "another process converts into it", where=str(self.out), remedy="wait until it is done"
                )
            if self._finished():  # by that process, just now
                yield False
                return
            try:
                self._begin()
                yield True
            except DataError:  # what was asked for cannot be: as if it had not been
                if not self._anything_made():
                    shutil.rmtree(self.copies, ignore_errors=True)
                raise
            finally:
                if not self._anything_made() and not self.unpacked_bytes():
                    shutil.rmtree(self.folder, ignore_errors=True)
                    with contextlib.suppress(OSError):  # it is not empty: it is finished
                        self.out.rmdir()

    def record_of(self, shard: str) -> dict[str, Any] | None:
        """Return what is known of a finished shard, None for one that is still to be made."""
        record = read_json(self.folder / self._name(shard))
        path = self.out / shard
        if record is None or not path.exists() or path.stat().st_size != record["bytes"]:
            path.unlink(missing_ok=True)  # it stands there without a record only if we were killed in between
            return None
        return record

    def record(
        self, shard: str, rows: int, left_out: list[dict[str, Any]], digests: dict[str, Any], masked_N: np.ndarray
    ) -> None:
        """Note that a shard is finished, `masked_N` pixels of its rows masked; its pieces are not needed any more."""
        path = self.out / shard
        made = {"file": shard, "rows": rows, **digest_of(path)}
        if masked_N.any():
            made |= {"masked_pixels": int(masked_N.sum()), "masked_rows": int(np.count_nonzero(masked_N))}
        write_json(self.folder / self._name(shard), {**made, "left_out": left_out, "digests": digests})
        for piece in self.pieces.glob(f"{Path(shard).parent.name}.*.npz"):
            piece.unlink(missing_ok=True)

    def piece(self, shard: str, number: int) -> Path:
        """Return the file of a piece of a shard."""
        return self.pieces / f"{Path(shard).parent.name}.{number:05d}.npz"

    def finish(self, digests: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, remove the work folder, and return the manifest."""
        records = [record for shard in self.plan.shards if (record := self.record_of(shard)) is not None]
        for record in records:
            digests |= record["digests"]
        facts = self._facts(times=False)
        facts["sources"] = [
            {"file": name, "bytes": size, **digests[str(path)]}
            for path, (name, size) in zip(self.plan.sources, facts["sources"], strict=True)
        ]
        about = ("file", "rows", "bytes", "sha256", "masked_pixels", "masked_rows")
        facts["outputs"] = [{key: record[key] for key in about if key in record} for record in records]
        spectra = [spectrum for record in records for spectrum in record["left_out"]]
        names = [source["file"] for source in facts["sources"]]
        facts["left_out"] = [{"file": names[s["source"]], "row": s["row"], "why": s["why"]} for s in spectra]
        write_json(self.out / MANIFEST, facts)
        shutil.rmtree(self.folder, ignore_errors=True)
        return facts

    def _begin(self) -> None:
        """Note what was asked for, or check that it is what was asked for before; sweep up after a kill."""
        known, now = read_json(self.folder / "plan.json"), self._facts(times=True)
        if self._anything_made():
            if not _has_facts(known):
                raise DataError("holds a conversion of which the plan is lost", where=str(self.out), remedy=FRESH)
            self._compare(known, now, "begun", skipped="skip_bad" in known["options"])
        elif known != now:
            shutil.rmtree(self.copies, ignore_errors=True)
        if known != now:
            write_json(self.folder / "plan.json", now)
        for folder in (self.pieces, self.copies):
            folder.mkdir(exist_ok=True)
        for folder in (self.folder, self.pieces, self.copies, *((self.out / s).parent for s in self.plan.shards)):
            remove_leftovers(folder)

    def unpacked_bytes(self) -> int:
        """Return how much there is of copies of the sources, also of those that are being made."""
        found = 0
        for path in self.copies.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it was finished just now, and so renamed
                found += path.stat().st_size
        return found

    def _anything_made(self) -> bool:
        """Say whether a piece or a shard is made."""
        return any(True for pattern in ("pieces/*.npz", "*_*.json") for _ in self.folder.glob(pattern))

    def _name(self, shard: str) -> str:
        return f"{Path(shard).parent.name}.json"

    def _facts(self, *, times: bool) -> dict[str, Any]:
        """Return what was asked for: options, and each source and what lies beside it by name and size.

        `times` of change are added while the conversion runs.
        """
        plan = self.plan
        sources = []
        for path in plan.sources:
            found = path.stat()
            sources.append([path.relative_to(plan.base).as_posix(), found.st_size])
            sources[-1] += [found.st_mtime_ns] if times else []
        asked = plan.options
        named = {"labels": asked.labels, "source_wave": plan.wave_file, "wave": asked.wave}
        given = {key: Path(name) for key, name in named.items() if name not in (None, INSTRUMENT, KEEP)}
        inputs = {key: {"file": path.name, **digest_of(path)} for key, path in given.items()}
        for key, pattern in (("source_error", asked.source_error), ("source_mask", asked.source_mask)):
            if pattern:
                beside = [path for source in plan.sources if (path := companion(pattern, source)).exists()]
                inputs[key] = {"file": pattern, "bytes": {path.name: path.stat().st_size for path in beside}}
                inputs[key] |= {"times": [path.stat().st_mtime_ns for path in beside]} if times else {}
        facts = {"format": FORMAT, "options": asked.as_dict(), "inputs": inputs}
        return {**facts, "folder": str(plan.base), "sources": sources}

    def _finished(self) -> bool:
        """Say whether this very conversion is done; raises `DataError` if the folder is one of another's."""
        if not (self.out / MANIFEST).exists():
            return False
        known = read_json(self.out / MANIFEST)
        if not _has_facts(known) or not {"outputs", "left_out"} <= set(known):
            raise DataError("is not a manifest of a conversion", where=str(self.out / MANIFEST), remedy=FRESH)
        if known["left_out"] and not self.plan.options.skip_bad:
            what = f"was made by --skip-bad, which left out {len(known['left_out'])} spectra"
            raise DataError(what, where=str(self.out), remedy=f"type the same command, or {FRESH}")
        if not self.plan.bad:  # it made no difference, or was asked for again
            known["options"].pop("skip_bad", None)
        known["sources"] = [[source["file"], source["bytes"]] for source in known["sources"]]
        self._compare(known, self._facts(times=False), "made", skipped=bool(known["left_out"]))
        for output in known["outputs"]:
            path = self.out / output["file"]
            if not path.exists() or path.stat().st_size != output["bytes"]:
                raise DataError("is not what its manifest says", where=str(path), remedy=FRESH)
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a kill at the very end
        return True

    def _compare(self, known: dict[str, Any], now: dict[str, Any], how: str, *, skipped: bool) -> None:
        """Raise `DataError` unless the conversion found is the one asked for; `skipped`: spectra may be left out."""
        if known["format"] == UNMARKED and self.plan.observed:
            what = f"was {how} by an older specvit, which did not mark observed flux as such"
            remedy = f"train on it with data.observed=true, or {FRESH}"
            raise DataError(what, where=str(self.out), remedy=remedy if how == "made" else FRESH)
        if known["format"] not in (UNMARKED, UNMASKED, now["format"]):
            raise DataError(f"was {how} by another version of specvit", where=str(self.out), remedy=FRESH)
        if known["format"] != now["format"] and skipped:
            what = f"was {how} by an older specvit, which left out spectra with any bad pixel"
            raise DataError(what, where=str(self.out), remedy=FRESH)
        before, after = known["options"], dict(now["options"])
        if "skip_bad" not in before and not self.plan.bad:  # one that a bad spectrum stopped may go on without it
            after.pop("skip_bad", None)
        key = next((key for key in {**before, **after} if before.get(key) != after.get(key)), None)
        if key is not None:
            what, other = f"was {how} with {as_typed(before, key)}", as_typed(after, key)
            what += f", and not with {other}" if key in after else f"; this command has {other}"
            raise DataError(what, where=str(self.out), remedy=f"type the same command, or {FRESH}")
        if known["inputs"] != now["inputs"]:
            changed = [given["file"] for key, given in now["inputs"].items() if given != known["inputs"].get(key)]
            what = f"was {how} with another content of {', '.join(changed) or 'its files'}"
            raise DataError(what, where=str(self.out), remedy=FRESH)
        if known["folder"] != now["folder"] or known["sources"] != now["sources"]:
            others = {name for name, *_ in known["sources"]} ^ {name for name, *_ in now["sources"]}
            changed = sorted(others) or [name for name, *f in now["sources"] if [name, *f] not in known["sources"]]
            what = f"was {how} from other sources ({changed[0] if changed else known['folder']})"
            raise DataError(what, where=str(self.out), remedy=FRESH)

    def _check_place(self) -> None:
        """Raise `DataError` unless the target is a new folder, an empty one, or one of a conversion."""
        if self.out.suffix.lower() in (".h5", ".hdf5", ".hdf") or (self.out.exists() and not self.out.is_dir()):
            raise DataError(
                "is not a folder, as these sources need", where=str(self.out), remedy="name a folder as target"
            )
        if self.out.is_dir():
            inside = {path.name for path in self.out.iterdir()}
            if inside and not inside & {MANIFEST, HIDDEN}:
                what = f"is a folder with other files in it ({min(inside)})"
                raise DataError(what, where=str(self.out), remedy="name a new folder")


def _has_facts(known: Any) -> bool:
    return isinstance(known, dict) and set(known) >= FACTS


def check_manifest(path: Path) -> tuple[str, str]:
    """Return a line about a file that a manifest in a folder above names, and a fault; "" where there is none."""
    full = path.resolve()
    for folder in list(full.parents)[:2]:
        manifest = read_json(folder / MANIFEST, {})
        outputs = manifest.get("outputs", [])
        name = full.relative_to(folder).as_posix()
        entry = next((output for output in outputs if isinstance(output, dict) and output.get("file") == name), None)
        if entry is not None:
            command = "fetch" if "library" in manifest else "convert"
            if digest_of(full).get("sha256") == entry.get("sha256"):
                return f"{MANIFEST}: these bytes were written by `specvit data {command}`", ""
            return "", f"it is not the file that {folder / MANIFEST} describes: it was changed or damaged since"
    return "", ""
