"""From pixels to tokens. Legend: B batch, P pixels, N tokens, D model width.

C1D, SW and linear are implementations of one linear map: with equal weights their outputs are equal, and one rule
initialises all (`models.init`). The stem has nonlinear layers before it. Every tokenizer gives
`(P - patch) // stride + 1` tokens; pixels beyond the last whole patch are ignored and, but for 10 by the stem, never
padded with zeros.

With `kept_N`, the numbers of some tokens, rising, only these are computed, each from the same pixels as before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specvit.config.model_kinds import STEM_KERNEL, STEM_REACH, STEM_STRIDE, stem_channels


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
        self.patch_size, self.stride_size = patch_size, stride_size
        self.proj = nn.Conv1d(1, hidden_size, kernel_size=patch_size, stride=stride_size)

    def forward(self, flux_BP: Tensor, kept_N: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D)."""
        if kept_N is None and self.stride_size < self.patch_size:
            return self.proj(flux_BP.unsqueeze(1)).transpose(1, 2)
        patches_BNp = _windows(flux_BP, self.patch_size, self.stride_size, kept_N)
        return F.linear(patches_BNp, self.proj.weight.squeeze(1), self.proj.bias)


class SlidingWindow(nn.Module):
    """SW, a sliding window and a linear layer: flux (B, P) -> tokens (B, N, D)."""

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """`stride_size` < `patch_size` makes neighbouring tokens share pixels."""
        super().__init__()
        self.patch_size, self.stride_size = patch_size, stride_size
        self.proj = nn.Linear(patch_size, hidden_size)

    def forward(self, flux_BP: Tensor, kept_N: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.proj(_windows(flux_BP, self.patch_size, self.stride_size, kept_N))


class LinearPatch(nn.Module):
    """A reshape into separate patches and a linear layer: flux (B, P) -> tokens (B, N, D)."""

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """`stride_size` must be `patch_size`; the configuration is refused otherwise."""
        super().__init__()
        assert stride_size == patch_size
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size, hidden_size)

    def forward(self, flux_BP: Tensor, kept_N: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.proj(_windows(flux_BP, self.patch_size, self.patch_size, kept_N))


class Stem(nn.Module):
    """Convolutions before the linear map: flux (B, P) -> tokens (B, N, D), as in Xiao et al. 2021, arXiv:2106.14881.

    Two stages of a convolution of stride 4 and a GELU. Their kernels of 8 overlap, so that a token also reads 10 pixels
    on either side of its patch; beyond the spectrum's ends these are 0, the mean spectrum.
    """

    def __init__(self, *, patch_size: int, stride_size: int, hidden_size: int) -> None:
        """Sizes must be multiples of the stages' stride, 16; the configuration is refused otherwise."""
        super().__init__()
        self.patch_size, self.stride_size = patch_size, stride_size
        stages: list[nn.Module] = []
        inputs, reduction = 1, 1
        for channels in stem_channels(hidden_size):
            padding = (STEM_KERNEL - STEM_STRIDE) // 2
            stages += [nn.Conv1d(inputs, channels, STEM_KERNEL, stride=STEM_STRIDE, padding=padding), nn.GELU()]
            inputs, reduction = channels, reduction * STEM_STRIDE
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Conv1d(inputs, hidden_size, patch_size // reduction, stride=stride_size // reduction)

    def forward(self, flux_BP: Tensor, kept_N: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D)."""
        if kept_N is None:
            return self.proj(self.stages(flux_BP.unsqueeze(1))).transpose(1, 2)
        return self._of_windows(flux_BP, kept_N)

    def _of_windows(self, flux_BP: Tensor, kept_N: Tensor) -> Tensor:
        """Return tokens (B, N, D), each from its patch and the pixels beside it, as one spectrum without padding."""
        first, gelu, second, _ = self.stages
        assert isinstance(first, nn.Conv1d) and isinstance(second, nn.Conv1d)
        padded_BP = F.pad(flux_BP, (STEM_REACH, STEM_REACH))
        windows_BNp = _windows(padded_BP, self.patch_size + 2 * STEM_REACH, self.stride_size, kept_N)
        windows_X1p = windows_BNp.flatten(0, 1).unsqueeze(1)
        maps_XCp = gelu(F.conv1d(windows_X1p, first.weight, first.bias, STEM_STRIDE))
        # Beyond the spectrum's ends the second convolution is padded with 0, which is not what the first makes of 0.
        places_Np = kept_N[:, None] * (self.stride_size // STEM_STRIDE) - (STEM_KERNEL - STEM_STRIDE) // 2
        places_Np = places_Np + torch.arange(maps_XCp.shape[2], device=kept_N.device)
        outside_Np = (places_Np < 0) | (places_Np >= flux_BP.shape[1] // STEM_STRIDE)
        maps_BNCp = maps_XCp.unflatten(0, (len(flux_BP), -1)).masked_fill(outside_Np[:, None], 0.0)
        maps_XCp = gelu(F.conv1d(maps_BNCp.flatten(0, 1), second.weight, second.bias, STEM_STRIDE))
        return self.proj(maps_XCp).squeeze(2).unflatten(0, (len(flux_BP), -1))


def _windows(flux_BP: Tensor, size: int, stride: int, kept_N: Tensor | None) -> Tensor:
    """Return stretches (B, N, size) of a spectrum, `stride` apart, or some of them; the last pixels may be in none."""
    if kept_N is not None:
        return flux_BP.unfold(1, size, stride).index_select(1, kept_N)
    if size == stride:
        return flux_BP[:, : flux_BP.shape[1] // size * size].unflatten(1, (-1, size))
    return flux_BP.unfold(1, size, stride)


TOKENIZERS = {"C1D": C1D, "SW": SlidingWindow, "linear": LinearPatch, "stem": Stem}
