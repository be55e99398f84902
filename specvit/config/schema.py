"""Every config key with its type, default, choices and range; the YAML files of `conf/` only set values.

The rest of specvit sees these frozen dataclasses and nothing of Hydra; each part receives its own section.
"""

from dataclasses import dataclass, field
from typing import Any

from specvit.config.durations import Duration, read_duration
from specvit.config.fields import key, mapping


@dataclass(frozen=True)
class ModelConfig:
    """`model`: the section that its `kind` selects; `config.model_kinds` lists the kinds."""

    kind: str
    task_type: str


@dataclass(frozen=True)
class NetworkConfig(ModelConfig):
    """A model that the training loop trains; the others, the estimators, are fitted in one go."""


def _reduces(reduction: "ReductionConfig") -> bool:
    return reduction.kind != "none"


@dataclass(frozen=True)
class ReductionConfig:
    """`model.reduction`: which tokens of a spectrum the network computes; checked by `config.reduction`."""

    kind: str = key("none", choices=("none", "static"), neutral="none")
    select: str = key("fisher", choices=("fisher", "uniform", "random", "list"), used_if=_reduces)
    merge_ratio: float | None = key(None, above=0.0, high=1.0, used_if=_reduces)
    target_merge_tokens: int | None = key(None, low=1, used_if=_reduces)
    select_label: str | None = key(None, used_if=_reduces)
    keep_wavelengths: tuple[tuple[float, float], ...] | None = key(None, above=0.0, commas=True, used_if=_reduces)


@dataclass(frozen=True)
class ViTConfig(NetworkConfig):
    """`model=vit`: the network, from pixels to the prediction."""

    kind: str = key("vit", choices=("vit",))
    task_type: str = key("reg", choices=("reg", "cls"), aliases={"regression": "reg", "classification": "cls"})
    patch_size: int = key(16, low=1, high=1_000_000)
    stride_size: int = key(16, low=1, high=1_000_000)
    hidden_size: int = key(256, low=1, high=65_536)
    num_hidden_layers: int = key(6, low=1, high=1_000)
    num_attention_heads: int = key(8, low=1, high=65_536)
    intermediate_size: int = key(1024, low=1, high=1_048_576)
    dropout: float = key(0.1, low=0.0, high=0.95)
    proj_fn: str = key("C1D", choices=("C1D", "SW", "linear", "stem"), aliases={"cnn": "C1D"})
    pos_encoding_type: str = key("learned", choices=("learned", "sinusoidal", "rope", "none"))
    pool: str = key("cls", choices=("cls", "mean", "attention"))
    qkv_bias: bool = key(True)
    init: str = key("specvit", choices=("specvit", "fan_in", "legacy", "legacy_tokenizer", "legacy_positions"))
    reduction: ReductionConfig = field(default_factory=ReductionConfig)


@dataclass(frozen=True)
class CNNConfig(NetworkConfig):
    """`model=cnn`: a plain 1-D convolutional network: stages of convolution, GELU and pooling, then two layers."""

    kind: str = key("cnn", choices=("cnn",))
    task_type: str = key("reg", choices=("reg", "cls"), aliases={"regression": "reg", "classification": "cls"})
    channels: tuple[int, ...] = key((16, 32, 64, 64), low=1, high=65_536, commas=True)
    kernel_size: int = key(9, low=1, high=1_000_000)
    pool_size: int = key(4, low=2, high=1_000_000)
    head_size: int = key(128, low=1, high=1_048_576)
    head_dropout: float = key(0.1, low=0.0, high=0.95)


@dataclass(frozen=True)
class RidgeConfig(ModelConfig):
    """`model=ridge`: linear regression on standardised pixels; the penalty is the best on validation rows."""

    kind: str = key("ridge", choices=("ridge",))
    task_type: str = key("reg", choices=("reg",))
    alpha_range: tuple[float, float] = key((0.1, 1e7), above=0.0, commas=True)
    num_alphas: int = key(33, low=1, high=100_000)


