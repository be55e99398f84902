"""A pre-LN transformer block. Legend: B batch, H heads, Q queries, S sequence (keys), D width, d head width.

Attention uses torch's fused kernel, except in bf16 on a CPU: there its backward pass takes two (257 tokens) to seven
times (65 tokens) as long as explicit matrix products. Those round the scores to bf16 before the softmax, as plain
attention under autocast does elsewhere: an error of 0.4 % of the output at scores up to 5, 0.8 % at 30 (fused: 0.2 %).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specvit.models.dropout import KeyedDropout
from specvit.models.positions import RotaryPositions

MAX_SAVED_WEIGHTS = 2**28
"""Weights (B·H·Q·S) that a layer may save for its backward pass (half a GB in bf16); the fused kernel saves none."""


def attend(query_BHQd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d) v, (B, H, Q, d)."""
    in_bf16 = query_BHQd.dtype == torch.bfloat16 and query_BHQd.device.type == "cpu"
    if in_bf16 and query_BHQd[..., 0].numel() * key_BHSd.shape[2] <= MAX_SAVED_WEIGHTS:
        return _ExplicitAttention.apply(query_BHQd, key_BHSd, value_BHSd)
    return F.scaled_dot_product_attention(query_BHQd, key_BHSd, value_BHSd)


def attention_weights(query_BHQd: Tensor, key_BHSd: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d), (B, H, Q, S): the weight of each token for each query; rows sum to 1."""
    return (query_BHQd * query_BHQd.shape[-1] ** -0.5 @ key_BHSd.mT).softmax(-1)


class _ExplicitAttention(torch.autograd.Function):
    """The same as explicit matrix products; saves the weights (B·H, Q, S) for the backward pass."""

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
        weight_grad = torch.bmm(gradient, value.transpose(1, 2))
        score_grad = torch.ops.aten._softmax_backward_data(weight_grad, weight, -1, weight.dtype)
        empty = query.new_empty(())
        query_grad = torch.baddbmm(empty, score_grad, key, beta=0, alpha=ctx.scale)
        key_grad = torch.baddbmm(empty, score_grad.transpose(1, 2), query, beta=0, alpha=ctx.scale)
        value_grad = torch.bmm(weight.transpose(1, 2), gradient)
        shape = (-1, ctx.heads)
        return query_grad.unflatten(0, shape), key_grad.unflatten(0, shape), value_grad.unflatten(0, shape)


class Attention(nn.Module):
    """Multi-head self-attention on `scaled_dot_product_attention`, without dropout on the weights.

    Dropout there would select SDPA's slow path on every device; dropout applies to the branch's output instead.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, qkv_bias: bool, rotary: RotaryPositions | None) -> None:
        """`rotary`, if given, rotates queries and keys."""
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return the attended tokens (B, S, D)."""
        return self._attend(*self._projected(x_BSD))

    def weights(self, x_BSD: Tensor) -> Tensor:
        """Return the weight of each token for each query in `forward`, (B, H, S, S)."""
        query_BHSd, key_BHSd, _ = self._projected(x_BSD)
        return attention_weights(query_BHSd, key_BHSd)

    def of_prefix(self, x_BSD: Tensor, num_prefix_tokens: int) -> Tensor:
        """Return the attended prefix tokens only, (B, prefix, D), equal to those of `forward`."""
        width = x_BSD.shape[-1]
        weights, biases = self.qkv.weight.split((width, 2 * width)), (None, None)
        if self.qkv.bias is not None:
            biases = self.qkv.bias.split((width, 2 * width))
        query_BHQd = self._heads(F.linear(x_BSD[:, :num_prefix_tokens], weights[0], biases[0]))  # never rotated
        key_BHSd, value_BHSd = map(self._heads, F.linear(x_BSD, weights[1], biases[1]).chunk(2, dim=-1))
        if self.rotary is not None:
            key_BHSd = self.rotary(key_BHSd)
        return self._attend(query_BHQd, key_BHSd, value_BHSd)

    def _projected(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (B, H, S, d), the first two rotated."""
        query_BHSd, key_BHSd, value_BHSd = map(self._heads, self.qkv(x_BSD).chunk(3, dim=-1))
        if self.rotary is not None:
            query_BHSd, key_BHSd = self.rotary(query_BHSd), self.rotary(key_BHSd)
        return query_BHSd, key_BHSd, value_BHSd

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(self, query_BHQd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor) -> Tensor:
        attended_BHQd = attend(query_BHQd, key_BHSd, value_BHSd)
        return self.out(attended_BHQd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, *, hidden_size: int, intermediate_size: int) -> None:
        """`intermediate_size` is usually four times the width."""
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        return self.down(F.gelu(self.up(x_BSD)))


class Block(nn.Module):
    """Attention and feed-forward, each as x + dropout(f(norm(x)))."""

    def __init__(
        self, *, attention: Attention, feed_forward: FeedForward, hidden_size: int, dropout: float, index: int
    ) -> None:
        """`index` counts blocks from 0; the two dropouts are layers 2 * index + 1 and + 2."""
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention, self.feed_forward = attention, feed_forward
        self.drop_attention = KeyedDropout(dropout, 2 * index + 1)
        self.drop_feed_forward = KeyedDropout(dropout, 2 * index + 2)

    def forward(self, x_BSD: Tensor, only_prefix: int | None = None) -> Tensor:
        """Return tokens of the same shape, or only the first `only_prefix` of them, (B, only_prefix, D)."""
        normed_BSD = self.norm_attention(x_BSD)
        if only_prefix is None:
            attended_BSD = self.attention(normed_BSD)
        else:
            x_BSD, attended_BSD = x_BSD[:, :only_prefix], self.attention.of_prefix(normed_BSD, only_prefix)
        x_BSD = self.drop_attention.add(x_BSD, attended_BSD)
        return self.drop_feed_forward.add(x_BSD, self.feed_forward(self.norm_feed_forward(x_BSD)))
