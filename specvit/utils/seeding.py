"""Randomness as a function of (seed, stream, index): nothing random has to be saved to resume.

Every draw in specvit names its stream and its index (epoch, step, row), so the same draw can be made again
in another process, on another batch size, or after a kill. The habit is big_vision's.
"""

import hashlib
from typing import Any

import numpy as np

STREAMS = ("init", "order", "noise", "dropout", "eval_noise", "subset", "fold", "builtin", "bootstrap", "sampler")
STREAMS += ("tokens",)


def key(seed: int, stream: str, *index: int | str) -> int:
    """Return a 63-bit key for one draw; equal arguments give equal keys on every machine."""
    assert stream in STREAMS, stream
    text = "/".join(str(part) for part in (seed, stream, *index))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(seed: int, stream: str, *index: int | str) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for one draw."""
    return np.random.Generator(np.random.Philox(key=key(seed, stream, *index)))


def torch_rng(seed: int, stream: str, *index: int | str, device: Any = "cpu") -> Any:
    """Return a `torch.Generator` on `device` for one draw."""
    import torch

    return torch.Generator(device=device).manual_seed(key(seed, stream, *index))
