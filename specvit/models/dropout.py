"""Dropout whose mask is a function of (step key, layer), so that a resumed run draws the same masks.

The engine hands the model the key of each forward pass, which `set_dropout_key` passes on. Nothing is drawn from
torch's global generator, no generator state is saved, and recomputing a block in the backward pass gives the same mask.
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
        keep = keep_mask(x.shape, self.p, self.key, self.layer, x.device)
        return torch.where(keep, x * (1.0 / (1.0 - self.p)), 0.0)  # a mask of 1/(1 - p) would be rounded in bf16

    def extra_repr(self) -> str:
        """Show the share in the printed module."""
        return f"p={self.p}"


def keep_mask(shape: torch.Size, p: float, key: int, layer: int, device: torch.device) -> Tensor:
    """Return which elements to keep, bool, drawn from 16 random bits an element.

    Sixteen bits set the share to within 1/65536 and cost a quarter of what `bernoulli_` does on a CPU.
    """
    generator = seeding.torch_rng(key, "dropout", layer, device=device)
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[: shape.numel()].view(shape) >= round(p * 65536) - 32768


def set_dropout_key(model: nn.Module, key: int) -> None:
    """Give every keyed dropout of `model` the key of this forward pass."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.key = key
