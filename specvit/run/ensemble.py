"""Runs that predict together: observed flux -> a table of labels and flags, a row a spectrum.

Legend: N spectra, B rows of a batch, P pixels, K labels or classes, R runs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config
from specvit.data.batches import EVAL_BATCH
from specvit.data.labels import ClassCoder, LabelScaler, TargetCoder
from specvit.data.noise import FluxNorm
from specvit.data.shards import as_float32, grid_difference, masked_pixels, same_wavelengths
from specvit.data.training_range import Measures, measure
from specvit.metrics.conformal import of_all
from specvit.run import error_bars
from specvit.run.error_bars import Ends, ErrorBars, Uncalibrated, find_error_bars
from specvit.run.predictor import Predictor, load_predictor
from specvit.run_folder.folder import DONE, FAILED, RunFolder
from specvit.run_folder.identity import read_config
from specvit.training.device import resolve_device, set_up_torch
from specvit.utils.errors import ConfigError, DataError, FolderError

MASKED = "masked"
"""Column of a table of predictions: the share of a spectrum's pixels that are masked."""
FLAGS = ("flux_outside", "snr_outside", "not_finite")
"""Columns of a table of predictions, True where: flux or S/N is not of the training range; nothing can be predicted."""


@dataclass(frozen=True)
class Ensemble:
    """One or more trained runs that predict the same labels on the same pixels."""

    runs: tuple[Predictor, ...]
    device: torch.device
    error_bars: ErrorBars | None = None
    uncalibrated: str = ""
    """Why there are no error bars."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, or the one of which classes are predicted."""
        return self._coder.names

    @property
    def wave(self) -> np.ndarray:
        """Wavelengths (P,), vacuum Angstrom."""
        return self.runs[0].wave_P

    @property
    def config(self) -> Config:
        """The configuration of the first run; further seeds differ in `train.seed`."""
        return self.runs[0].config

    @property
    def observed(self) -> bool | None:
        """The runs' `data.observed`, which holds for shards; raises `DataError` where they differ."""
        found = {run.config.data.observed for run in self.runs}
        if len(found) > 1:
            what = "runs differ in data.observed, which says whether flux below 0 is clipped"
            raise DataError(what, remedy="name runs that have the same")
        return found.pop()

    @property
    def needs_error(self) -> bool:
        """Whether a model weighs pixels by the errors of the spectrum."""
        return any(kind_of(run.config.model).needs_sigma for run in self.runs)

    @property
    def max_masked(self) -> float:
        """Share of a spectrum's pixels that may be masked: none for a run that kept no mean spectrum to fill them."""
        without = any(run.flux_norm.fill_P is None and run.config.data.flux_norm == "none" for run in self.runs)
        return 0.0 if without else min(run.config.data.max_masked for run in self.runs)

    @property
    def _coder(self) -> TargetCoder:
        return self.runs[0].coder

    def check_level(self, level: float | None, where: str = "level") -> str:
        """Return a note if error bars at `level` (None: the default) are infinite, or "".

        Raises `ConfigError` for an impossible level, and for one that is named without error bars.
        """
        if level is not None and not (isinstance(level, Real) and 0 < level < 1):
            shown = f"{level:g}" if isinstance(level, Real) else repr(level)
            raise ConfigError(f"is {shown}", where=where, remedy="give a share between 0 and 1, such as 0.9")
        if self.error_bars is not None:
            return error_bars.note_of_level(self.error_bars, self.labels, level or error_bars.DEFAULT_LEVEL)
        if level is not None:
            raise ConfigError(f"has no effect without error bars: {self.uncalibrated}", where=where)
        return ""

    def predict(self, flux: Any, error: Any = None, wave: Any = None, level: float | None = None) -> Any:
        """Return a DataFrame, a row a spectrum, of observed spectra as they are: no noise is added.

        `flux` is (N, P), or (P,) of one spectrum, in the units of the training set (see the flag `flux_outside`);
        `error`, of the same shape, its 1 sigma. Pixels whose flux is not finite, whose error is not finite or not above
        0, or that are masked in a `numpy.ma.MaskedArray`, are filled as in evaluation, up to `max_masked`. `wave` (P,),
        vacuum Angstrom, is checked against the run's. Columns: each label, with several runs `<label>_run_sd`, of
        calibrated runs `<label>_std` and the interval that holds a share `level` (default 0.9) of true labels,
        `flux_snr`, `masked`, and the flags; `docs/predict.md` has their meaning. Warns of infinite error bars. Raises
        `DataError`, and `ConfigError` for an impossible `level`.
        """
        if note := self.check_level(level):
            warnings.warn(note, stacklevel=2)
        return self.table(flux, error, wave, level)

    def table(self, flux: Any, error: Any = None, wave: Any = None, level: float | None = None) -> Any:
        """Return what `predict` does, without a warning."""
        import pandas as pd

        flux_NP, error_NP = _rows(flux, "flux"), None if error is None else _rows(error, "error")
        self._check(flux_NP, error_NP, wave)
        norms = self.filling("flux") if self.max_masked else [run.flux_norm for run in self.runs]
        starts = range(0, max(1, len(flux_NP)), EVAL_BATCH)
        bars, outer = self.error_bars, level or error_bars.DEFAULT_LEVEL
        ends = None if bars is None else (bars.at(error_bars.STD_LEVEL), bars.at(outer))
        tables = []
        for here in (slice(start, start + EVAL_BATCH) for start in starts):
            flux_BP, error_BP = as_float32(np.ma.getdata(flux_NP[here]), "flux"), None
            masked_BP = np.ma.getmaskarray(flux_NP[here]) | ~np.isfinite(flux_BP)
            if error_NP is not None:
                error_BP = as_float32(np.ma.getdata(error_NP[here]), "error")
                masked_BP |= np.ma.getmaskarray(error_NP[here]) | masked_pixels(flux_BP, error_BP)
            tables.append(self._table(flux_BP, error_BP, masked_BP, norms, ends))
        return pd.concat(tables, ignore_index=True)

    def filling(self, where: str) -> list[FluxNorm]:
        """Return each run's normaliser for spectra with masked pixels; raises `DataError` if a run has none."""
        return [run.flux_norm.filling(run.config.data.flux_norm, where) for run in self.runs]

    def _check(self, flux_NP: np.ndarray, error_NP: np.ndarray | None, wave: Any) -> None:
        """Raise `DataError` for arrays that do not fit the run or each other."""
        if wave is not None:
            wave_P = _numbers(wave, "wave", "(pixels,)", {0, 1}).astype(np.float64).ravel()
            if not same_wavelengths(wave_P, self.wave):
                what = grid_difference(wave_P, self.wave)
                raise DataError(what, where="wave", remedy="bring the spectra to the run's pixels, its .wave")
        if flux_NP.shape[1] != len(self.wave):
            what = f"has {flux_NP.shape[1]} pixels a spectrum, the run was trained on {len(self.wave)}"
            raise DataError(what, where="flux", remedy="bring the spectra to the run's pixels, its .wave")
        if error_NP is not None and error_NP.shape != flux_NP.shape:
            what = f"has shape {error_NP.shape}, the flux {flux_NP.shape}"
            raise DataError(what, where="error", remedy="give each pixel one")
        if error_NP is None and self.needs_error:
            what = f"is needed: model={self.config.model.kind} weighs pixels by their errors"
            raise DataError(what, where="error", remedy="give the 1 sigma of each pixel")

    @torch.no_grad()
    def _table(
        self,
        flux_BP: np.ndarray,
        error_BP: np.ndarray | None,
        masked_BP: np.ndarray,
        norms: Sequence[FluxNorm],
        ends: tuple[Ends, Ends] | None,
    ) -> Any:
        """Return the table of one batch, at most `EVAL_BATCH` rows: batches round alike wherever spectra come from."""
        import pandas as pd

        usable_B = masked_BP.sum(axis=1) <= self.max_masked * len(self.wave)
        # A row with too many masked pixels is predicted as the mean spectrum and left out afterwards, so that the
        # others' bits do not depend on it. Masked pixels are NaN, as in evaluation.
        mean_P, nan = self.runs[0].flux_norm.mean_P.cpu().numpy(), np.float32(np.nan)
        flux_BP = np.where(usable_B[:, None], np.where(masked_BP, nan, flux_BP), mean_P)
        if error_BP is not None:
            error_BP = np.where(usable_B[:, None], np.where(masked_BP, nan, error_BP), np.float32(1))
        runs = zip(self.runs, norms, strict=True)
        outputs = [_output(run, norm, flux_BP, error_BP, self.device) for run, norm in runs]
        usable_B &= np.all([np.isfinite(output_BX).all(axis=1) for output_BX in outputs], axis=0)  # so large overflows
        measures = [measure(flux_BP, norm) for norm in norms]
        columns = self._label_columns(outputs, measures[0].snr_B, ends)
        columns |= {"flux_snr": measures[0].snr_B, MASKED: masked_BP.mean(axis=1), **self._flags(measures, usable_B)}
        table = pd.DataFrame(columns)
        table.loc[~usable_B, [name for name in columns if name not in (MASKED, *FLAGS)]] = None
        return table

    def _label_columns(
        self, outputs: Sequence[np.ndarray], snr_B: np.ndarray, ends: tuple[Ends, Ends] | None
    ) -> dict[str, Any]:
        """Return the columns of the labels from each run's outputs (B, X), whose number depends on its loss."""
        coder = self._coder
        if isinstance(coder, LabelScaler):
            label_RBK = np.stack([run.task.decode(out_BX) for run, out_BX in zip(self.runs, outputs, strict=True)])
            columns = dict(zip(coder.names, label_RBK.mean(axis=0).T, strict=True))
            if len(self.runs) > 1:
                spread_KB = label_RBK.std(axis=0, ddof=1).T
                columns |= {f"{name}_run_sd": sd_B for name, sd_B in zip(coder.names, spread_KB, strict=True)}
            if ends is not None:
                found = [run.task.uncertainty(out_BX) for run, out_BX in zip(self.runs, outputs, strict=True)]
                std_RBK = of_all([one and one.std for one in found])
                columns |= error_bars.columns(coder.names, *ends, label_RBK, std_RBK, snr_B)
            return columns
        share_BK = torch.from_numpy(np.stack(outputs)).double().softmax(dim=2).mean(dim=0).numpy()
        label, names = coder.names[0], coder.class_names
        import pandas as pd

        class_B = np.array(names, dtype=object)[share_BK.argmax(axis=1)]
        columns: dict[str, Any] = {f"{label}_class": pd.array(class_B, dtype="string")}  # or missing
        return columns | {f"{label}_p_{name}": share_BK[:, k] for k, name in enumerate(names)}

    def _flags(self, measures: Sequence[Measures], usable_B: np.ndarray) -> dict[str, np.ndarray]:
        """Return the flags; those of the range only where every run knows its own."""
        ranges = [run.training_range for run in self.runs]
        known = [(one, of_run) for one, of_run in zip(ranges, measures, strict=True) if one is not None]
        flags = {}
        if len(known) == len(ranges):
            flags["flux_outside"] = usable_B & np.any([one.flux_outside(of_run) for one, of_run in known], axis=0)
            flags["snr_outside"] = usable_B & np.any([one.snr_outside(of_run) for one, of_run in known], axis=0)
        return {**flags, "not_finite": ~usable_B}


