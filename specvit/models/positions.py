"""Positional encodings. Legend: B batch, H heads, S sequence with prefix, D width, d head width.

Additive positions (`learned`, `sinusoidal`) cover the prefix tokens as well; rotary ones do not rotate them, since
a CLS token has no position.
"""

import torch
from torch import Tensor, nn

WAVELENGTH_BASE = 10_000.0
"""Longest period of sinusoidal and rotary angles, in tokens (Vaswani et al. 2017; Su et al. 2021)."""


class LearnedPositions(nn.Module):
    """A trained vector for each position of the whole sequence, the prefix included, whichever are computed.

    So weights of a network of all tokens fit one of some, and the reverse.
    """

    places_S: Tensor | None

    def __init__(self, length: int, hidden_size: int, places_S: Tensor | None = None) -> None:
        """`length` counts prefix tokens; `places_S` are those in the sequence that `forward` is given, or all."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, length, hidden_size))
        self.register_buffer("places_S", places_S, persistent=False)

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return the tokens with their positions added."""
        return tokens_BSD + (self.weight if self.places_S is None else self.weight.index_select(1, self.places_S))


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines of the position, with the std that learned ones start from."""

    weight: Tensor

    def __init__(self, places_S: Tensor, hidden_size: int, scale: float) -> None:
        """`places_S` are the tokens' places in the sequence; `scale` is the amplitude of the sines."""
        super().__init__()
        angles = _angles(places_S, hidden_size // 2)
        table = torch.cat([angles.sin(), angles.cos()], dim=-1) * scale
        self.register_buffer("weight", table.unsqueeze(0), persistent=False)

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return the tokens with their positions added."""
        return tokens_BSD + self.weight


class NoPositions(nn.Module):
    """Adds nothing, but widens to float32 as adding does: under autocast the residual stream would be 16 bits."""

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """Return the tokens in float32, or in float64 if they have it."""
        return tokens_BSD.to(torch.promote_types(tokens_BSD.dtype, torch.float32))


class RotaryPositions(nn.Module):
    """Rotates queries and keys by an angle proportional to position: their product depends on distance only."""

    cos: Tensor
    sin: Tensor

    def __init__(self, places_S: Tensor, head_size: int, num_prefix_tokens: int) -> None:
        """`places_S` are the places in the sequence, the prefix first; `head_size` must be even."""
        super().__init__()
        angles = _angles(places_S[num_prefix_tokens:] - num_prefix_tokens, head_size // 2)
        angles = torch.cat([torch.zeros(num_prefix_tokens, head_size // 2), angles])
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x_BHSd: Tensor) -> Tensor:
        """Return queries or keys, rotated; same shape and type."""
        left, right = x_BHSd.float().chunk(2, dim=-1)
        rotated = torch.cat([left * self.cos - right * self.sin, right * self.cos + left * self.sin], dim=-1)
        return rotated.type_as(x_BHSd)


def _angles(places_S: Tensor, pairs: int) -> Tensor:
    """Return angles (S, pairs) in radians."""
    frequencies = WAVELENGTH_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.outer(places_S.double(), frequencies).float()
