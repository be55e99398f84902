"""Run a plan: processes convert pieces of spectra, which are joined shard by shard; the manifest comes last.

Shape suffixes: B spectra of a piece, P pixels.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from specvit.convert.labels import in_order
from specvit.convert.noise import Noise, median_of
from specvit.convert.piece import Piece, digest_of, make_piece
from specvit.convert.plan import Plan
from specvit.convert.unpack import unpack, unpacked_name
from specvit.convert.work import Work
from specvit.data.shards import fill_shard
from specvit.utils.errors import DataError
from specvit.utils.files import check_space
from specvit.utils.processes import process_pool
from specvit.utils.quantities import ERROR, FLUX, MASKED, OBSERVED

PIECES_AHEAD = 3
"""Pieces per worker that are in progress at once."""
SECONDS = 1.0
"""Between two reports of unpacking."""

Report = Callable[..., None]
"""Called with (spectra done, spectra of the plan), while sources are unpacked with (MB done, MB in all, "MB")."""


def run_plan(plan: Plan, out: Path, *, workers: int, report: Report) -> dict[str, Any] | None:
    """Write the shards of a plan that `out` lacks; return the manifest, None if the conversion was finished before.

    Raises `DataError` or `FolderError`; finished shards stay, and the same plan resumes from there.
    """
    work = Work(out, plan)
    _check_space(plan, work)
    with work.claimed() as to_do:
        if not to_do:
            return None
        missing = {shard: rows for shard, rows in plan.shards.items() if work.record_of(shard) is None}
        done = len(plan.labels) - sum(map(len, missing.values()))
        most = max(len(plan.to_unpack), sum(-(-len(rows) // plan.piece_rows) for rows in missing.values()))
        with _executor(min(workers, most)) as pool:
            digests = _table_digests(plan, pool)
            copies = _unpack(plan, work, pool, report) if missing else {}
            report(done, len(plan.labels))
            pieces = (_pieces(plan, work, shard, copies) for shard in missing)
            made = _pieces_in_order(pool, workers, plan, chain.from_iterable(pieces))
            for shard in missing:
                of_shard = _pieces(plan, work, shard, copies)
                for piece in of_shard:
                    next(made)
                    done += len(piece.spectra)
                    report(done, len(plan.labels))
                _write_shard(plan, work, shard, of_shard)
            found = {path: future.result() for path, future in digests.items()}
        return work.finish(found)


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """Yield a pool of processes, for one worker this process; raises `DataError` if a process dies."""
    if workers <= 1:
        yield _SameProcess()
        return
    try:
        with process_pool(workers) as pool:
            yield pool
    except BrokenProcessPool as problem:
        remedy = "run the same command again to resume; --workers 1 needs least"
        raise DataError("a worker process died, perhaps for lack of memory", remedy=remedy) from problem


class _SameProcess(Executor):
    """Runs each task in the calling process when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as problem:
            future.set_exception(problem)
        return future


def _table_digests(plan: Plan, pool: Executor) -> dict[str, Future[dict[str, Any]]]:
    """Start the digests of sources with many spectra; those of one spectrum are digested when they are read."""
    return {} if plan.recipe.digest else {str(path): pool.submit(digest_of, path) for path in plan.sources}


