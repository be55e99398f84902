"""Where a trained model looks: its attention, and how its prediction follows each pixel. Trains nothing.

Shape suffixes: N stars, B stars of a batch, P pixels, T tokens, S tokens with the prefix, L blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specvit.config.schema import ViTConfig
from specvit.data.labels import LabelScaler
from specvit.data.noise import sigma_of
from specvit.data.resident import EvalData
from specvit.models import ViT
from specvit.trained import Trained

Array = np.ndarray
BATCH = 64
"""Stars at a time: a block's attention over 257 tokens with 8 heads is then 135 MB."""


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
class Gaze:
    """What one model does with each pixel, means over stars."""

    gradient_P: Array
    """d label / d flux, signed; label unit per unit of median-normalised flux."""
    share_P: Array
    """Pixel's share of the variance that noise gives to the prediction, star by star; sums to 1."""
    noise: float
    """Standard deviation that noise gives to the prediction, to first order, label unit; root mean square."""
    attention: Attention | None
    """None for a model without any."""


def gaze(trained: Trained, view: EvalData, label: str, stars: int) -> Gaze:
    """Return what `trained` does with the first `stars` rows of a view, for one of its labels.

    The noise is that of the run's evaluation, fixed row by row; of a run without noise, errors stand for it.
    """
    assert isinstance(trained.coder, LabelScaler)
    column = trained.coder.names.index(label)
    unit = trained.coder.scale[column] / trained.flux_norm.scale
    sums: dict[str, Any] = dict.fromkeys(("gradient", "share", "variance", "blocks", "rollout"), 0.0)
    for start in range(0, stars, BATCH):
        rows_B = np.arange(start, min(start + BATCH, stars))
        flux_BP = view.rows(rows_B).flux_BP
        slope_BP = _slope(trained.model, flux_BP, column).double() * unit
        part_BP = (slope_BP * _sigma(view, rows_B)).square()
        whole_B1 = part_BP.sum(dim=1, keepdim=True)
        sums["gradient"] += slope_BP.sum(dim=0)
        sums["share"] += (part_BP / whole_B1).sum(dim=0)
        sums["variance"] += float(whole_B1.sum())
        if isinstance(trained.model, ViT):
            blocks_LBS, rollout_BS = attention_of(trained.model, flux_BP)
            sums["blocks"] += blocks_LBS.sum(dim=1)
            sums["rollout"] += rollout_BS.sum(dim=0)
    means = {name: value.cpu().numpy() / stars for name, value in sums.items() if isinstance(value, Tensor)}
    seen = None
    if isinstance(trained.model, ViT):
        pixels = view.store.spectra.num_pixels
        seen = _on_pixels(trained, means["blocks"], means["rollout"], pixels, trained.model.num_prefix_tokens)
    return Gaze(means["gradient"], means["share"], (sums["variance"] / stars) ** 0.5, seen)


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


def _on_pixels(trained: Trained, blocks_LS: Array, rollout_S: Array, pixels: int, prefix: int) -> Attention:
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
