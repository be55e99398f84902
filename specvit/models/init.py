"""The initialisation rule, and the legacy one for the study that compares them.

`specvit`: every tokenizer weight is normal with std 1/sqrt(3 patch), whatever the module that holds it; other linear
weights, positions and CLS are normal with std 0.02; biases are zero.

`legacy` is that of the transformers library: linear weights (so the SW tokenizer, too) std 0.02, but a Conv1d has
torch's default of uniform +-1/sqrt(patch) (std 0.144 at patch 16), and positions and CLS have std 1.0. A tokenizer
study under it compares initialisations, not tokenizers. `legacy_tokenizer` and `legacy_positions` are one half
of it each: the tokenizer's weights, or the std of positions and CLS.

`fan_in` is `specvit` with one std for all weight matrices, 1/sqrt(3 inputs), which is that of torch's `nn.Linear` and
of the tokenizers here: 0.072 at width 64, where 0.02 is that of a width of 833.

The convolutions of a stem are normal with std 1/sqrt(inputs) under every rule.

Each parameter has its own random stream, keyed by its name: another pooling or position leaves the others unchanged,
and C1D and SW start from identical numbers.
"""

import math

import torch
from torch import Tensor, nn

from specvit.utils import seeding

LINEAR_STD = 0.02


def token_std(rule: str) -> float:
    """Return the std of positions and of the CLS token."""
    return 1.0 if rule in ("legacy", "legacy_positions") else 0.02


def initialise(model: nn.Module, *, rule: str, seed: int) -> None:
    """Set every parameter of `model` by `rule`; the same (rule, seed, name, shape) gives the same numbers."""
    tokenizer = model.get_submodule("tokenizer.proj")
    old_tokenizer = rule in ("legacy", "legacy_tokenizer")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = seeding.torch_rng(seed, "init", name)
            if name == "tokenizer.proj.weight":
                _initialise_tokenizer(parameter, isinstance(tokenizer, nn.Conv1d), generator, old=old_tokenizer)
            elif name == "tokenizer.proj.bias" and old_tokenizer and isinstance(tokenizer, nn.Conv1d):
                bound = tokenizer.kernel_size[0] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            elif name.startswith("tokenizer.stages.") and name.endswith(".weight"):
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            elif name in ("cls_token", "positions.weight"):
                parameter.normal_(0.0, token_std(rule), generator=generator)
            elif name == "pool.score.weight" or name.endswith(".bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                std = 1.0 / math.sqrt(3 * parameter.shape[-1]) if rule == "fan_in" else LINEAR_STD
                parameter.normal_(0.0, std, generator=generator)


def _initialise_tokenizer(weight: Tensor, is_conv: bool, generator: torch.Generator, *, old: bool) -> None:
    patch = weight[0].numel()
    if not old:
        weight.normal_(0.0, 1.0 / math.sqrt(3 * patch), generator=generator)
    elif is_conv:
        weight.uniform_(-(patch**-0.5), patch**-0.5, generator=generator)
    else:
        weight.normal_(0.0, LINEAR_STD, generator=generator)
