"""Dropout whose mask is a function of (step key, layer), so that a resumed run draws the same masks.

The training loop gives the model a key for each forward pass, which `set_dropout_key` passes on. No mask uses torch's
global generator, so there is no generator state to save, and a block recomputed in the backward pass has the same mask.
"""

from typing import Any

import torch
from torch import Tensor, nn

from specvit.utils import seeding


class KeyedDropout(nn.Module):
    """Zero a share `p` of the elements and scale the rest by 1/(1 - p); the identity in evaluation."""

    def __init__(self, p: float, layer: int) -> None:
        """`layer` makes this module's masks differ from those of the others under the same step key."""
        super().__init__()
        self.p, self.layer, self.key = p, layer, 0
        self.key_for_compiler = torch.zeros((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with dropout applied; same shape and type."""
        if not self.training or self.p == 0.0:
            return x
        # The scale is a number, not the mask's value, which would be rounded in bf16.
        return torch.where(self._keep(x), x * (1.0 / (1.0 - self.p)), 0.0)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return `x + dropout(branch)`, in one pass over memory instead of three."""
        if not self.training or self.p == 0.0:
            return x + branch
        return AddDropped.apply(x, branch, self._keep(branch), 1.0 / (1.0 - self.p))

    def set_key(self, key: int) -> None:
        """Set the key of the next forward pass's masks."""
        self.key = key
        self.key_for_compiler.fill_(key)

    def _keep(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _keep_mask_for_compiler(x, self.key_for_compiler, self.p, self.layer)
        return keep_mask(x.shape, self.p, self.key, self.layer, x.device)

    def extra_repr(self) -> str:
        """Show the share in the printed module."""
        return f"p={self.p}"


class AddDropped(torch.autograd.Function):
    """x + scale * keep * branch. Autograd alone would also save the branch, and compute the mask's gradient.

    An element of the branch that is not finite makes the sum not finite even where it is dropped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, keep: Tensor, scale: float) -> Tensor:
        """Return the sum, in the wider of the two types."""
        ctx.save_for_backward(keep)
        ctx.scale, ctx.dtypes = scale, (x.dtype, branch.dtype)
        return torch.addcmul(x, branch, keep, value=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of `x` and the branch."""
        (keep,), (gradient,) = ctx.saved_tensors, gradients
        x_dtype, branch_dtype = ctx.dtypes
        return gradient.to(x_dtype), torch.mul(gradient, keep).mul_(ctx.scale).to(branch_dtype), None, None


def keep_mask(shape: torch.Size, p: float, key: int, layer: int, device: torch.device) -> Tensor:
    """Return which elements to keep, bool, drawn from 16 random bits an element.

    Sixteen bits resolve the share to 1/65536, at a quarter of the cost of `bernoulli_` on a CPU.
    """
    generator = seeding.torch_rng(key, "dropout", layer, device=device)
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[: shape.numel()].view(shape) >= round(p * 65536) - 32768


@torch.library.custom_op("specvit::keep_mask", mutates_args=())
def _keep_mask_for_compiler(x: Tensor, key: Tensor, p: float, layer: int) -> Tensor:
    """Return `keep_mask` for `x`; opaque to the compiler, which therefore does not recompile for each key."""
    return keep_mask(x.shape, p, int(key.item()), layer, x.device)


@_keep_mask_for_compiler.register_fake
def _(x: Tensor, key: Tensor, p: float, layer: int) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


def set_dropout_key(model: nn.Module, key: int) -> None:
    """Give every keyed dropout of `model` the key of this forward pass."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.set_key(key)