def load_ensemble(
    folders: Sequence[RunFolder], device_name: str, say: Callable[[str], None], where: str = "device"
) -> Ensemble:
    """Return trained runs, with notes on what their user should know; raises `SpecvitError`.

    That is `FolderError` for a run that failed or is given twice, `DataError` for runs that do not fit each other.
    """
    configs = [_trained_config(folder, say) for folder in folders]
    twice = next((one for i, one in enumerate(folders) if one.run_id in [run.run_id for run in folders[:i]]), None)
    if twice is not None:
        raise FolderError("is named twice", where=str(twice.path), remedy="name each run once")
    device = resolve_device(device_name, where)
    set_up_torch(configs[0].train, None, say, device)
    runs = []
    for folder, config in zip(folders, configs, strict=True):
        run = load_predictor(folder.file("best.ckpt"), config, device, folder.run_id)
        if runs:
            _check_alike(run, runs[0], folder.path)
        runs.append(run)
        if run.training_range is None:
            what = "an older specvit trained it, which did not record the range of its spectra"
            say(f"note: {folder.path.name}: {what}: flags flux_outside and snr_outside are left out")
    try:
        return Ensemble(tuple(runs), device, find_error_bars(folders, configs, runs[0].coder))
    except Uncalibrated as reason:
        if isinstance(runs[0].coder, LabelScaler):
            say(f"note: no error bars: {reason}")
        return Ensemble(tuple(runs), device, uncalibrated=str(reason))


