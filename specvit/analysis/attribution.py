"""Where a trained model looks: its attention, and how its prediction follows each pixel. Trains nothing.

Shape suffixes: N stars, B stars of a batch, P pixels, T tokens, S tokens with the prefix, L blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specvit.config.schema import ViTConfig, effective_level
from specvit.data.batches import EvalData
from specvit.data.labels import LabelScaler
from specvit.data.noise import sigma_of
from specvit.models import ViT
from specvit.run.predictor import Predictor
from specvit.utils.errors import CheckpointError

Array = np.ndarray
BATCH, MOST_WEIGHTS = 64, 2**24
"""Most stars at a time, and most attention weights of a block, 67 MB; some three times as many are there at once."""


@dataclass(frozen=True)
class Attention:
    """Shares of attention, means over stars."""

    blocks_LP: Array
    """What the vector that is pooled takes from each pixel, block by block (mean over heads); with `prefix_L` 1."""
    prefix_L: Array
    """What it takes from the CLS token itself, which is no pixel's."""
    rollout_P: Array
    """What reaches it through all blocks (Abnar & Zuidema 2020, ACL, p. 4190), of all that comes from pixels."""
    even_P: Array
    """Attention to all tokens alike, on the same pixels."""


@dataclass(frozen=True)
class Attribution:
    """What one model does with each pixel, means over stars."""

    gradient_P: Array
    """d label / d flux, signed; label unit per unit of the files' flux."""
    share_P: Array
    """Pixel's share of the variance that noise gives to the prediction, star by star; sums to 1. Of a run without
    noise, the files' errors stand for it."""
    noise: float | None
    """Standard deviation that noise gives to the prediction, to first order, label unit; root mean square. None for a
    run without noise."""
    attention: Attention | None
    """None for a model without any."""


def attribution(trained: Predictor, view: EvalData, label: str, stars: int, where: str = "best.ckpt") -> Attribution:
    """Return what `trained` does with the first `stars` rows of a view, for one of its labels.

    The noise is that of the run's evaluation, fixed row by row. Raises `CheckpointError` for a model that gives each
    spectrum the same.
    """
    assert isinstance(trained.coder, LabelScaler)
    column = trained.coder.names.index(label)
    unit = trained.coder.scale[column] / trained.flux_norm.scale
    sums: dict[str, Any] = dict.fromkeys(("gradient", "share", "told", "variance", "blocks", "rollout"), 0.0)
    batch = _batch(trained)
    for start in range(0, stars, batch):
        rows_B = np.arange(start, min(start + batch, stars))
        flux_BP = view.rows(rows_B).flux_BP
        slope_BP = _slope(trained.model, flux_BP, column).double() * unit
        part_BP = (slope_BP * _sigma(view, rows_B)).square()
        whole_B1 = part_BP.sum(dim=1, keepdim=True)
        sums["gradient"] += slope_BP.sum(dim=0)
        sums["share"] += torch.where(whole_B1 > 0, part_BP / whole_B1, 0.0).sum(dim=0)
        sums["told"] += int((whole_B1 > 0).sum())
        sums["variance"] += float(whole_B1.sum())
        if isinstance(trained.model, ViT):
            blocks_LBS, rollout_BS = attention_of(trained.model, flux_BP)
            sums["blocks"] += blocks_LBS.sum(dim=1)
            sums["rollout"] += rollout_BS.sum(dim=0)
    if not sums["told"]:
        raise CheckpointError("gives every spectrum the same", where=where, remedy="see why it learnt nothing")
    means = {name: value.cpu().numpy() / stars for name, value in sums.items() if isinstance(value, Tensor)}
    seen = None
    if isinstance(trained.model, ViT):
        pixels = view.store.spectra.num_pixels
        seen = _on_pixels(trained, means["blocks"], means["rollout"], pixels, trained.model.num_prefix_tokens)
    noise = (sums["variance"] / stars) ** 0.5 if effective_level(view.noise) > 0 else None
    return Attribution(means["gradient"], means["share"] * stars / sums["told"], noise, seen)


def _batch(trained: Predictor) -> int:
    """Return how many stars are looked at together."""
    model = trained.model
    if not isinstance(model, ViT) or not isinstance(trained.config.model, ViTConfig):
        return BATCH
    weights = trained.config.model.num_attention_heads * (model.num_tokens + model.num_prefix_tokens) ** 2
    return max(1, min(BATCH, MOST_WEIGHTS // weights))


def attention_of(model: ViT, flux_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the pooled vector takes from each token: block by block (L, B, S), and through all of them (B, S).

    The latter takes half of what leaves a block to come from its attention and half from the connection around it.
    """
    with torch.no_grad():
        weights, pooled_BS = model.attention(flux_BP)
        of_blocks = [torch.einsum("bs,bst->bt", pooled_BS, weights_BSS) for weights_BSS in weights]
        rollout_BS = pooled_BS
        for weights_BSS in reversed(weights):
            rollout_BS = 0.5 * rollout_BS + 0.5 * torch.einsum("bs,bst->bt", rollout_BS, weights_BSS)
    return torch.stack(of_blocks), rollout_BS


def spread(token_T: Array, pixels: int, patch: int, stride: int) -> Array:
    """Return tokens' shares on pixels (P,), each evenly over its patch; pixels of no patch get 0."""
    pixel_P = np.zeros(pixels)
    for number, value in enumerate(token_T):
        pixel_P[number * stride : number * stride + patch] += value / patch
    return pixel_P


def _on_pixels(trained: Predictor, blocks_LS: Array, rollout_S: Array, pixels: int, prefix: int) -> Attention:
    assert isinstance(trained.config.model, ViTConfig)
    sizes = (pixels, trained.config.model.patch_size, trained.config.model.stride_size)
    rollout_T = rollout_S[prefix:] / rollout_S[prefix:].sum()
    return Attention(
        blocks_LP=np.stack([spread(block_S[prefix:], *sizes) for block_S in blocks_LS]),
        prefix_L=blocks_LS[:, :prefix].sum(axis=1),
        rollout_P=spread(rollout_T, *sizes),
        even_P=spread(np.full(len(rollout_T), 1 / len(rollout_T)), *sizes),
    )


def _slope(model: torch.nn.Module, flux_BP: Tensor, column: int) -> Tensor:
    """Return d output / d input (B, P)."""
    flux_BP = flux_BP.detach().clone().requires_grad_()
    return torch.autograd.grad(model(flux_BP)[:, column].sum(), flux_BP)[0]


def _sigma(view: EvalData, rows_B: Array) -> Tensor:
    error_BP = view.store.gather(rows_B)[1]
    sigma = sigma_of(error_BP, view.noise)
    return error_BP if sigma is None else sigma