def _unpack(plan: Plan, work: Work, pool: Executor, report: Report) -> dict[int, Path]:
    """Return copies of the sources in which rows cannot be looked up, by the sources' numbers."""
    copies = {n: work.copies / unpacked_name(plan.sources[n], n) for n in plan.to_unpack}
    missing = {number: copy for number, copy in copies.items() if not copy.exists()}
    total = max(1, sum(plan.to_unpack.values()) // 10**6)
    if missing:
        report(min(total, work.unpacked_bytes() // 10**6), total, "MB")
    jobs = [pool.submit(unpack, plan.sources[n], plan.recipe.choice, copy) for n, copy in missing.items()]
    for job in jobs:
        while wait([job], SECONDS).not_done:
            report(min(total, work.unpacked_bytes() // 10**6), total, "MB")
        job.result()
    if missing:
        report(total, total, "MB")
    return copies


def _pieces(plan: Plan, work: Work, shard: str, copies: dict[int, Path]) -> list[Piece]:
    """Return the pieces of a shard in order: always the same ones, finished or not."""
    rows = plan.shards[shard]
    names = {copy: plan.sources[source] for source, copy in copies.items()}
    pieces = []
    for number, start in enumerate(range(0, len(rows), plan.piece_rows)):
        here = rows[start : start + plan.piece_rows].tolist()
        files = [copies.get(int(plan.source_N[row]), plan.sources[plan.source_N[row]]) for row in here]
        spectra = tuple((path, int(plan.row_N[row])) for path, row in zip(files, here, strict=True))
        bad = {place: plan.bad[row] for place, row in enumerate(here) if row in plan.bad}
        pieces.append(Piece(work.piece(shard, number), spectra, names, bad))
    return pieces


def _pieces_in_order(pool: Executor, workers: int, plan: Plan, pieces: Iterable[Piece]) -> Iterator[None]:
    """Yield once per piece, in order, as soon as it is finished; later pieces are already in progress."""
    most = 0 if isinstance(pool, _SameProcess) else PIECES_AHEAD * workers
    ahead: deque[Future[None] | None] = deque()
    for piece in pieces:
        ahead.append(None if piece.path.exists() else pool.submit(make_piece, plan.recipe, piece))
        if len(ahead) > most:
            yield _result(ahead.popleft())
    while ahead:
        yield _result(ahead.popleft())


def _result(future: Future[None] | None) -> None:
    if future is not None:
        future.result()


def _write_shard(plan: Plan, work: Work, shard: str, pieces: list[Piece]) -> None:
    """Write a shard from its pieces, with simulated errors if those are asked for, and record it as finished."""
    rows = plan.shards[shard]
    good, left_out, digests, start = [], [], {}, 0
    for piece in pieces:
        with np.load(piece.path) as found:
            good.append(found["good"])
            digests |= json.loads(str(found["digests"]))
            for place, why in json.loads(str(found["why"])).items():
                row = int(rows[start + int(place)])
                left_out.append({"source": int(plan.source_N[row]), "row": int(plan.row_N[row]), "why": why})
        start += len(piece.spectra)
    kept = rows[np.concatenate(good)]
    if not len(kept):
        what = f"would hold no spectrum, since all {len(rows)} are bad; the first: {left_out[0]['why']}"
        raise DataError(what, where=str(work.out / shard), remedy="correct the sources")
    labels = plan.labels.iloc[kept].reset_index(drop=True)
    noise = Noise(plan, kept)
    if noise.columns:
        labels = in_order(labels.assign(**noise.columns))
    masked_N = np.zeros(len(kept), dtype=np.int64)

    def fill(file: h5py.File) -> None:
        flux, error = (file.create_dataset(name, (len(kept), plan.pixels), np.float32) for name in (FLUX, ERROR))
        if plan.observed:
            flux.attrs[OBSERVED] = True
        at = 0
        for piece in pieces:
            with np.load(piece.path) as found:
                flux_BP = found["flux"][found["good"]]
                own_BP = found["error"][found["good"]] if "error" in found else None
            here = slice(at, at + len(flux_BP))
            if len(flux_BP):
                error_BP = noise.errors(flux_BP, own_BP, here)
                flux[here], error[here] = flux_BP, error_BP
                if "snr" in noise.columns:
                    labels.iloc[here, labels.columns.get_loc("snr")] = median_of(flux_BP / error_BP)
                masked_N[here] = np.isnan(flux_BP).sum(axis=1)
            at = here.stop
        if masked_N.any():
            file[MASKED] = masked_N

    path = work.out / shard
    path.parent.mkdir(parents=True, exist_ok=True)
    fill_shard(path, fill, wave_P=plan.recipe.target.wave_P, labels=labels)
    work.record(shard, len(kept), left_out, digests, masked_N)


def _check_space(plan: Plan, work: Work) -> None:
    """Raise `DataError` if the disk has no room for what is still to be made."""
    out = work.out
    missing = [len(rows) for shard, rows in plan.shards.items() if not (out / shard).exists()]
    needed = 8 * plan.pixels * (sum(missing) + max(missing, default=0))  # and the pieces of the longest shard
    if missing:
        needed += max(0, sum(plan.to_unpack.values()) - work.unpacked_bytes())
    check_space(out, needed)
