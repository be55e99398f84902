"""Batches on the device. Where the arrays are (device, host memory, files) never changes what a batch holds.

Legend: N rows of a view, B rows of a step, P pixels.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config, DataConfig, NoiseConfig
from specvit.data.io_hints import beyond_memory, chunked_note
from specvit.data.labels import TargetCoder
from specvit.data.noise import FluxNorm, added_noise, evaluation_noise, sigma_of, whole_level, with_training_noise
from specvit.data.prefetch import Prefetcher
from specvit.data.validate import check_rows
from specvit.data.views import Spectra, SpectraView, epoch_order, first_masked
from specvit.utils.errors import DataError, is_out_of_memory
from specvit.utils.memory import JOBS_PER_GPU, free_memory
from specvit.utils.quantities import Batch

EVAL_BATCH = 256
"""Rows a forward pass in evaluation: fixed, so that a score never depends on a training setting."""
SHARE_OF_FREE = 0.5
"""Share of a device's free memory that resident spectra may take; the rest is for activations."""
COPY_ROWS = 4096
CACHED_EVAL_BYTES = 256 * 2**20


class SpectraStore:
    """Flux and error of a view, gathered by view row onto the device, wherever they are stored."""

    def __init__(self, spectra: SpectraView, data: DataConfig, device: torch.device) -> None:
        """On a CPU contiguous files are mapped and nothing is copied; chunked ones are unpacked once if they fit."""
        self.spectra, self.device = spectra, device
        self.storage = data.storage
        self.dtype = torch.float16 if data.storage == "float16" else torch.float32
        self.arrays: tuple[Tensor, Tensor] | None = None
        wanted = data.resident == "auto" and (device.type != "cpu" or not spectra.contiguous)
        size = 2 * len(spectra) * spectra.num_pixels * torch.finfo(self.dtype).bits // 8
        self.note = ""
        if wanted and size <= SHARE_OF_FREE * _free_bytes(device):
            self.arrays = self._load_if_it_fits()

    @property
    def location(self) -> str:
        """Where the spectra are stored, for the banner."""
        if self.arrays is not None:
            return "in memory" if self.device.type == "cpu" else f"on {self.device}"
        return "mapped from files" if self.spectra.contiguous else "read from chunked files (slow)"

    def gather(self, index_B: np.ndarray, on_device: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return flux, clipped at 0 unless it is observed, and error (B, P), float32, on the device.

        `on_device` is the same index on the device: copying it in each step would make the step wait for the device.
        """
        if self.arrays is None:
            flux_BP, error_BP = self.gather_host(index_B)
            flux_BP, error_BP = flux_BP.to(self.device), error_BP.to(self.device)
        else:
            index = torch.from_numpy(index_B).to(self.device) if on_device is None else on_device
            flux_BP, error_BP = self.arrays[0][index], self.arrays[1][index]
        return flux_BP.float(), error_BP.float()

    def gather_host(self, index_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return what `gather` does in the storage type, in host memory; raises `DataError`."""
        arrays = self.spectra.gather(index_B)
        check_rows(self.spectra, index_B, *arrays, self.storage)
        flux_BP, error_BP = map(torch.from_numpy, arrays)
        flux_BP = flux_BP if self.spectra.observed else flux_BP.clamp_(min=0.0)
        return flux_BP.to(self.dtype), error_BP.to(self.dtype)

    def gather_pinned(self, index_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return what `gather_host` does in page-locked memory, from which a copy to the device does not block."""
        flux_BP, error_BP = self.gather_host(index_B)
        return flux_BP.pin_memory(), error_BP.pin_memory()

    def _load_if_it_fits(self) -> tuple[Tensor, Tensor] | None:
        """Return flux and error on the device, or None if another process has meanwhile taken its free memory."""
        try:
            return self._load()
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what was copied before the error; the exception referred to it until here
        self.note = f"note: the spectra no longer fit on {self.device}, whose memory other processes use, too"
        return None

    def _load(self) -> tuple[Tensor, Tensor]:
        shape = (len(self.spectra), self.spectra.num_pixels)
        flux_NP = torch.empty(shape, dtype=self.dtype, device=self.device)
        error_NP = torch.empty_like(flux_NP)
        for start in range(0, shape[0], COPY_ROWS):
            rows = slice(start, min(start + COPY_ROWS, shape[0]))
            flux_NP[rows], error_NP[rows] = self.gather_host(np.arange(rows.start, rows.stop))
        return flux_NP, error_NP


@dataclass
class TrainData:
    """The training view: `batch(step)` is a pure function of the configuration and the step."""

    store: SpectraStore
    targets: Tensor
    flux_norm: FluxNorm
    noise: NoiseConfig
    order: str
    seed: int
    step_rows: int

    def __post_init__(self) -> None:
        """Start prefetching: for a GPU a thread gathers the next step's rows; large mapped files are read ahead."""
        self._epoch, self._order_N, self._order_on_device = -1, np.empty(0, dtype=np.int64), torch.empty(0)
        gather_ahead = self.store.arrays is None and self.store.device.type != "cpu"
        self._pool = ThreadPoolExecutor(1) if gather_ahead else None
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None
        spectra = self.store.spectra
        self._mapped = self.store.arrays is None and spectra.contiguous
        self._free_bytes = free_memory()
        from_disk = self._mapped and (self.order == "block" or spectra.num_bytes > self._free_bytes)
        self._prefetcher = None
        if from_disk and isinstance(spectra, Spectra):
            self._prefetcher = Prefetcher(spectra, order=self.order, seed=self.seed)

    @property
    def location(self) -> str:
        """Where the spectra are stored, for the banner."""
        return self.store.location

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps an epoch; the last rows of an epoch's order that fill no step wait for the next shuffle."""
        return len(self.targets) // self.step_rows

    def batch(self, step: int) -> Batch:
        """Return the batch of `step` (counted from 0 over all epochs): gathered, noised, normalised, on the device."""
        index_B, on_device = self._rows(step)
        flux_BP, error_BP = self._gather(step, index_B, on_device)
        flux_BP = with_training_noise(flux_BP, error_BP, self.noise, seed=self.seed, step=step)
        return Batch(self.flux_norm(flux_BP), self.targets[on_device])

    def close(self) -> None:
        """Stop prefetching."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def io_notes(self, step: int) -> list[str]:
        """Return notes for the user on the cost of reading the spectra in each step, and what would be cheaper."""
        notes = [self.store.note] if self.store.note else []
        if self._mapped:
            return notes + beyond_memory(self.store.spectra, self._free_bytes, self.order)
        if self.store.arrays is None:
            return [*notes, chunked_note(self.store.spectra, self._rows(step)[0])]
        return notes

    def _rows(self, step: int) -> tuple[np.ndarray, Tensor]:
        """Return the view rows of a step, on the host and on the device; an epoch's order is copied there once."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order_N = epoch_order(len(self.targets), seed=self.seed, epoch=epoch, order=self.order)
            self._order_on_device = torch.from_numpy(self._order_N).to(self.targets.device)
            self._epoch = epoch
        rows = slice(within * self.step_rows, (within + 1) * self.step_rows)
        if self._prefetcher is not None:
            self._prefetcher.reach(epoch, rows.start, rows.stop)
        return self._order_N[rows], self._order_on_device[rows]

    def _gather(self, step: int, index_B: np.ndarray, on_device: Tensor) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            return self.store.gather(index_B, on_device)
        ready = self._next[1].result() if self._next and self._next[0] == step else self.store.gather_pinned(index_B)
        if (step + 1) % self.steps_per_epoch:
            self._next = (step + 1, self._pool.submit(self.store.gather_pinned, self._rows(step + 1)[0]))
        device = self.store.device
        # torch reuses a page-locked block only after the copy from it has ended.
        flux_BP, error_BP = (part.to(device, non_blocking=True) for part in ready)
        return flux_BP.float(), error_BP.float()


@dataclass
class EvalData:
    """A validation or test view: fixed noise, fixed batches, in row order.

    Estimators, which are fitted in one go, get their training rows from it, too. With `with_sigma` a batch holds the
    noisy flux and its sigma (B, 2, P) instead of normalised flux (B, P).
    """

    store: SpectraStore
    targets: Tensor
    flux_norm: FluxNorm
    noise: NoiseConfig
    split: str
    with_sigma: bool = False

    def __post_init__(self) -> None:
        """Cache the noisy input of a small set instead of computing it in each epoch."""
        row_bytes = 4 * (1 + self.with_sigma) * self.store.spectra.num_pixels
        small = len(self.targets) * row_bytes <= CACHED_EVAL_BYTES
        self._cache: dict[int, Batch] | None = {} if small else None

    def __len__(self) -> int:
        """Number of spectra."""
        return len(self.targets)

    def batches(self) -> Iterator[Batch]:
        """Yield the whole set in batches of `EVAL_BATCH` rows; the last one may be shorter."""
        for start in range(0, len(self), EVAL_BATCH):
            if self._cache is not None and start in self._cache:
                yield self._cache[start]
                continue
            batch = self.rows(np.arange(start, min(start + EVAL_BATCH, len(self))))
            if self._cache is not None:
                self._cache[start] = batch
            yield batch

    def rows(self, index_B: np.ndarray) -> Batch:
        """Return view rows `index_B`, which must be consecutive."""
        flux_BP, error_BP = self.store.gather(index_B)
        sigma_BP = sigma_of(error_BP, self.noise)
        if sigma_BP is not None:
            rows_B = self.store.spectra.rows_N[index_B]
            unit = evaluation_noise(rows_B, flux_BP.shape[1], seed=self.noise.eval_seed, split=self.split)
            flux_BP = flux_BP + sigma_BP * torch.from_numpy(unit).to(flux_BP.device)
        targets = self.targets[int(index_B[0]) : int(index_B[-1]) + 1]
        if not self.with_sigma:
            return Batch(self.flux_norm(flux_BP), targets)
        if self.store.spectra.observed:
            sigma_BP = error_BP if sigma_BP is None else torch.hypot(error_BP, sigma_BP.expand_as(error_BP))
        assert sigma_BP is not None
        if bool((sigma_BP <= 0).any()):
            row = int(index_B[int((sigma_BP <= 0).expand_as(flux_BP).any(1).nonzero()[0])])
            where, what = self.store.spectra.describe_row(row), "has an error of 0, and templates are weighed by errors"
            raise DataError(what, where=where, remedy="correct or remove that row")
        return Batch(torch.stack((flux_BP, sigma_BP.expand_as(flux_BP)), dim=1), targets)


def encoded(spectra: SpectraView, coder: TargetCoder, config: Config, device: torch.device) -> Tensor:
    """Return the targets of all rows, (N, K) or classes (N,), on the device."""
    return torch.from_numpy(np.ascontiguousarray(coder.encode(spectra.label_values(config.data.param)))).to(device)


def eval_data(
    spectra: SpectraView, split: str, config: Config, coder: TargetCoder, flux_norm: FluxNorm, device: torch.device
) -> EvalData:
    """Return a validation or test view with the noise and the statistics of the run."""
    return EvalData(
        store=SpectraStore(spectra, config.data, device),
        targets=encoded(spectra, coder, config, device),
        flux_norm=norm_of(spectra, config, flux_norm).to(device),
        noise=added_noise(spectra, config.noise),
        split=split,
        with_sigma=kind_of(config.model).needs_sigma,
    )


def norm_of(spectra: SpectraView, config: Config, flux_norm: FluxNorm) -> FluxNorm:
    """Return a run's normaliser for a view, whose pixels may be masked; raises `DataError` if it cannot fill them."""
    where = first_masked(spectra)
    return flux_norm.filling(config.data.flux_norm, where) if where else flux_norm


def signal_to_noise(spectra: SpectraView, noise: NoiseConfig) -> np.ndarray:
    """Return S/N (N,) = median over pixels of flux/error, over the level of all noise (infinite for clean flux).

    Masked pixels do not count.
    """
    snr_N = np.empty(len(spectra))
    for start in range(0, len(spectra), COPY_ROWS):
        rows = np.arange(start, min(start + COPY_ROWS, len(spectra)))
        flux_BP, error_BP = spectra.gather(rows)
        flux_BP = flux_BP if spectra.observed else np.clip(flux_BP, 0.0, None)
        with np.errstate(divide="ignore", invalid="ignore"):
            median = np.median if spectra.masked_N is None else np.nanmedian
            snr_N[rows] = median(flux_BP / error_BP, axis=1)
    level = whole_level(spectra, noise)
    return snr_N / level if level > 0 else np.full(len(spectra), np.inf)


def _free_bytes(device: torch.device) -> int:
    """Return the device's free memory; of a GPU that several workers share, this worker's part."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) // int(os.environ.get(JOBS_PER_GPU, 1))
    return free_memory()
