"""Attribution of a prediction to pixels: attention and saliency of a model, and the weights of the best estimator.

The best estimator is linear about each star. It takes a star's labels to be near their true values and to have, before
anything is observed, the variance of their box, and the amplitude of the flux to be unknown. With the slopes
J = d flux / sigma by label (coordinates of the box) and amplitude, and the prior's precision A = 12 for labels and 0
for the amplitude, its weights on flux / sigma are the rows of (J J^T + A)^-1 J.

Shape suffixes: N stars, B stars of a batch, P pixels, T tokens, S tokens with the prefix, L blocks or labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specvit.analysis.attribution_report import WEIGHTS, AttributionReport, SettingAttribution
from specvit.analysis.bounds.inputs import Stars, open_stars
from specvit.analysis.grouping import TestSet
from specvit.analysis.records import Run
from specvit.config.schema import Config, ViTConfig, effective_level
from specvit.data.batches import EvalData, eval_data
from specvit.data.labels import LabelScaler
from specvit.data.noise import sigma_of
from specvit.data.splits import open_split, split_manifest
from specvit.data.views import SpectraView
from specvit.models import ViT
from specvit.physics.fisher import CHUNK, slopes
from specvit.run.predictor import Predictor, load_predictor
from specvit.tracking.console import Console
from specvit.training.device import resolve_device, set_up_torch
from specvit.utils.errors import CheckpointError, DataError
from specvit.utils.text import counted

Array = np.ndarray
BATCH, MOST_WEIGHTS = 64, 2**24
"""Most stars at a time, and most attention weights of a block, 67 MB; memory holds some three times as many at once."""
MEAN_CHUNK = 4096
"""Rows read at a time for the mean spectrum."""
PRECISION = 12.0
"""One over the variance of a uniform distribution from 0 to 1."""


@dataclass(frozen=True)
class Attention:
    """Shares of attention, means over stars."""

    blocks_LP: Array
    """Attention of the pooled token to each pixel, per block, averaged over heads; sums to 1 with `prefix_L`."""
    prefix_L: Array
    """Its attention to the CLS token, which belongs to no pixel."""
    rollout_P: Array
    """Attention through all blocks (Abnar & Zuidema 2020, ACL, p. 4190); sums to 1 over pixels."""
    even_P: Array
    """Equal attention to all tokens that the model computes, on the same pixels."""


@dataclass(frozen=True)
class Attribution:
    """Use of each pixel by one model, means over stars."""

    gradient_P: Array
    """d label / d flux, signed; label unit per unit of the files' flux."""
    share_P: Array
    """Pixel's share of the variance that noise gives to the prediction, star by star; sums to 1. For a run without
    noise, the files' errors take its place."""
    noise: float | None
    """Standard deviation that noise gives to the prediction, to first order, label unit; root mean square. None for a
    run without noise."""
    attention: Attention | None
    """None for a model without attention."""


@dataclass(frozen=True)
class OptimalWeights:
    """Use of each pixel by the best estimator that is linear about each star."""

    share_P: Array
    """Pixel's share of the variance that noise gives to the estimate, mean over stars; sums to 1."""
    noise: float
    """Standard deviation that noise gives to the estimate, label unit; root mean square over stars."""


def attributions_of(
    test_set: TestSet, label: str, rows: int, device: str, say: Callable[[str], None]
) -> AttributionReport:
    """Return the attributions of all runs of a test set over its first `rows`.

    Raises `DataError` if the spectra have changed since the runs were tested, and `CheckpointError`.
    """
    config = test_set.runs[0].config
    torch_device = resolve_device(device, "--device")
    set_up_torch(config.train, None, Console("lines").say, torch_device)
    spectra = open_split(config.data, "test", lambda *_: None)
    if split_manifest(config.data, "test", spectra) != test_set.runs[0].identity["data"]["test"]:
        remedy = "put the spectra back that the runs were tested on"
        raise DataError("is not what it was", where="data.test_path", remedy=remedy)
    stars = min(rows, len(spectra))
    say(f"test set: {test_set.description}, {counted(len(test_set.runs), 'run')}, first {counted(stars, 'row')}")
    settings = []
    for setting in test_set.settings:
        of_runs = [_run_attribution(run, spectra, label, stars, torch_device) for run in setting.runs]
        settings.append(SettingAttribution(setting, of_runs))
        say(f"{setting.name}: {counted(len(setting.runs), 'run')}")
    starts = range(0, stars, MEAN_CHUNK)
    parts = (spectra.gather(np.arange(start, min(start + MEAN_CHUNK, stars)))[0] for start in starts)
    flux_P, count_P = np.zeros(spectra.num_pixels), np.zeros(spectra.num_pixels)
    for flux_BP in parts:
        flux_P, count_P = flux_P + np.nansum(flux_BP, axis=0), count_P + (~np.isnan(flux_BP)).sum(axis=0)
    flux_P /= np.maximum(count_P, 1)
    best = _known_optimum(config, label, stars, say)
    return AttributionReport(label, test_set, stars, spectra.wave_P, flux_P, best, settings)