def _trained_config(folder: RunFolder, say: Callable[[str], None]) -> Config:
    """Return the configuration of a run that can predict; raises `FolderError`."""
    config, status, state = read_config(folder.path), folder.status(), folder.state()
    cause = f": {status['cause']}" if status.get("cause") else ""
    if state in FAILED:
        what = f"ended as {state}{cause}, and a failed run predicts nothing"
        raise FolderError(what, where=str(folder.path), remedy="name a run that has finished")
    if not folder.file("best.ckpt").exists():
        remedy = "run its training command again to finish it"
        raise FolderError("has no trained model yet", where=str(folder.path), remedy=remedy)
    if state == "plateau":
        say(f"WARNING: {folder.path.name} is a plateau{cause}; its predictions are hardly better than the mean label")
    elif state not in DONE:
        shown = state or "unknown state"
        say(f"WARNING: {folder.path.name} has not finished ({shown}); its best weights so far are used")
    return config


def _check_alike(run: Predictor, first: Predictor, path: Path) -> None:
    """Raise `DataError` unless a run predicts what the first one does, on the same pixels."""
    one, other = _predicts(run.coder), _predicts(first.coder)
    if one != other:
        remedy = "name runs that predict the same"
        raise DataError(f"predicts {one}, and the first run {other}", where=str(path), remedy=remedy)
    if not same_wavelengths(run.wave_P, first.wave_P):
        what = grid_difference(run.wave_P, first.wave_P).replace("the run was", "the first run was")
        raise DataError(what, where=str(path), remedy="name runs of the same pixels")


