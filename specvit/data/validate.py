"""Refuses spectra that are not finite, naming file and row, when they are read: on a device a check costs a sync.

In float32 a single NaN would end the run as `diverged`, in fp16 the gradient scaler would skip it unseen.
Legend: B rows gathered, P pixels.
"""

import math
import shlex

import numpy as np
import torch

from specvit.data.shards import faint_rows
from specvit.data.views import COUNT_COMMAND, SpectraView
from specvit.utils.errors import DataError

CHECK_ROWS = 1024


def check_rows(
    spectra: SpectraView, index_B: np.ndarray, flux_BP: np.ndarray, error_BP: np.ndarray, storage: str
) -> None:
    """Raise `DataError` unless view rows `index_B` have finite flux and finite error, not negative, that fit `storage`.

    One pass over each array; a second one only to find what is wrong. Masked pixels do not count.
    """
    if spectra.masked_N is not None:
        flux_BP, error_BP = np.nan_to_num(flux_BP), np.nan_to_num(error_BP)
    highest = torch.finfo(getattr(torch, storage)).max
    lowest_flux, highest_flux = (bound.item() for bound in torch.aminmax(torch.from_numpy(flux_BP)))
    lowest_error, highest_error = (bound.item() for bound in torch.aminmax(torch.from_numpy(error_BP)))
    # With a NaN in it, an array's minimum and maximum are NaN, which fails every comparison.
    if lowest_flux > -math.inf and highest_flux <= highest and lowest_error >= 0 and highest_error <= highest:
        if storage == "float16":
            _refuse_faint(spectra, index_B, flux_BP, error_BP)
        return
    for name, values_BP, lowest in (("flux", flux_BP, -math.inf), ("error", error_BP, 0.0)):
        _refuse_first(spectra, index_B, name, values_BP, (lowest, highest), storage)


def _refuse_faint(spectra: SpectraView, index_B: np.ndarray, flux_BP: np.ndarray, error_BP: np.ndarray) -> None:
    """Raise `DataError` for the first row most of whose values float16 would turn into zeros or rough steps."""
    lowest = torch.finfo(torch.float16).smallest_normal
    for name, values_BP in (("flux", flux_BP), ("error", error_BP)):
        rows = np.flatnonzero(faint_rows(values_BP, lowest))
        if len(rows):
            what = f"{name} is mostly below {lowest:.1e}, which float16 turns into zeros or a few steps"
            where = spectra.describe_row(int(index_B[rows[0]]))
            remedy = "set data.storage=float32, or multiply flux and error by one factor"
            raise DataError(what, where=where, remedy=remedy)


def check_view(spectra: SpectraView, storage: str) -> None:
    """Check every row of a view; raises `DataError`."""
    for start in range(0, len(spectra), CHECK_ROWS):
        index_B = np.arange(start, min(start + CHECK_ROWS, len(spectra)))
        check_rows(spectra, index_B, *spectra.gather(index_B), storage)


def _refuse_first(
    spectra: SpectraView,
    index_B: np.ndarray,
    name: str,
    values_BP: np.ndarray,
    bounds: tuple[float, float],
    storage: str,
) -> None:
    """Raise `DataError` for the first row that holds a value outside `bounds` or NaN."""
    lowest, highest = bounds
    bad_BP = ~((values_BP >= lowest) & (values_BP <= highest) & np.isfinite(values_BP))
    rows = np.flatnonzero(np.asarray(bad_BP.any(axis=1)))
    if not len(rows):
        return
    row = int(rows[0])
    where = spectra.describe_row(int(index_B[row]))
    file = shlex.quote(where.rsplit(" row ", 1)[0])
    remedy = f"correct or remove that row; `specvit data inspect {file}` lists all"
    if not np.isfinite(values_BP[row]).all():
        remedy += f", and `{COUNT_COMMAND}` masks such pixels"
        raise DataError(f"{name} is not finite", where=where, remedy=remedy)
    if values_BP[row].min() < lowest:
        raise DataError(f"{name} is negative", where=where, remedy=remedy)
    what = f"{name} {values_BP[row].max():.3g} does not fit into {storage}"
    raise DataError(what, where=where, remedy="set data.storage=float32")
