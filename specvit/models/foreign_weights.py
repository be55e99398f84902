"""Weights of other programs' ViTs under specvit's names: transformers' ViTModel, as it is or inside a Lightning module.

Their attention has three linear layers, query, key and value, where specvit has one. D width, p patch.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from specvit.utils.errors import CheckpointError
from specvit.utils.files import read_json

PREFIXES = ("module.", "_orig_mod.", "model.", "vit.")
"""Of names in wrappers: DataParallel, torch.compile, Lightning and other modules that hold the network."""
_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
_NAMES: tuple[tuple[str, str, int | None], ...] = (
    (r"embeddings\.cls_token", "cls_token", None),
    (r"embeddings\.position_embeddings", "positions.weight", None),
    (r"embeddings\.patch_embeddings\.(?:projection|proj|linear)\.(weight|bias)", r"tokenizer.proj.\1", None),
    (_BLOCK + r"attention\.(?:attention\.query|q_proj)\.(weight|bias)", r"blocks.\1.attention.qkv.\2", 0),
    (_BLOCK + r"attention\.(?:attention\.key|k_proj)\.(weight|bias)", r"blocks.\1.attention.qkv.\2", 1),
    (_BLOCK + r"attention\.(?:attention\.value|v_proj)\.(weight|bias)", r"blocks.\1.attention.qkv.\2", 2),
    (_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.attention.out.\2", None),
    (_BLOCK + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm_attention.\2", None),
    (_BLOCK + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm_feed_forward.\2", None),
    (_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", r"blocks.\1.feed_forward.up.\2", None),
    (_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", r"blocks.\1.feed_forward.down.\2", None),
    (r"layernorm\.(weight|bias)", r"norm.\1", None),
    (r"(?:classifier|regressor)\.(weight|bias)", r"head.\1", None),
)
"""Pattern, specvit's name, and which third of the tensor of that name it is."""
OPTIONAL = ("head.", "positions.", "cls_token", "pool.")
"""Beginnings of the names that may be missing or of another shape; all others are the tokenizer and the encoder."""
ENCODER = ("tokenizer.", "blocks.", "norm.")
TOKENIZER = "tokenizer.proj.weight"
EPSILON = 1e-5
"""Of specvit's layer norms, torch's default."""
EPSILON_EFFECT = "predictions differ by some thousandths of the label's standard deviation in a trained model"
"""Measured on a ViT that `experiment=demo_c1d` had trained, with 1e-12: root mean square 0.0016, at most 0.005."""
_TOKENIZER = r"((?:.+\.)?)(?:embeddings\.patch_embeddings\.(?:projection|proj|linear)|tokenizer\.proj)\.weight"
"""Its name in any program; the group is the modules around the network."""


def place_of(name: str) -> tuple[str, int | None]:
    """Return specvit's name of a weight, and which third of it it is: 0, 1, 2, or None for all; unknown names stay."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    for pattern, own, third in _NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(own), third
    return name, None


def in_own_names(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights under specvit's names, in float32, whatever module of a wrapper they are in.

    Raises `CheckpointError` naming one that is there twice or in part, or is not of floating point.
    """
    parts: dict[str, dict[int | None, Tensor]] = {}
    outer = _outer(weights)
    for name, value in weights.items():
        own, third = place_of(functools.reduce(str.removeprefix, outer, name))
        _check_numbers(name, value, where, known=own.startswith((*ENCODER, *OPTIONAL)))
        held = parts.setdefault(own, {})
        if third in held or (held and None in (third, *held)):
            raise CheckpointError(f"holds {own} twice, once as {name}", where=where, remedy="save one network alone")
        held[third] = value.detach().float()
    found = {}
    for own, held in parts.items():
        if None not in held and (len(held) < 3 or len({value.shape for value in held.values()}) > 1):
            what = f"lacks query, key or value of {own}, or they differ in shape"
            raise CheckpointError(what, where=where, remedy="save the whole network")
        found[own] = held[None] if None in held else torch.cat([held[third] for third in range(3)])
    return found


def _outer(names: Iterable[str]) -> list[str]:
    """Return the modules around the network, such as net. and vit., if it holds just one tokenizer."""
    found = {match[1] for name in names if (match := re.fullmatch(_TOKENIZER, name))}
    return [f"{part}." for part in found.pop().split(".")[:-1]] if len(found) == 1 else []


