"""Weights of transformers' ViTModel and of Lightning modules as a start: the same predictions, or one sentence."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specvit.commands.train import main as train_main
from specvit.config.schema import ViTConfig
from specvit.models import ViT, build_model
from specvit.models.foreign_weights import EPSILON, in_own_names, start_from
from specvit.run import train_network
from specvit.training import checkpoint

PIXELS = 100
BLOCK = {
    "norm_attention": ("layernorm_before", "layernorm_before"),
    "attention.out": ("attention.output.dense", "attention.o_proj"),
    "norm_feed_forward": ("layernorm_after", "layernorm_after"),
    "feed_forward.up": ("intermediate.dense", "mlp.fc1"),
    "feed_forward.down": ("output.dense", "mlp.fc2"),
}
"""Names in transformers before version 5 and since, by specvit's."""


def config(**changes: Any) -> ViTConfig:
    """Return a small ViT without dropout."""
    sizes = {"patch_size": 10, "stride_size": 10, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTConfig(**(sizes | {"intermediate_size": 24, "dropout": 0.0} | changes))


def vit(seed: int, num_outputs: int = 1, **changes: Any) -> ViT:
    """Return a network none of whose weights is 0 or 1."""
    model = build_model(config(**changes), num_pixels=PIXELS, num_outputs=num_outputs, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(model, ViT)
    return model.eval()


def under_their_names(state: dict[str, Tensor], *, new: bool, prefix: str = "") -> dict[str, Tensor]:
    """Return a specvit network's weights as transformers names them."""
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["positions.weight"],
        "embeddings.patch_embeddings.projection.bias": state["tokenizer.proj.bias"],
        "embeddings.patch_embeddings.projection.weight": state["tokenizer.proj.weight"].reshape(-1, 1, 1, 10),
    }
    for kind in ("weight", "bias"):
        for block in range(2):
            own, other = f"blocks.{block}", f"layers.{block}" if new else f"encoder.layer.{block}"
            for name, (before, since) in BLOCK.items():
                theirs[f"{other}.{since if new else before}.{kind}"] = state[f"{own}.{name}.{kind}"]
            query, key, value = state[f"{own}.attention.qkv.{kind}"].split(16)
            for name, third in (("query", query), ("key", key), ("value", value)):
                named = f"attention.{name[0]}_proj" if new else f"attention.attention.{name}"
                theirs[f"{other}.{named}.{kind}"] = third
        theirs[f"layernorm.{kind}"] = state[f"norm.{kind}"]
    head = {f"{prefix.removesuffix('vit.')}classifier.{kind}": state[f"head.{kind}"] for kind in ("weight", "bias")}
    return {f"{prefix}{name}": value for name, value in theirs.items()} | head


@pytest.mark.parametrize("tokenizer", ["C1D", "SW", "linear"])
@pytest.mark.parametrize(
    ("new", "prefix"),
    [
        (False, ""),
        (True, "model.vit."),
        (False, "module._orig_mod.vit."),
        (True, "net.backbone.vit."),
        (False, "encoder."),
    ],
)
def test_the_same_predictions(tokenizer: str, new: bool, prefix: str) -> None:
    source, target = vit(1), vit(2, proj_fn=tokenizer)
    flux_BP = torch.randn(3, PIXELS, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(source(flux_BP), target(flux_BP), atol=1e-3)
    weights = in_own_names(under_their_names(source.state_dict(), new=new, prefix=prefix), "x.pt")
    assert start_from(target, weights, "x.pt") == ([], [])
    torch.testing.assert_close(target(flux_BP), source(flux_BP), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "tolerance"), [(1e-5, 1e-5), (1e-12, 2e-4)])
def test_a_model_of_transformers_itself(epsilon: float, tolerance: float) -> None:
    """The second epsilon of its layer norms is its default, specvit's is the first."""
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    shape = {"image_size": (1, PIXELS), "patch_size": (1, 10), "num_channels": 1}
    torch.manual_seed(0)
    theirs = transformers.ViTModel(
        transformers.ViTConfig(**sizes, **shape, layer_norm_eps=epsilon), add_pooling_layer=True
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    ours = vit(2)
    lacking, over = start_from(ours, in_own_names(theirs.state_dict(), "x.pt"), "x.pt")
    assert (lacking, over) == (["head.weight", "head.bias"], ["pooler.dense.weight", "pooler.dense.bias"])
    flux_BP = torch.randn(4, PIXELS)
    expected = ours.head(theirs(flux_BP[:, None, None, :]).last_hidden_state[:, 0])
    torch.testing.assert_close(ours(flux_BP), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_run_starts_from_them_and_says_what_it_did_not_take(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a Lightning checkpoint with the weights of a model of two outputs and a pooler."""
    still = [*tiny, "train.epochs=1", "opt.lr=1e-12", "opt.eta_min=0", f"tracking.folder={tmp_path / 'runs'}"]
    assert train_main(still) == 0
    (first,) = (tmp_path / "runs").iterdir()
    state = checkpoint.load(first / "best.ckpt")["model"]
    state = {name: value + 0.1 for name, value in state.items()}
    kept = {name: value for name, value in state.items() if not name.startswith("head")}
    own_names = {f"model.{name}": value for name, value in kept.items()}
    extra = {"model.head.weight": torch.ones(2, 16), "model.pooler.dense.bias": torch.ones(16)}
    content = {"epoch": 7, "format": "pt", "state_dict": {**own_names, **extra}}
    torch.save(content, tmp_path / "lightning.ckpt")
    capsys.readouterr()
    assert train_main([*still, f"train.init_from={tmp_path / 'lightning.ckpt'}"]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "lightning.ckpt" in line]
    assert "as model.init makes them: head.weight, head.bias" in note
    assert "left out: head.weight, pooler.dense.bias" in note and "model.num_attention_heads=2" in note
    assert "layer_norm_eps of their model is unknown" in note
    (second,) = set((tmp_path / "runs").iterdir()) - {first}
    tuned = checkpoint.load(second / "best.ckpt")["model"]
    assert all(torch.allclose(tuned[name], value, atol=1e-6) for name, value in kept.items())
    assert not torch.allclose(tuned["head.weight"], state["head.weight"], atol=1e-2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is unknown, since no config.json"),
        ('{"model_type": "vit"}', "is unknown, since no config.json"),
        ("{damaged", "is unknown, since no config.json"),
        (
            '{"layer_norm_eps": 1e-12}',
            "layer_norm_eps is 1e-12 in their config.json, 1e-05 here: predictions differ by",
        ),
        ('{"layer_norm_eps": 1e-3}', "layer_norm_eps is 0.001 in their config.json, 1e-05 here, which changes"),
        ('{"layer_norm_eps": 1e-5}', ""),
    ],
)
def test_the_epsilon_of_their_layer_norms_is_read_beside_the_file(
    content: str | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    torch.save(under_their_names(vit(1).state_dict(), new=True), tmp_path / "model.pt")
    note = train_network.read_weights(str(tmp_path / "model.pt")).norm_note
    assert said in note if said else note == ""


def test_specvits_layer_norms_have_the_epsilon_that_the_note_names() -> None:
    norms = [module for module in vit(1).modules() if isinstance(module, nn.LayerNorm)]
    assert norms and {norm.eps for norm in norms} == {EPSILON}


def saved(content: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save(content, path)


def weights(**changes: Any) -> dict[str, Tensor]:
    """Return those of a network as `tiny` configures it, but for `changes`."""
    sizes = {"patch_size": 32, "stride_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    model = build_model(config(**(sizes | changes)), num_pixels=4096, num_outputs=1, seed=0)
    return dict(model.state_dict())


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "objects.pt": (saved({"args": argparse.Namespace(), "state_dict": weights()}), "holds Python objects (argparse.N"),
    "text.pt": (lambda path: path.write_text("no weights"), "cannot be read as a checkpoint"),
    "list.pth": (saved([torch.ones(2)]), "holds no network's weights"),
    "nothing.bin": (saved({"epoch": 3}), "holds no network's weights"),
    "wide.pt": (saved(weights(hidden_size=32)), "it is of a model with model.patch_size=32 model.hidden_size=32"),
    "deep.pt": (saved(weights(num_hidden_layers=3)), "model.num_hidden_layers=3"),
    "patch.pt": (saved(weights(patch_size=16, stride_size=32)), "tokenizer.proj.weight is (16, 1, 16) there"),
    "biasless.pt": (saved(weights(qkv_bias=False)), "model.qkv_bias=false"),
    "other.pt": (saved({"conv.weight": torch.ones(3)}), "name the weights of a ViT"),
    "nan.pt": (saved({**weights(), "norm.bias": torch.full((16,), torch.nan)}), "norm.bias is not finite"),
    "quantized.pt": (
        saved({name: (50 * value).to(torch.int8) for name, value in weights().items()}),
        "as int8; save the weights in floating point",
    ),
    "sparse.pt": (saved({**weights(), "norm.bias": torch.ones(16).to_sparse()}), "holds norm.bias as sparse_coo"),
    "flat.pt": (saved({**weights(), "tokenizer.proj.weight": torch.ones(16)}), "tokenizer.proj.weight is (16,) there"),
    "number.pt": (
        saved({**weights(), "tokenizer.proj.weight": torch.tensor(1.0)}),
        "tokenizer.proj.weight is () there",
    ),
    "scaled.pt": (
        saved({**weights(), "layers.0.layer_scale1.lambda1": torch.ones(16)}),
        "layers.0.layer_scale1.lambda1 is (16,) there and missing here",
    ),
    "two.pt": (
        saved({f"{which}.{name}": value for which in ("student", "teacher") for name, value in weights().items()}),
        "name the weights of a ViT",
    ),
    "twice.pt": (saved({**weights(), "model.norm.bias": torch.ones(16)}), "holds norm.bias twice"),
    "thirds.pt": (saved({**weights(), "layers.0.attention.q_proj.bias": torch.ones(16)}), "twice"),
    "third.pt": (
        saved({"layers.0.attention.q_proj.bias": torch.ones(16)}),
        "lacks query, key or value of blocks.0.att",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(
    name: str, tmp_path: Path, tiny: list[str], refused: Callable[[list[str]], str]
) -> None:
    write, complaint = REFUSED[name]
    write(tmp_path / name)
    sentence = refused([*tiny, f"train.init_from={tmp_path / name}"])
    assert "train.init_from" in sentence and name in sentence and complaint in sentence


@pytest.mark.slow
def test_safetensors(tmp_path: Path, tiny: list[str], refused: Callable[[list[str]], str]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no tensors")
    try:
        library: Any = importlib.import_module("safetensors.torch")
    except ImportError:
        assert "needs the package safetensors; pip install safetensors" in refused([*tiny, f"train.init_from={path}"])
        return
    assert "cannot be read" in refused([*tiny, f"train.init_from={path}"])
    library.save_file(weights(), path)
    assert train_main([*tiny, "train.epochs=1", f"train.init_from={path}"]) == 0
