"""The registry of models: what the package must know of each `model.kind` without importing torch.

The classes that compute are in `specvit.models.NETWORKS` and `specvit.estimators.ESTIMATORS`, under the same names.
A kind may be combined with an experiment file written for another one: keys that files set for other kinds are dropped,
keys that the user types for other kinds are refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from specvit.config.fields import checked, key
from specvit.config.reduction import check_count, check_reduction, kept_count
from specvit.config.schema import (
    CNNConfig,
    Config,
    LightGBMConfig,
    ModelConfig,
    NetworkConfig,
    RidgeConfig,
    TemplateConfig,
    ViTConfig,
    effective_level,
)
from specvit.utils.errors import ConfigError
from specvit.utils.quantities import NUM_PIXELS

VIT_GROUPS = ("model/size", "model/tokenizer")
STEM_KERNEL, STEM_STRIDE = 8, 4
"""Of each of the two convolutions of the tokenizer `stem`."""
STEM_REACH = (STEM_KERNEL - STEM_STRIDE) // 2 * (1 + STEM_STRIDE)
"""Pixels that a token of the stem reads beyond either end of its patch."""


def _accept(*_: Any) -> None:
    """Accept every configuration."""


@dataclass(frozen=True)
class ModelKind:
    """One kind of model. The plain dicts are those of `config.yaml`; an older one may lack `model.kind` (`vit`)."""

    config: type[ModelConfig]
    parameters: Callable[[dict[str, Any]], int]
    """Plain section `model` -> approximate number of stored numbers."""
    work: Callable[[dict[str, Any]], float]
    """Plain config -> operations of the training, comparable within a kind; 0 where `data.num_samples` is -1."""
    check: Callable[[Any, Config], None] = _accept
    """Raises `ConfigError` for values of its section that exclude each other, or the rest of the configuration."""
    check_pixels: Callable[[Any, int], None] = _accept
    """Raises `ConfigError` if spectra of so many pixels are too short."""
    identity_sections: tuple[str, ...] = ("model", "data", "noise")
    """Sections that are part of an estimator's run id; all of them are for a network."""
    unused_data: tuple[str, ...] = ("order",)
    """Keys of `data` without effect on an estimator, which its run id leaves out."""
    uses_seed: Callable[[Config], bool] = lambda config: effective_level(config.noise) > 0
    """Whether `train.seed` changes an estimator; by default it draws the training noise only."""
    needs_sigma: bool = False
    """Whether its input is the noisy flux with its sigma, (B, 2, P), instead of normalised flux, (B, P)."""
    has_gradient: bool = True
    """Whether its output is differentiable by the flux."""

    @property
    def is_network(self) -> bool:
        """Whether the training loop trains it."""
        return issubclass(self.config, NetworkConfig)


def name_of_kind(plain: Mapping[str, Any], where: str = "model.kind") -> str:
    """Return the name of a plain section's kind, whatever its case; raises `ConfigError`."""
    return checked(plain.get("kind", "vit"), str, key(choices=tuple(MODEL_KINDS)).metadata, where)


def kind_of(model: ModelConfig | dict[str, Any]) -> ModelKind:
    """Return the kind of a section `model`, built or plain; raises `ConfigError`."""
    return MODEL_KINDS[name_of_kind(model) if isinstance(model, dict) else model.kind]


def check_fits(model: ModelConfig, num_pixels: int) -> None:
    """Raise `ConfigError` if a network needs more than `num_pixels` pixels a spectrum."""
    kind_of(model).check_pixels(model, num_pixels)


def num_tokens(model: dict[str, Any], num_pixels: int = NUM_PIXELS) -> int:
    """Return a ViT's tokens of a spectrum that it computes, with the CLS token if there is one."""
    return kept_count(model.get("reduction"), whole_tokens(model, num_pixels)) + (model["pool"] == "cls")


def whole_tokens(model: dict[str, Any], num_pixels: int = NUM_PIXELS) -> int:
    """Return the patches of a spectrum."""
    return (num_pixels - model["patch_size"]) // model["stride_size"] + 1


