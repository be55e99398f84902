"""Number formats: what `auto` means on this device, autocast, and the gradient scaler."""

import contextlib
from typing import Any

import torch

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return what `auto` means here: bf16-mixed where the device computes in bf16, else 32; others as they are."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if has_bf16(device) else "32"
    if device.type == "cpu":
        return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32"
    return "32"


def has_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device computes in bf16; older ones emulate it, slowly."""
    return torch.cuda.get_device_properties(device).major >= 8


def autocast(precision: str, device: torch.device) -> Any:
    """Return the context of a forward pass."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the gradient scaler: working for 16-mixed, passing everything through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