def _check_numbers(name: str, value: Tensor, where: str, *, known: bool) -> None:
    """Raise `CheckpointError` for a tensor without values here, or a weight in other numbers, as of quantization."""
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    if not dense or (known and not value.is_floating_point()):
        kind = str(value.dtype if dense or value.is_quantized else "meta" if value.is_meta else value.layout)
        what = f"holds {name} as {kind.removeprefix('torch.')}"
        raise CheckpointError(what, where=where, remedy="save the weights in floating point, as float32 or float16")


def start_from(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> tuple[list[str], list[str]]:
    """Put weights into a model; return the names that it lacks, which keep their values, and those left out.

    The tokenizer's weight may be (D, p), (D, 1, p) or (D, 1, 1, p), whichever tokenizer the model has. Raises
    `CheckpointError`, and changes nothing, if tokenizer or encoder do not fit.
    """
    own = model.state_dict()
    fitting = {
        name: value.reshape(own[name].shape)
        for name, value in weights.items()
        if name in own and _shape(name, value) == _shape(name, own[name])
    }
    lacking = [name for name in own if name not in fitting]
    over = [name for name in weights if name not in fitting]
    faults = [_fault(name, weights, own) for name in lacking if not name.startswith(OPTIONAL)]
    faults += [_fault(name, weights, own) for name in over if _of_encoder(name) and name not in own]
    if faults:
        what = f"does not fit the configured model ({named(faults, 2)})"
        raise CheckpointError(what, where=where, remedy=_remedy(weights))
    model.load_state_dict(fitting, strict=False)
    return lacking, over


def note_of_epsilon(weights: Path) -> str:
    """Return how the epsilon of the layer norms differs from specvit's, by `config.json` beside the file; "" if equal.

    It is in no state dict; transformers' default is 1e-12.
    """
    theirs = (read_json(weights.with_name("config.json")) or {}).get("layer_norm_eps")
    if not isinstance(theirs, int | float):
        what = "layer_norm_eps of their model is unknown, since no config.json beside the file has it"
        return f"{what}: {EPSILON:g} here, and {EPSILON_EFFECT} if theirs is transformers' default, 1e-12"
    if theirs == EPSILON:
        return ""
    effect = f": {EPSILON_EFFECT}" if theirs < EPSILON else ", which changes predictions"
    return f"layer_norm_eps is {theirs:g} in their config.json, {EPSILON:g} here{effect}"


def named(names: Sequence[str], most: int = 6) -> str:
    """Return names as text, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _of_encoder(name: str) -> bool:
    """Return whether a weight belongs to tokenizer or encoder, also one of another program that has no place here."""
    return name.startswith(ENCODER) or re.match(_BLOCK, name) is not None


def _shape(name: str, value: Tensor) -> tuple[int, ...]:
    """Return a weight's shape; of the tokenizer's without the axes of its one channel."""
    shape = tuple(value.shape)
    if name != TOKENIZER or len(shape) < 2:
        return shape
    return (shape[0], *(size for size in shape[1:-1] if size != 1), shape[-1])


def _fault(name: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    there, here = (f"{tuple(part[name].shape)}" if name in part else "missing" for part in (weights, own))
    return f"{name} is {there} there and {here} here"


def _remedy(weights: Mapping[str, Tensor]) -> str:
    """Return the settings of the model that the weights are of, as far as their shapes say."""
    if TOKENIZER not in weights or weights[TOKENIZER].ndim < 2:
        return "name the weights of a ViT: transformers' ViTModel, or one of specvit"
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    up = weights.get("blocks.0.feed_forward.up.weight")
    sizes = {
        "patch_size": weights[TOKENIZER].shape[-1],
        "hidden_size": len(weights[TOKENIZER]),
        "num_hidden_layers": len(blocks),
        **({"intermediate_size": len(up)} if up is not None else {}),
        "qkv_bias": str("blocks.0.attention.qkv.bias" in weights).lower(),
    }
    return f"it is of a model with {' '.join(f'model.{key}={value}' for key, value in sizes.items())}"