def _rows(config: dict[str, Any]) -> float:
    return float(max(config["data"]["num_samples"], 0))


def _check_vit(model: ViTConfig, config: Config) -> None:
    check_reduction(model.reduction, config.data.param)
    if model.stride_size > model.patch_size:
        what = f"is {model.stride_size}, more than model.patch_size={model.patch_size}, so pixels would be skipped"
        raise ConfigError(what, where="model.stride_size", remedy=f"set model.stride_size={model.patch_size} or less")
    if model.hidden_size % model.num_attention_heads:
        what = f"is {model.num_attention_heads}, which does not divide model.hidden_size={model.hidden_size}"
        raise ConfigError(what, where="model.num_attention_heads", remedy="choose a divisor of the width")
    if model.proj_fn == "linear" and model.stride_size != model.patch_size:
        what = f"linear cuts the spectrum into separate patches, but model.stride_size={model.stride_size}"
        raise ConfigError(what, where="model.proj_fn", remedy="use model.proj_fn=SW or C1D for overlapping patches")
    if model.proj_fn == "stem":
        _check_stem(model)
    if model.pos_encoding_type == "rope" and (model.hidden_size // model.num_attention_heads) % 2:
        what = "rope turns pairs of channels, so each head needs an even width"
        raise ConfigError(what, where="model.pos_encoding_type", remedy="change model.num_attention_heads")
    if model.pos_encoding_type == "sinusoidal" and model.hidden_size % 2:
        what = "sinusoidal positions need an even model.hidden_size"
        raise ConfigError(what, where="model.pos_encoding_type", remedy="make model.hidden_size even")


def _check_stem(model: ViTConfig) -> None:
    stride = STEM_STRIDE ** len(stem_channels(model.hidden_size))
    for name, size in (("patch_size", model.patch_size), ("stride_size", model.stride_size)):
        if size % stride:
            what = f"is {size}, and the convolutions of model.proj_fn=stem have a stride of {stride} pixels together"
            raise ConfigError(what, where=f"model.{name}", remedy=f"choose a multiple of {stride}")
    if model.hidden_size % STEM_STRIDE:
        what = f"is {model.hidden_size}, of which the convolutions of model.proj_fn=stem have a quarter as channels"
        raise ConfigError(what, where="model.hidden_size", remedy="choose a multiple of 4")


def stem_channels(width: int) -> tuple[int, int]:
    """Return the channels of the stem's convolutions, for tokens of a width."""
    return width // 4, width // 2


def _tokenizer_layers(model: dict[str, Any], num_pixels: int, tokens: int) -> list[tuple[int, int, int]]:
    """Return of each layer before the tokens how often it is applied to a spectrum, its weights and its biases.

    A stem runs over the whole spectrum, or over the patch of each token with its margins where not all are kept.
    """
    width, patch = model["hidden_size"], model["patch_size"]
    if model["proj_fn"] != "stem":
        return [(tokens, patch * width, width)]
    layers, inputs, pixels, margin = [], 1, num_pixels, STEM_KERNEL - STEM_STRIDE
    for channels in stem_channels(width):
        pixels, patch = pixels // STEM_STRIDE, patch // STEM_STRIDE
        times = pixels if tokens == whole_tokens(model, num_pixels) else tokens * (patch + margin)
        layers.append((times, STEM_KERNEL * inputs * channels, channels))
        inputs, margin = channels, 0
    return [*layers, (tokens, patch * inputs * width, width)]


def _check_vit_pixels(model: ViTConfig, num_pixels: int) -> None:
    if model.patch_size > num_pixels:
        what = f"is {model.patch_size} but a spectrum has {num_pixels} pixels"
        raise ConfigError(what, where="model.patch_size", remedy="choose a smaller patch")
    check_count(model.reduction, (num_pixels - model.patch_size) // model.stride_size + 1)


def _vit_parameters(model: dict[str, Any]) -> int:
    width, feed_forward = model["hidden_size"], model["intermediate_size"]
    tokenizer = sum(
        weights + biases for _, weights, biases in _tokenizer_layers(model, NUM_PIXELS, whole_tokens(model))
    )
    block = 4 * width * width + 2 * width * feed_forward + (9 if model["qkv_bias"] else 6) * width + feed_forward
    positions = (
        (whole_tokens(model) + (model["pool"] == "cls")) * width if model["pos_encoding_type"] == "learned" else 0
    )
    return tokenizer + positions + model["num_hidden_layers"] * block + 4 * width


def vit_stage_flops(
    model: dict[str, Any], num_pixels: int = NUM_PIXELS, num_outputs: int = 1, kept: int | None = None
) -> dict[str, int]:
    """Return the operations of a forward pass's matrix products for one spectrum, by part of the network.

    Tokenizer 2NPD (of a stem, each layer's weights twice an output pixel), blocks 4SD^2 + Q(4D^2 + 4DF) + 4QSD each,
    head 2DK, with N tokens (`kept`, by default as many as the configuration keeps), S with CLS, P the patch, F the
    feed-forward width and Q the tokens that the block returns: all S, in the last block only CLS if it is pooled.
    """
    cls, width, layers = int(model["pool"] == "cls"), model["hidden_size"], model["num_hidden_layers"]
    tokens = num_tokens(model, num_pixels) - cls if kept is None else kept
    count = tokens + cls
    queries = count * (layers - 1) + (cls or count)
    blocks = 4 * width * (layers * count * width + queries * (width + model["intermediate_size"] + count))
    tokenizer = sum(2 * times * weights for times, weights, _ in _tokenizer_layers(model, num_pixels, tokens))
    return {"tokenizer": tokenizer, "blocks": blocks, "head": 2 * width * num_outputs}


def vit_flops(
    model: dict[str, Any], num_pixels: int = NUM_PIXELS, num_outputs: int = 1, kept: int | None = None
) -> tuple[int, int]:
    """Return the operations of matrix products for one spectrum: forward, see `vit_stage_flops`, and in training.

    Training is three times that without the gradient by the first layer's input, which nothing needs.
    """
    tokens = num_tokens(model, num_pixels) - int(model["pool"] == "cls") if kept is None else kept
    times, weights, _ = _tokenizer_layers(model, num_pixels, tokens)[0]
    forward = sum(vit_stage_flops(model, num_pixels, num_outputs, kept).values())
    return forward, 3 * forward - 2 * times * weights


def _vit_work(config: dict[str, Any]) -> float:
    return vit_flops(config["model"])[1] * _rows(config) * config["train"]["epochs"]


def _check_cnn_pixels(model: CNNConfig, num_pixels: int) -> None:
    if model.pool_size ** len(model.channels) > num_pixels:
        what = f"pools {len(model.channels)} times by {model.pool_size}, and nothing is left of {num_pixels} pixels"
        raise ConfigError(what, where="model.channels", remedy="take fewer stages or a smaller model.pool_size")


def _cnn_layers(model: dict[str, Any], num_pixels: int = NUM_PIXELS, num_outputs: int = 1) -> list[tuple[int, int]]:
    """Return the pixels and the weights of each layer of a CNN."""
    pixels, inputs, kernel, layers = num_pixels, 1, model["kernel_size"], []
    for outputs in model["channels"]:
        pixels += 2 * (kernel // 2) - kernel + 1
        layers.append((pixels, inputs * outputs * kernel))
        pixels, inputs = pixels // model["pool_size"], outputs
    return [*layers, (1, pixels * inputs * model["head_size"]), (1, model["head_size"] * num_outputs)]


def cnn_flops(model: dict[str, Any], num_pixels: int = NUM_PIXELS, num_outputs: int = 1) -> tuple[int, int]:
    """Return the operations of matrix products for one spectrum, forward and in training: 2 a weight and pixel."""
    first, *others = (2 * pixels * weights for pixels, weights in _cnn_layers(model, num_pixels, num_outputs))
    return first + sum(others), 2 * first + 3 * sum(others)


def _cnn_work(config: dict[str, Any]) -> float:
    return cnn_flops(config["model"])[1] * _rows(config) * config["train"]["epochs"]


def _check_ridge(model: RidgeConfig, _: Config) -> None:
    low, high = model.alpha_range
    if low > high:
        remedy = f"set model.alpha_range=[{high:g},{low:g}]"
        raise ConfigError(f"goes from {low:g} down to {high:g}", where="model.alpha_range", remedy=remedy)
    if model.num_alphas == 1 and low != high:
        what = f"is 1, so only the first of the penalties from {low:g} to {high:g} would be tried"
        remedy = "set model.alpha_range=[A,A] for one penalty A, or more of them"
        raise ConfigError(what, where="model.num_alphas", remedy=remedy)


def _check_lightgbm(_: LightGBMConfig, config: Config) -> None:
    if len(config.data.param) > 1:
        what = f"names {len(config.data.param)} labels, but model=lightgbm learns one"
        raise ConfigError(what, where="data.param", remedy="make a run for each")


def _template_work(config: dict[str, Any]) -> float:
    return _rows(config) * NUM_PIXELS * sum(max(config["data"][name], 0) for name in ("val_samples", "test_samples"))


MODEL_KINDS: dict[str, ModelKind] = {
    "vit": ModelKind(ViTConfig, _vit_parameters, _vit_work, check=_check_vit, check_pixels=_check_vit_pixels),
    "cnn": ModelKind(
        CNNConfig,
        parameters=lambda model: sum(weights for _, weights in _cnn_layers(model)),
        work=_cnn_work,
        check_pixels=_check_cnn_pixels,
    ),
    "ridge": ModelKind(
        RidgeConfig,
        parameters=lambda model: NUM_PIXELS,
        work=lambda config: _rows(config) * NUM_PIXELS**2,
        check=_check_ridge,
    ),
    "lightgbm": ModelKind(
        LightGBMConfig,
        parameters=lambda model: 10 * model["num_trees"] * model["num_leaves"],
        work=lambda config: (
            _rows(config) * NUM_PIXELS * config["model"]["pixel_fraction"] * config["model"]["num_trees"]
        ),
        check=_check_lightgbm,
        identity_sections=("model", "data", "noise", "loss"),
        uses_seed=lambda config: True,
        has_gradient=False,
    ),
    "template": ModelKind(
        TemplateConfig,
        parameters=lambda model: 0,
        work=_template_work,
        unused_data=("order", "flux_norm"),
        uses_seed=lambda config: False,
        needs_sigma=True,
        has_gradient=False,
    ),
}


def kinds_with(dotted: str) -> list[str]:
    """Return the kinds of model that have a key, such as `model.patch_size`; none for keys of other sections."""
    section, _, name = dotted.partition(".")
    name = name.partition(".")[0]  # of model.reduction.kind, reduction
    return [
        kind for kind, about in MODEL_KINDS.items() if section == "model" and name in about.config.__dataclass_fields__
    ]


def refuse_foreign(dotted: str, kind: str | None) -> None:
    """Raise `ConfigError` for a key or group of other kinds of model than `kind` (None: the chosen one)."""
    kinds = ["vit"] if dotted in VIT_GROUPS else kinds_with(dotted)
    if not kinds or kind in kinds:
        return
    owners = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    what = f"belongs to model={owners}, not to " + (f"model={kind}" if kind else "the model that was chosen")
    raise ConfigError(what, where=dotted, remedy=f"leave it out, or use model={kinds[0]}")


def settle(resolved: dict[str, Any], overrides: Iterable[str]) -> None:
    """Keep only the keys of its own kind in `resolved["model"]`; raise `ConfigError` for `overrides` of others."""
    model = resolved.get("model")
    if not isinstance(model, dict) or "kind" not in model:
        return
    try:
        kind = model["kind"] = name_of_kind(model)
    except ConfigError:
        return  # the builder reports it, with all other faults
    for text in overrides:
        refuse_foreign(text.lstrip("+").partition("=")[0], kind)
    for name in list(model):
        if (owners := kinds_with(f"model.{name}")) and kind not in owners:
            del model[name]