def _predicts(coder: TargetCoder) -> str:
    names = ", ".join(coder.names)
    return f"{names} in classes {', '.join(coder.class_names)}" if isinstance(coder, ClassCoder) else names


def _rows(values: Any, name: str) -> np.ndarray:
    """Return (N, P) numbers; raises `DataError`."""
    array = _numbers(values, name, "(spectra, pixels), or (pixels,) of one spectrum", {1, 2})
    return array[None] if array.ndim == 1 else array


def _numbers(values: Any, name: str, wanted: str, dimensions: set[int]) -> np.ndarray:
    """Return an array of numbers of so many dimensions, as `wanted` says; raises `DataError`."""
    remedy = f"give numbers, {wanted}"
    try:
        array = np.asanyarray(values)
    except ValueError as problem:
        raise DataError("has rows of different lengths", where=name, remedy=remedy) from problem
    if array.ndim not in dimensions or array.dtype.kind not in "fiu":
        raise DataError(f"has shape {array.shape} and type {array.dtype}", where=name, remedy=remedy)
    return array


def _output(
    run: Predictor, norm: FluxNorm, flux_BP: np.ndarray, error_BP: np.ndarray | None, device: torch.device
) -> np.ndarray:
    """Return a run's normalised outputs (B, K), as in evaluation of observed flux, rounded as it was stored."""
    dtype = torch.float16 if run.config.data.storage == "float16" else torch.float32
    flux = torch.from_numpy(flux_BP).to(dtype).to(device).float()
    if not kind_of(run.config.model).needs_sigma:
        return run.model(norm(flux)).float().cpu().numpy()
    assert error_BP is not None
    error = torch.from_numpy(error_BP).to(dtype).to(device).float()  # whose noise the flux has
    return run.model(torch.stack((flux, error), dim=1)).float().cpu().numpy()