@dataclass(frozen=True)
class LightGBMConfig(ModelConfig):
    """`model=lightgbm`: gradient-boosted trees on pixels, stopped where the validation error no longer falls."""

    kind: str = key("lightgbm", choices=("lightgbm",))
    task_type: str = key("reg", choices=("reg",))
    num_trees: int = key(3000, low=1, high=1_000_000)
    patience: int | None = key(50, low=1)
    learning_rate: float = key(0.05, above=0.0, high=1.0)
    num_leaves: int = key(15, low=2, high=131_072)
    min_leaf_rows: int = key(200, low=1, high=1_000_000_000)
    pixel_fraction: float = key(0.05, above=0.0, high=1.0)
    max_bins: int = key(63, low=2, high=255)


@dataclass(frozen=True)
class TemplateConfig(ModelConfig):
    """`model=template`: training spectra without noise as templates, weighted by their likelihood, or the best fit."""

    kind: str = key("template", choices=("template",))
    task_type: str = key("reg", choices=("reg",))
    estimate: str = key("mean", choices=("mean", "best"))


@dataclass(frozen=True)
class DataConfig:
    """`data`: which spectra, which labels, how both are normalised."""

    kind: str = key("hdf5", choices=("hdf5", "builtin", "synth"))
    root: str | None = key(None, identity=False)
    file_path: tuple[str, ...] | None = key(None, commas=True, identity=False)
    val_path: tuple[str, ...] | None = key(None, commas=True, identity=False)
    test_path: tuple[str, ...] | None = key(None, commas=True, identity=False)
    num_samples: int = key(-1, low=-1, high=1_000_000_000, identity=False)
    val_samples: int = key(-1, low=-1, high=100_000_000, identity=False)
    test_samples: int = key(-1, low=-1, high=100_000_000, identity=False)
    subset: str = key("first", choices=("first", "random"))
    subset_seed: int = key(0, low=0, high=2**63 - 1, used_if=lambda data: data.subset == "random")
    folds: int = key(0, low=0, high=1_000, neutral=0)
    fold: int = key(0, low=0, high=999, used_if=lambda data: data.folds > 0)
    param: tuple[str, ...] = key(("log_g",), commas=True)
    class_edges: tuple[float, ...] | None = key(None, commas=True)
    label_norm: str = key("standard", choices=("standard", "minmax", "none"))
    flux_norm: str = key("standard", choices=("standard", "none"))
    order: str = key("global", choices=("global", "block"))
    builtin_seed: int = key(0, low=0, high=2**63 - 1, used_if=lambda data: data.makes)
    max_redshift: float = key(0.0, low=0.0, high=0.001, neutral=0.0, used_if=lambda data: data.makes)
    label_prior: str = key(
        "uniform", choices=("uniform", "published"), neutral="uniform", used_if=lambda data: data.makes
    )
    endless: bool = key(False, neutral=False, used_if=lambda data: data.kind == "synth")
    resident: str = key("auto", choices=("auto", "never"), identity=False)
    storage: str = key("float32", choices=("float32", "float16"))
    observed: bool | None = key(None, identity=False)
    max_masked: float = key(0.2, low=0.0, high=0.99, identity=False)

    @property
    def makes(self) -> bool:
        """Whether specvit makes the training spectra itself."""
        return self.kind in ("builtin", "synth")


@dataclass(frozen=True)
class NoiseConfig:
    """`noise`: fresh noise each training step, one fixed realisation for val and test."""

    noise_level: float = key(1.0, low=0.0, used_if=lambda noise: noise.noise_type != "none")
    noise_type: str = key("heteroscedastic", choices=("heteroscedastic", "homoscedastic", "none"))
    eval_seed: int = key(42, low=0, high=2**63 - 1, used_if=lambda noise: effective_level(noise) > 0)
    on_observed: str = key("none", choices=("none", "add"), neutral="none")


def effective_level(noise: NoiseConfig) -> float:
    """Return the noise level that has effect: 0 for `noise_type=none`."""
    return 0.0 if noise.noise_type == "none" else noise.noise_level


