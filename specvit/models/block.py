"""A pre-LN transformer block. Legend: B batch, H heads, S sequence, D width, d head width."""

import torch.nn.functional as F
from torch import Tensor, nn

from specvit.models.attention import attend, attention_weights
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
        return self._attend(*self._projected(x_BSD))

    def weights(self, x_BSD: Tensor) -> Tensor:
        """Return how much each token takes of each other one in `forward`, (B, H, S, S)."""
        query_BHSd, key_BHSd, _ = self._projected(x_BSD)
        return attention_weights(query_BHSd, key_BHSd)

    def of_prefix(self, x_BSD: Tensor, num_prefix_tokens: int) -> Tensor:
        """Return the attended prefix tokens only, (B, prefix, D): what `forward` gives for them."""
        width = x_BSD.shape[-1]
        weights, biases = self.qkv.weight.split((width, 2 * width)), (None, None)
        if self.qkv.bias is not None:
            biases = self.qkv.bias.split((width, 2 * width))
        query_BHQd = self._heads(F.linear(x_BSD[:, :num_prefix_tokens], weights[0], biases[0]))  # never turned
        key_BHSd, value_BHSd = map(self._heads, F.linear(x_BSD, weights[1], biases[1]).chunk(2, dim=-1))
        if self.rotary is not None:
            key_BHSd = self.rotary(key_BHSd)
        return self._attend(query_BHQd, key_BHSd, value_BHSd)

    def _projected(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (B, H, S, d), the first two turned."""
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

    def forward(self, x_BSD: Tensor, only_prefix: int | None = None) -> Tensor:
        """Return tokens of the same shape, or only the first `only_prefix` of them, (B, only_prefix, D)."""
        normed_BSD = self.norm_attention(x_BSD)
        if only_prefix is None:
            attended_BSD = self.attention(normed_BSD)
        else:
            x_BSD, attended_BSD = x_BSD[:, :only_prefix], self.attention.of_prefix(normed_BSD, only_prefix)
        x_BSD = self.drop_attention.add(x_BSD, attended_BSD)
        return self.drop_feed_forward.add(x_BSD, self.feed_forward(self.norm_feed_forward(x_BSD)))
