"""From pixels to tokens. Legend: B batch, P pixels, N tokens, D model width.

C1D, SW and linear are implementations of one linear map: with equal weights their outputs are equal, and one rule
initialises all (`models.init`). The stem has nonlinear layers before it. Every tokenizer gives
`(P - patch) // stride + 1` tokens; pixels beyond the last whole patch are ignored and, but for 10 by the stem, never
padded with zeros.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from specvit.config.model_kinds import STEM_KERNEL, STEM_STRIDE, stem_channels


def num_tokens(num_pixels: int, patch_size: int, stride_size: int) -> int:
    """Return the number of tokens of a spectrum."""
    return (num_pixels - patch_size) // stride_size + 1


class C1D(nn.Module):
    """A convolution with one input channel: flux (B, P) -> tokens (B, N, D).

    Without overlap it is computed as one matrix product, which is four times as fast on a CPU.
    """

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """`stride_size` < `patch_size` makes neighbouring tokens share pixels."""
        super().__init__()
        self.patch_size = patch_size if stride_size == patch_size else None
        self.proj = nn.Conv1d(1, hidden_size, kernel_size=patch_size, stride=stride_size)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        if self.patch_size is not None:
            return F.linear(_patches(flux_BP, self.patch_size), self.proj.weight.squeeze(1), self.proj.bias)
        return self.proj(flux_BP.unsqueeze(1)).transpose(1, 2)


class SlidingWindow(nn.Module):
    """SW, a sliding window and a linear layer: flux (B, P) -> tokens (B, N, D)."""

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """`stride_size` < `patch_size` makes neighbouring tokens share pixels."""
        super().__init__()
        self.patch_size, self.stride_size = patch_size, stride_size
        self.proj = nn.Linear(patch_size, hidden_size)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.proj(flux_BP.unfold(1, self.patch_size, self.stride_size))


class LinearPatch(nn.Module):
    """A reshape into separate patches and a linear layer: flux (B, P) -> tokens (B, N, D)."""

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """`stride_size` must be `patch_size`; the configuration is refused otherwise."""
        super().__init__()
        assert stride_size == patch_size
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size, hidden_size)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.proj(_patches(flux_BP, self.patch_size))


class Stem(nn.Module):
    """Convolutions before the linear map: flux (B, P) -> tokens (B, N, D), as in Xiao et al. 2021, arXiv:2106.14881.

    Two stages of a convolution of stride 4 and a GELU. Their kernels of 8 overlap, so that a token also reads 10 pixels
    on either side of its patch; beyond the spectrum's ends these are 0, the mean spectrum.
    """

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """Sizes must be multiples of the stages' stride, 16; the configuration is refused otherwise."""
        super().__init__()
        stages: list[nn.Module] = []
        inputs, reduction = 1, 1
        for channels in stem_channels(hidden_size):
            padding = (STEM_KERNEL - STEM_STRIDE) // 2
            stages += [nn.Conv1d(inputs, channels, STEM_KERNEL, stride=STEM_STRIDE, padding=padding), nn.GELU()]
            inputs, reduction = channels, reduction * STEM_STRIDE
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Conv1d(inputs, hidden_size, patch_size // reduction, stride=stride_size // reduction)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.proj(self.stages(flux_BP.unsqueeze(1))).transpose(1, 2)


def _patches(flux_BP: Tensor, patch_size: int) -> Tensor:
    """Return (B, N, patch), without the pixels beyond the last whole patch."""
    whole = flux_BP.shape[1] // patch_size * patch_size
    return flux_BP[:, :whole].unflatten(1, (-1, patch_size))


TOKENIZERS = {"C1D": C1D, "SW": SlidingWindow, "linear": LinearPatch, "stem": Stem}
