"""Scaled dot-product attention, the fastest way. Legend: B batch, H heads, Q queries, S keys, d width.

torch's fused kernel is that way but for bf16 on a CPU, where its backward pass takes two (257 tokens) to seven times
(65 tokens) as long as the products written out. These round the scores to bf16 before the softmax, as the libraries'
plain attention under autocast does: 0.4 % of the output at scores up to 5, 0.8 % at 30 (fused: 0.2 %).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_WEIGHTS = 2**28
"""Weights (B·H·Q·S) that each layer may keep for its backward pass, half a GB in bf16; the fused kernel keeps none."""


def attend(query_BHQd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d) v, (B, H, Q, d)."""
    in_bf16 = query_BHQd.dtype == torch.bfloat16 and query_BHQd.device.type == "cpu"
    if in_bf16 and query_BHQd[..., 0].numel() * key_BHSd.shape[2] <= MOST_WEIGHTS:
        return _WrittenOut.apply(query_BHQd, key_BHSd, value_BHSd)
    return F.scaled_dot_product_attention(query_BHQd, key_BHSd, value_BHSd)


def attention_weights(query_BHQd: Tensor, key_BHSd: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d), (B, H, Q, S): how much each query takes of each token; rows sum to 1."""
    return (query_BHQd * query_BHQd.shape[-1] ** -0.5 @ key_BHSd.mT).softmax(-1)


class _WrittenOut(torch.autograd.Function):
    """The same as batched matrix products; keeps the weights (B·H, Q, S) for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query_BHQd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor) -> Tensor:
        """Return the attended values."""
        query, key, value = (x.flatten(0, 1) for x in (query_BHQd, key_BHSd, value_BHSd))
        scale = query.shape[-1] ** -0.5
        score = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=scale)
        weight = score.softmax(-1)
        ctx.save_for_backward(query, key, value, weight)
        ctx.heads, ctx.scale = query_BHQd.shape[1], scale
        return torch.bmm(weight, value).unflatten(0, (-1, ctx.heads))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value."""
        query, key, value, weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, 1)
        of_weight = torch.bmm(gradient, value.transpose(1, 2))
        of_score = torch.ops.aten._softmax_backward_data(of_weight, weight, -1, weight.dtype)
        empty = query.new_empty(())
        of_query = torch.baddbmm(empty, of_score, key, beta=0, alpha=ctx.scale)
        of_key = torch.baddbmm(empty, of_score.transpose(1, 2), query, beta=0, alpha=ctx.scale)
        of_value = torch.bmm(weight.transpose(1, 2), gradient)
        shape = (-1, ctx.heads)
        return of_query.unflatten(0, shape), of_key.unflatten(0, shape), of_value.unflatten(0, shape)