def _run_attribution(run: Run, spectra: SpectraView, label: str, stars: int, device: torch.device) -> Attribution:
    path = run.folder / WEIGHTS
    predictor = load_predictor(path, run.config, device, run.run_id)
    predictor.check_pixels(spectra)
    view = eval_data(spectra, "test", run.config, predictor.coder, predictor.flux_norm, device)
    return attribution(predictor, view, label, stars, str(path))


def _known_optimum(config: Config, label: str, stars: int, say: Callable[[str], None]) -> OptimalWeights | None:
    """Return the best estimator's weights; None with a note if the built-in model does not know them."""
    note = "note: no optimum to compare with: "
    if effective_level(config.noise) == 0:
        say(f"{note}without noise a single pixel is enough")
        return None
    try:
        known = open_stars(config, stars)
    except DataError as problem:
        say(f"{note}{problem}")
        return None
    if label not in known.names:
        say(f"{note}the built-in model has no {label}")
        return None
    return optimal_weights(known, label)


def attribution(predictor: Predictor, view: EvalData, label: str, stars: int, where: str = "best.ckpt") -> Attribution:
    """Return the attribution of `label` to pixels over the first `stars` rows of a view.

    Of a predicted distribution it is that of the location, the output of the label's number. The noise is that of the
    run's evaluation, fixed row by row. Raises `CheckpointError` for a model whose prediction is the same for every
    spectrum.
    """
    assert isinstance(predictor.coder, LabelScaler)
    column = predictor.coder.names.index(label)
    unit = predictor.coder.scale[column] / predictor.flux_norm.scale
    sums: dict[str, Any] = dict.fromkeys(("gradient", "share", "blocks", "rollout"), 0.0)
    sensitive, variance = 0, 0.0
    batch = _batch_size(predictor)
    for start in range(0, stars, batch):
        rows_B = np.arange(start, min(start + batch, stars))
        flux_BP = view.rows(rows_B).flux_BP.detach().clone().requires_grad_()
        slope_BP = torch.autograd.grad(predictor.model(flux_BP)[:, column].sum(), flux_BP)[0].double() * unit
        error_BP = view.store.gather(rows_B)[1]
        sigma = sigma_of(error_BP, view.noise)
        part_BP = (slope_BP * (error_BP if sigma is None else sigma)).square()
        part_BP = torch.where(error_BP.isnan(), 0.0, part_BP)  # in masked pixels
        whole_B1 = part_BP.sum(dim=1, keepdim=True)
        sums["gradient"] += slope_BP.sum(dim=0)
        sums["share"] += torch.where(whole_B1 > 0, part_BP / whole_B1, 0.0).sum(dim=0)
        sensitive += int((whole_B1 > 0).sum())
        variance += float(whole_B1.sum())
        if isinstance(predictor.model, ViT):
            blocks_LBS, rollout_BS = attention_of(predictor.model, flux_BP)
            sums["blocks"] += blocks_LBS.sum(dim=1)
            sums["rollout"] += rollout_BS.sum(dim=0)
    if not sensitive:
        raise CheckpointError("gives every spectrum the same", where=where, remedy="see why it learnt nothing")
    means = {name: value.cpu().numpy() / stars for name, value in sums.items() if isinstance(value, Tensor)}
    attention = None
    if isinstance(predictor.model, ViT):
        pixels = view.store.spectra.num_pixels
        attention = _on_pixels(predictor, means["blocks"], means["rollout"], pixels, predictor.model.num_prefix_tokens)
    noise = (variance / stars) ** 0.5 if effective_level(view.noise) > 0 else None
    return Attribution(means["gradient"], means["share"] * stars / sensitive, noise, attention)


