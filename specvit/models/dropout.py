"""Dropout whose mask is a function of (step key, layer), so that a resumed run draws the same masks.

The engine calls `set_dropout_key(model, key)` before each forward pass. Nothing is drawn from torch's global
generator, no generator state is saved, and recomputing a block in the backward pass gives the same mask again.
"""

import torch
from torch import Tensor, nn

from specvit import seeding


class KeyedDropout(nn.Module):
    """Zero a share `p` of the elements and scale the rest by 1/(1 - p); the identity in evaluation."""

    def __init__(self, p: float, layer: int) -> None:
        """`layer` tells this module's masks from those of the others under the same step key."""
        super().__init__()
        self.p, self.layer, self.key = p, layer, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with dropout applied; same shape and type."""
        if not self.training or self.p == 0.0:
            return x
        return x * dropout_mask(x, self.p, self.key, self.layer)

    def extra_repr(self) -> str:
        """Show the share in the printed module."""
        return f"p={self.p}"


def dropout_mask(x: Tensor, p: float, key: int, layer: int) -> Tensor:
    """Return 0 or 1/(1 - p) in the shape and type of `x`, drawn from 16 random bits an element.

    Sixteen bits set the share to within 1/65536 and cost a quarter of what `bernoulli_` does on a CPU.
    """
    generator = seeding.torch_rng(key, "dropout", layer, device=x.device)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = bits >= round(p * 65536) - 32768
    return keep.to(x.dtype).mul_(1.0 / (1.0 - p))


def set_dropout_key(model: nn.Module, key: int) -> None:
    """Give every keyed dropout of `model` the key of this forward pass."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.key = key
