"""The tokens that a run with `model.reduction` computes: chosen once from its training rows, then kept in checkpoints.

Data and model meet here: neither knows the other, so the list is passed to the model as an argument.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from specvit.config.reduction import kept_count
from specvit.config.schema import Config, ViTConfig
from specvit.data.splits import Splits
from specvit.data.token_selection import Training, fisher_order, known_labels
from specvit.physics.features import FEATURES
from specvit.utils import seeding
from specvit.utils.errors import CheckpointError, ConfigError
from specvit.utils.text import csv_text


@dataclass(frozen=True)
class KeptTokens:
    """Numbers of the kept tokens, rising, and what each gained when it was chosen by Fisher information."""

    tokens: tuple[int, ...]
    gains: tuple[float, ...] = ()

    @property
    def digest(self) -> str:
        """What tells two lists apart."""
        return hashlib.sha256(" ".join(map(str, self.tokens)).encode()).hexdigest()[:16]

    def to_plain(self) -> dict[str, Any]:
        """Return lists and text, for a checkpoint."""
        return {"tokens": list(self.tokens), "gains": list(self.gains), "digest": self.digest}


def choose(config: Config, splits: Splits, fill_P: Tensor | None) -> KeptTokens | None:
    """Return the tokens to compute, or None if the model computes all.

    `fill_P` is the flux that the network sees in masked pixels. Raises `DataError` and `ConfigError` as `preview` does,
    and `DataError` for a spectrum that is not finite.
    """
    model, kept = config.model, preview(config, splits)
    if kept is None or not isinstance(model, ViTConfig) or model.reduction.select != "fisher":
        return kept
    patches = patches_of(model, splits.train.num_pixels)
    order, gains = fisher_order(_training(config, splits, fill_P), patches, len(kept.tokens), _label(model, config))
    ranked = sorted(zip(order, gains, strict=True))
    return KeptTokens(tuple(token for token, _ in ranked), tuple(gain for _, gain in ranked))


def preview(config: Config, splits: Splits) -> KeptTokens | None:
    """Return the tokens to compute before a spectrum is read; in place of those by Fisher information as many others.

    What a network costs depends on how many they are, not on which. Raises `DataError` if the training rows are too
    few for Fisher information, and `ConfigError` if no token has the wavelengths asked for.
    """
    model, wave_P = config.model, splits.train.wave_P
    if not isinstance(model, ViTConfig) or model.reduction.kind == "none":
        return None
    patches = patches_of(model, len(wave_P))
    if model.reduction.select == "list":
        return KeptTokens(_touched(patches, wave_P, model.reduction.keep_wavelengths or (), config.data.max_redshift))
    if model.reduction.select == "fisher":
        known_labels(_training(config, splits, None), _label(model, config))
    total, count = len(patches), kept_count(asdict(model.reduction), len(patches))
    if model.reduction.select == "random":
        order_N = seeding.numpy_rng(config.train.seed, "tokens").permutation(total)
        return KeptTokens(tuple(sorted(order_N[:count].tolist())))
    return KeptTokens(tuple((2 * number + 1) * total // (2 * count) for number in range(count)))


def _training(config: Config, splits: Splits, fill_P: Tensor | None) -> Training:
    return Training(splits.train, config.noise, config.data.param, config.data.max_redshift, fill_P)


def _label(model: ViTConfig, config: Config) -> str:
    return model.reduction.select_label or config.data.param[0]


def patches_of(model: ViTConfig, num_pixels: int) -> list[range]:
    """Return the pixels of each token's patch."""
    starts = range(0, num_pixels - model.patch_size + 1, model.stride_size)
    return [range(start, start + model.patch_size) for start in starts]


def _touched(
    patches: Sequence[range], wave_P: np.ndarray, windows: Sequence[tuple[float, float]], max_redshift: float
) -> tuple[int, ...]:
    """Return the tokens that have a pixel in one of the windows, which are widened by what stars are shifted."""
    wide = [(low * (1 - max_redshift), high * (1 + max_redshift)) for low, high in windows]
    inside_P = np.any([(wave_P >= low) & (wave_P <= high) for low, high in wide], axis=0)
    tokens = tuple(number for number, patch in enumerate(patches) if inside_P[patch.start : patch.stop].any())
    if not tokens:
        what = f"touch no token; the spectra are of {wave_P[0]:.1f} to {wave_P[-1]:.1f} Å"
        remedy = "give windows inside, in vacuum Å"
        raise ConfigError(what, where="model.reduction.keep_wavelengths", remedy=remedy)
    return tokens


def from_checkpoint(content: dict[str, Any], config: Config, num_pixels: int, where: str) -> KeptTokens | None:
    """Return the tokens that a checkpoint's network computes, or None for all; raises `CheckpointError`."""
    model, plain = config.model, content.get("kept_tokens")
    if not isinstance(model, ViTConfig) or model.reduction.kind == "none":
        return None
    if isinstance(plain, dict) and all(isinstance(plain.get(name), list) for name in ("tokens", "gains")):
        kept, total = KeptTokens(tuple(plain["tokens"]), tuple(plain["gains"])), len(patches_of(model, num_pixels))
        is_rising = kept.tokens == tuple(number for number in range(total) if number in kept.tokens)
        if is_rising and kept.tokens and plain.get("digest") == kept.digest:
            return kept
    remedy = "train again from the beginning with train.rerun=true"
    raise CheckpointError("has no valid list of kept tokens", where=where, remedy=remedy)


def table_of(kept: KeptTokens, model: ViTConfig, wave_P: np.ndarray) -> str:
    """Return `kept_wavelengths.csv`: each kept token's patch, its gain, and the lines and bands that it touches."""
    patches, rows = patches_of(model, len(wave_P)), []
    for number, gain in zip(kept.tokens, kept.gains or (None,) * len(kept.tokens), strict=True):
        wave_p = wave_P[patches[number].start : patches[number].stop]
        lines = [feature.name for feature in FEATURES if feature.inside(wave_p).any()]
        ends = {"first_wavelength": f"{wave_p[0]:.2f}", "last_wavelength": f"{wave_p[-1]:.2f}"}
        rows.append({"token": number, **ends, "gain": "" if gain is None else f"{gain:.4g}", "lines": ", ".join(lines)})
    return csv_text(rows)