@dataclass(frozen=True)
class LossConfig:
    """`loss`: computed in float32 on normalised labels."""

    name: str = key(
        "mse", choices=("mse", "l1", "huber", "gaussian", "laplace", "ce"), aliases={"l2": "mse", "mae": "l1"}
    )
    huber_delta: float = key(1.0, above=0.0, used_if=lambda loss: loss.name == "huber")
    label_smoothing: float = key(0.0, low=0.0, high=0.5, used_if=lambda loss: loss.name == "ce")


@dataclass(frozen=True)
class OptConfig:
    """`opt`: optimizer and learning-rate schedule; durations in epochs, turned into steps once."""

    type: str = key("AdamW", choices=("AdamW", "Adam", "SGD", "RMSprop"))
    lr: float = key(3e-4, above=0.0)
    weight_decay: float = key(0.01, low=0.0)
    betas: tuple[float, float] = key(
        (0.9, 0.999), low=0.0, high=0.9999999, commas=True, used_if=lambda opt: opt.type.startswith("Adam")
    )
    momentum: float = key(0.9, low=0.0, high=0.9999999, used_if=lambda opt: opt.type in ("SGD", "RMSprop"))
    lr_sch: str = key(
        "cosine", choices=("cosine", "plateau", "onecycle", "constant", "step"), aliases={"none": "constant"}
    )
    eta_min: float = key(1e-5, low=0.0, used_if=lambda opt: opt.lr_sch in ("cosine", "onecycle", "plateau"))
    warmup_epochs: float = key(0.0, low=0.0)
    step_epochs: float = key(30.0, above=0.0, used_if=lambda opt: opt.lr_sch == "step")
    factor: float = key(0.5, above=0.0, high=1.0, used_if=lambda opt: opt.lr_sch in ("step", "plateau"))
    plateau_patience: int = key(10, low=0, used_if=lambda opt: opt.lr_sch == "plateau")


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """`train.early_stopping`: `monitor` also chooses a network's best checkpoint; patience null never stops early.

    `patience` is in epochs, however often a run is validated. With `target` a run ends at the first validation that
    reaches it.
    """

    monitor: str = key("val_mae")
    mode: str = key("min", choices=("min", "max"))
    patience: int | None = key(None, low=1)
    target: float | None = key(None, neutral=None)


@dataclass(frozen=True)
class TrainConfig:
    """`train`: the loop. `batch_size` is one forward pass; a step takes `batch_size * accumulate` spectra.

    `eval_every`, `log_every` and `save_every` are durations (`config.durations`).
    """

    epochs: int = key(200, low=1, high=10_000_000)
    batch_size: int = key(256, low=1, high=10_000_000)
    accumulate: int = key(1, low=1, high=1_000_000)
    precision: str = key("16-mixed", choices=("32", "16-mixed", "bf16-mixed", "auto"))
    gradient_clip: float | None = key(0.5, above=0.0)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    eval_every: Duration = key(1, read=read_duration, neutral=1)
    log_every: Duration | None = key(None, read=read_duration, identity=False)
    save_every: Duration = key(1, read=read_duration, identity=False)
    init_from: str | None = key(None, identity=False)
    device: str = key("auto", identity=False)
    threads: int | None = key(None, low=1, high=4_096, identity=False)
    keep_memory: bool = key(True, identity=False)
    seed: int = key(42, low=0, high=2**63 - 1)
    deterministic: bool = key(True)
    compile: bool = key(False)
    checkpoint_blocks: bool = key(False, identity=False)
    rerun: bool = key(False, identity=False)


def _texts(raw: Any, where: str) -> dict[str, str]:
    return {name: str(value) for name, value in mapping(raw, where).items()}


@dataclass(frozen=True)
class TrackingConfig:
    """`tracking`: names and places; nothing here can change a result, so nothing here is in the run id."""

    experiment: str = key("specvit", identity=False)
    uri: str | None = key(None, identity=False)
    live: bool = key(True, identity=False)
    name: str | None = key(None, identity=False)
    tags: dict[str, str] = key(dict, read=_texts, identity=False)
    notes: str | None = key(None, may_be_empty=True, identity=False)
    folder: str = key("outputs", identity=False)
    progress: str = key("auto", choices=("auto", "bar", "lines", "none"), identity=False)


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    model: ModelConfig = field(default_factory=ViTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    opt: OptConfig = field(default_factory=OptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