def optimal_weights(stars: Stars, label: str) -> OptimalWeights | None:
    """Return the best estimator's use of pixels; None if no star has a spectrum with finite flux / sigma."""
    column, share_P, variance, used = stars.names.index(label), np.zeros(0), 0.0, 0
    for start in range(0, len(stars), CHUNK):
        rows_B = np.arange(start, min(start + CHUNK, len(stars)))
        scaled_BP, slope_BLP, _ = slopes(stars.observe, rows_B, stars.place_NL[rows_B])
        finite_B = torch.isfinite(scaled_BP).all(dim=1) & torch.isfinite(slope_BLP).all(dim=(1, 2))
        part_bP = best_weights(slope_BLP[finite_B], scaled_BP[finite_B])[:, column].square()
        whole_b1 = part_bP.sum(dim=1, keepdim=True)
        share_P = (part_bP / whole_b1).sum(dim=0).numpy() + (share_P if used else 0.0)
        variance += float(whole_b1.sum()) * float(stars.span_L[column]) ** 2
        used += int(finite_B.sum())
    return OptimalWeights(share_P / used, (variance / used) ** 0.5) if used else None


def best_weights(slope_BLP: Tensor, scaled_BP: Tensor) -> Tensor:
    """Return the estimator's weights (B, L, P) on flux / sigma, from its slopes and from the flux / sigma itself."""
    slopes_BMP = torch.cat((slope_BLP, scaled_BP[:, None]), dim=1)
    prior_M = torch.full(slopes_BMP.shape[1:2], PRECISION, dtype=slopes_BMP.dtype)
    prior_M[-1] = 0.0
    matrix_BMM = slopes_BMP @ slopes_BMP.mT + torch.diag(prior_M)
    return torch.linalg.solve(matrix_BMM, slopes_BMP)[:, :-1]


def _batch_size(predictor: Predictor) -> int:
    """Return how many stars are processed together."""
    model = predictor.model
    if not isinstance(model, ViT) or not isinstance(predictor.config.model, ViTConfig):
        return BATCH
    weights = predictor.config.model.num_attention_heads * (model.num_tokens + model.num_prefix_tokens) ** 2
    return max(1, min(BATCH, MOST_WEIGHTS // weights))


def attention_of(model: ViT, flux_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of the pooled token to each token: per block (L, B, S), and by rollout (B, S).

    Rollout takes half of a block's output to come from its attention and half from the residual connection.
    """
    with torch.no_grad():
        weights, pooled_BS = model.attention(flux_BP)
        of_blocks = [torch.einsum("bs,bst->bt", pooled_BS, weights_BSS) for weights_BSS in weights]
        rollout_BS = pooled_BS
        for weights_BSS in reversed(weights):
            rollout_BS = 0.5 * rollout_BS + 0.5 * torch.einsum("bs,bst->bt", rollout_BS, weights_BSS)
    return torch.stack(of_blocks), rollout_BS


def spread(token_T: Array, pixels: int, patch: int, stride: int, kept_T: Iterable[int] | None = None) -> Array:
    """Return tokens' shares on pixels (P,), each evenly over its patch; pixels outside all patches get 0.

    `kept_T` are the tokens' numbers among all patches; None: these are all.
    """
    pixel_P = np.zeros(pixels)
    for number, value in zip(range(len(token_T)) if kept_T is None else kept_T, token_T, strict=True):
        pixel_P[number * stride : number * stride + patch] += value / patch
    return pixel_P


def _on_pixels(predictor: Predictor, blocks_LS: Array, rollout_S: Array, pixels: int, prefix: int) -> Attention:
    assert isinstance(predictor.config.model, ViTConfig) and isinstance(predictor.model, ViT)
    kept_N = None if predictor.model.kept_N is None else predictor.model.kept_N.tolist()
    sizes = (pixels, predictor.config.model.patch_size, predictor.config.model.stride_size, kept_N)
    rollout_T = rollout_S[prefix:] / rollout_S[prefix:].sum()
    return Attention(
        blocks_LP=np.stack([spread(block_S[prefix:], *sizes) for block_S in blocks_LS]),
        prefix_L=blocks_LS[:, :prefix].sum(axis=1),
        rollout_P=spread(rollout_T, *sizes),
        even_P=spread(np.full(len(rollout_T), 1 / len(rollout_T)), *sizes),
    )
