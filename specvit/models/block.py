"""A pre-LN transformer block. Legend: B batch, H heads, S sequence, D width, d head width."""

import torch.nn.functional as F
from torch import Tensor, nn

from specvit.models.dropout import KeyedDropout
from specvit.models.positions import RotaryPositions


class Attention(nn.Module):
    """Multi-head self-attention on `scaled_dot_product_attention`, without dropout on the weights.

    Dropout there would send SDPA to its slow path on every device; the branch's output is dropped instead.
    """

    def __init__(self, *, hidden_size: int, num_heads: int, qkv_bias: bool, rotary: RotaryPositions | None) -> None:
        """`rotary`, if given, turns queries and keys."""
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return the attended tokens (B, S, D)."""
        batch, length, width = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query_BHSd, key_BHSd, value_BHSd = qkv.permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query_BHSd, key_BHSd = self.rotary(query_BHSd), self.rotary(key_BHSd)
        attended_BHSd = F.scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSd)
        return self.out(attended_BHSd.transpose(1, 2).reshape(batch, length, width))


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
    """Attention and feed-forward, each normalised before and added after: x + drop(f(norm(x)))."""

    def __init__(
        self, *, attention: Attention, feed_forward: FeedForward, hidden_size: int, dropout: float, index: int
    ) -> None:
        """`index` is the block's number from 0; its two dropouts take layers 2 * index + 1 and + 2."""
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention, self.feed_forward = attention, feed_forward
        self.drop_attention = KeyedDropout(dropout, 2 * index + 1)
        self.drop_feed_forward = KeyedDropout(dropout, 2 * index + 2)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x_BSD = x_BSD + self.drop_attention(self.attention(self.norm_attention(x_BSD)))
        return x_BSD + self.drop_feed_forward(self.feed_forward(self.norm_feed_forward(x_BSD)))
