"""The convolutional stem: its tokens, what they read, how it starts, and what is refused."""

import pytest
import torch

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import ViTConfig
from specvit.models import build_model
from specvit.models.vit import ViT
from specvit.utils.errors import ConfigError

SIZES = {
    "proj_fn": "stem",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def vit(num_pixels: int, patch: int = 64, stride: int = 64, **changes: object) -> ViT:
    """Return a ViT with a stem."""
    config = ViTConfig(**(SIZES | {"patch_size": patch, "stride_size": stride} | changes))
    model = build_model(config, num_pixels=num_pixels, num_outputs=1, seed=3)
    assert isinstance(model, ViT)
    return model


@pytest.mark.parametrize(
    ("num_pixels", "patch", "stride"), [(4096, 64, 64), (4300, 96, 48), (4111, 64, 16), (64, 64, 64), (100, 16, 16)]
)
def test_it_gives_as_many_tokens_as_the_others(num_pixels: int, patch: int, stride: int) -> None:
    model = vit(num_pixels, patch, stride)
    tokens_BND = model.tokenizer(torch.randn(2, num_pixels))
    assert tokens_BND.shape == (2, (num_pixels - patch) // stride + 1, 64)
    assert model.num_tokens == tokens_BND.shape[1]


def test_a_token_reads_its_patch_and_ten_pixels_on_either_side() -> None:
    model, flux_BP = vit(250), torch.randn(1, 250, requires_grad=True)
    model.tokenizer(flux_BP)[0, 1].sum().backward()
    assert flux_BP.grad is not None
    read = flux_BP.grad[0].nonzero().flatten()
    assert (read[0], read[-1], len(read)) == (64 - 10, 128 + 10 - 1, 64 + 20)
    assert model.cost().unread_pixels == 250 - (3 * 64 + 10) and vit(200).cost().unread_pixels == 0


def test_its_convolutions_keep_the_variance_of_their_input_under_every_rule() -> None:
    for rule in ("specvit", "fan_in", "legacy"):
        weights = {name: value for name, value in vit(4096, init=rule).named_parameters() if "stages" in name}
        assert [name for name in weights if name.endswith("weight")] == [
            "tokenizer.stages.0.weight",
            "tokenizer.stages.2.weight",
        ]
        assert weights["tokenizer.stages.0.weight"].std().item() == pytest.approx(8**-0.5, rel=0.15)
        assert weights["tokenizer.stages.2.weight"].std().item() == pytest.approx((8 * 16) ** -0.5, rel=0.05)
        assert not weights["tokenizer.stages.0.bias"].any()
    assert vit(4096).tokenizer.proj.weight.std().item() == pytest.approx((3 * 4 * 32) ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.patch_size=40"],
            "model.patch_size: is 40, and the convolutions of model.proj_fn=stem have a stride of",
        ),
        (["model.patch_size=32", "model.stride_size=8"], "model.stride_size: is 8, .* choose a multiple of 16"),
        (["model.hidden_size=90", "model.num_attention_heads=2"], "model.hidden_size: is 90, .* multiple of 4"),
    ],
)
def test_sizes_that_its_convolutions_cannot_give_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(compose([*overrides, "model/tokenizer=stem"]))
