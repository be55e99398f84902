"""The network: tokenizers, attention, positions, pools, cost, and what a prediction may depend on."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from specvit.config.schema import CNNConfig, ViTConfig
from specvit.models import ViT, build_model
from specvit.models.block import Attention
from specvit.models.pooling import AttentionPool, build_pool
from specvit.models.positions import RotaryPositions, SinusoidalPositions
from specvit.models.tokenizers import C1D, TOKENIZERS, LinearPatch, SlidingWindow
from specvit.training.device import AUTOCAST, autocast
from specvit.utils.errors import ConfigError

SMALL = {"patch_size": 8, "stride_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TILINGS = [(4096, 16, 16), (4096, 16, 8), (4096, 15, 7), (4095, 16, 16), (4097, 32, 10), (67, 8, 3), (50, 50, 1)]


def config(**changes) -> ViTConfig:
    """Return a small model's configuration without dropout."""
    return ViTConfig(**(SMALL | {"intermediate_size": 40, "dropout": 0.0} | changes))


def vit(num_pixels: int = 67, num_outputs: int = 2, **changes) -> ViT:
    """Return a small model whose every weight is of order 0.3, so that no part is too weak to be seen."""
    model = build_model(config(**changes), num_pixels=num_pixels, num_outputs=num_outputs, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def flux(rows: int = 3, num_pixels: int = 67) -> Tensor:
    """Return network input in float64."""
    return torch.randn(rows, num_pixels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokenizer(name: str, patch: int, stride: int, width: int = 5) -> nn.Module:
    """Return a tokenizer in float64 with torch's own initialisation."""
    return TOKENIZERS[name](patch_size=patch, stride_size=stride, hidden_size=width).double()


def written_out_attention(attention: Attention, x_BSD: Tensor) -> Tensor:
    """Return what attention is by definition, head by head and query by query."""
    width = x_BSD.shape[-1]
    size = width // attention.num_heads
    query, key, value = (
        x_BSD @ weight.T + bias
        for weight, bias in zip(attention.qkv.weight.split(width), attention.qkv.bias.split(width), strict=True)
    )
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        q, k, v = query[..., part], key[..., part], value[..., part]
        if attention.rotary is not None:
            q, k = attention.rotary(q[:, None])[:, 0], attention.rotary(k[:, None])[:, 0]
        weights = (torch.einsum("bid,bjd->bij", q, k) / math.sqrt(size)).exp()
        heads.append(torch.einsum("bij,bjd->bid", weights / weights.sum(-1, keepdim=True), v))
    return torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias


@pytest.mark.parametrize(("num_pixels", "patch", "stride"), TILINGS)
def test_sw_equals_c1d_with_copied_weights(num_pixels: int, patch: int, stride: int) -> None:
    c1d, sw = tokenizer("C1D", patch, stride), tokenizer("SW", patch, stride)
    sw.load_state_dict({name: value.reshape(sw.state_dict()[name].shape) for name, value in c1d.state_dict().items()})
    x_BP = flux(num_pixels=num_pixels)
    torch.testing.assert_close(sw(x_BP), c1d(x_BP), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_pixels", "patch"), [(4096, 16), (4095, 16), (67, 8), (50, 50)])
def test_linear_equals_sw_with_copied_weights_where_stride_is_patch(num_pixels: int, patch: int) -> None:
    linear, sw = tokenizer("linear", patch, patch), tokenizer("SW", patch, patch)
    sw.load_state_dict(linear.state_dict())
    x_BP = flux(num_pixels=num_pixels)
    torch.testing.assert_close(sw(x_BP), linear(x_BP), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["C1D", "SW", "linear"])
@pytest.mark.parametrize(("num_pixels", "patch", "stride"), TILINGS)
def test_each_token_is_the_linear_map_of_its_own_whole_patch(
    name: str, num_pixels: int, patch: int, stride: int
) -> None:
    stride = patch if name == "linear" else stride
    tokens = tokenizer(name, patch, stride)
    weight_Dp, bias_D = tokens.proj.weight.reshape(-1, patch), tokens.proj.bias
    x_BP = flux(num_pixels=num_pixels)
    starts = range(0, num_pixels - patch + 1, stride)
    assert len(starts) == (num_pixels - patch) // stride + 1
    expected = torch.stack([x_BP[:, start : start + patch] @ weight_Dp.T + bias_D for start in starts], dim=1)
    torch.testing.assert_close(tokens(x_BP), expected, rtol=1e-12, atol=1e-12)
    changes = {"patch_size": patch, "stride_size": stride, "num_hidden_layers": 1, "proj_fn": name}
    assert build_model(config(**changes), num_pixels=num_pixels, num_outputs=1, seed=0).num_tokens == len(starts)


def test_configured_tokenizer_is_the_one_built() -> None:
    built = [type(vit(proj_fn=name).tokenizer) for name in ("C1D", "SW", "linear")]
    assert built == [C1D, SlidingWindow, LinearPatch]


@pytest.mark.parametrize("prefix", [None, 0, 1])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_attention_equals_written_out_softmax_attention(num_heads: int, prefix: int | None) -> None:
    torch.manual_seed(0)
    rotary = None if prefix is None else RotaryPositions(torch.arange(7), 12 // num_heads, prefix)
    attention = Attention(hidden_size=12, num_heads=num_heads, qkv_bias=True, rotary=rotary).double()
    x_BSD = 3 * torch.randn(2, 7, 12, dtype=torch.float64)
    # Rotary angles work in float32.
    tolerance = 1e-12 if rotary is None else 1e-5
    torch.testing.assert_close(
        attention(x_BSD), written_out_attention(attention, x_BSD), rtol=tolerance, atol=tolerance
    )


def test_qkv_bias_can_be_left_out() -> None:
    names = [{name for name, _ in vit(qkv_bias=bias).named_parameters()} for bias in (True, False)]
    assert names[0] - names[1] == {"blocks.0.attention.qkv.bias", "blocks.1.attention.qkv.bias"}


@pytest.mark.parametrize("prefix", [0, 1])
def test_rope_scores_depend_on_distance_only(prefix: int) -> None:
    torch.manual_seed(0)
    rotary = RotaryPositions(torch.arange(40), 8, prefix)
    query, key = (rotary(torch.randn(8).expand(1, 1, 40, 8))[0, 0, prefix:] for _ in range(2))
    scores = query @ key.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 0.1, "the score does not depend on distance at all"


def test_rope_leaves_cls_unturned_and_lengths_as_they_were() -> None:
    x = torch.randn(1, 2, 9, 6, generator=torch.Generator().manual_seed(0))
    turned = RotaryPositions(torch.arange(9), 6, num_prefix_tokens=1)(x)
    assert torch.equal(turned[:, :, :2], x[:, :, :2]), "CLS and the first token stand at angle zero"
    assert not torch.allclose(turned[:, :, 2:], x[:, :, 2:], atol=1e-2)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_rope_reaches_every_block_and_adds_no_parameter() -> None:
    rope, none = vit(pos_encoding_type="rope"), vit(pos_encoding_type="none")
    assert all(block.attention.rotary is not None for block in rope.blocks)
    assert rope.state_dict().keys() == none.state_dict().keys()


def test_sinusoidal_positions_are_sines_and_cosines_of_the_place() -> None:
    table = SinusoidalPositions(torch.arange(20), 6, scale=0.5).weight
    assert table.shape == (1, 20, 6)
    for place in (0, 1, 19):
        angles = [place / 10_000 ** (k / 3) for k in range(3)]
        expected = [0.5 * f(angle) for f in (math.sin, math.cos) for angle in angles]
        assert table[0, place].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("rule", "std"), [("specvit", 0.02), ("legacy", 1.0)])
def test_sinusoidal_positions_are_as_large_as_learned_ones_and_not_trained(rule: str, std: float) -> None:
    changes = {"pos_encoding_type": "sinusoidal", "init": rule, "hidden_size": 64, "pool": "mean"}
    model = build_model(config(**changes), num_pixels=4096, num_outputs=1, seed=0)
    assert model.positions.weight.shape == (1, 512, 64)
    assert model.positions.weight.square().mean().sqrt().item() == pytest.approx(std, rel=0.02)
    assert not list(model.positions.parameters())


@pytest.mark.parametrize("pool", ["mean", "attention"])
@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "rope", "none"])
def test_order_of_patches_matters_exactly_where_there_are_positions(kind: str, pool: str) -> None:
    model = vit(64, proj_fn="linear", pos_encoding_type=kind, pool=pool)
    x_BP = flux(num_pixels=64)
    shuffled_BP = x_BP.view(3, 8, 8)[:, [3, 1, 4, 0, 5, 7, 2, 6]].reshape(3, 64)
    change = (model(x_BP) - model(shuffled_BP)).abs().max()
    assert change < 1e-6 if kind == "none" else change > 1e-3


def test_pools_are_first_token_mean_and_weighted_mean() -> None:
    tokens = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(build_pool("cls", 4)(tokens), tokens[:, 0])
    torch.testing.assert_close(build_pool("mean", 4)(tokens), tokens.sum(dim=1) / 5)
    attention = build_pool("attention", 4)
    assert isinstance(attention, AttentionPool)
    weights = (tokens @ attention.score.weight[0]).exp()
    expected = (weights[..., None] * tokens).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(attention(tokens), expected)


def test_attention_pool_starts_as_the_plain_mean() -> None:
    pool = build_model(config(pool="attention"), num_pixels=67, num_outputs=1, seed=0).pool
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool(tokens), tokens.mean(dim=1))


@pytest.mark.parametrize("proj_fn", ["C1D", "SW", "linear"])
def test_every_combination_runs_and_trains_every_parameter(proj_fn: str) -> None:
    kinds, pools = ("learned", "sinusoidal", "rope", "none"), ("cls", "mean", "attention")
    for kind, pool in itertools.product(kinds, pools):
        model = vit(proj_fn=proj_fn, pos_encoding_type=kind, pool=pool, num_hidden_layers=1).float().train()
        output_BK = model(flux().float())
        assert output_BK.shape == (3, 2)
        output_BK.square().sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, (kind, pool)


@pytest.mark.parametrize("kind", ["learned", "rope"])
@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_no_gradient_from_one_spectrum_to_the_output_of_another(pool: str, kind: str) -> None:
    model = vit(pool=pool, pos_encoding_type=kind).train()
    x_BP = flux().requires_grad_()
    (gradient_BP,) = torch.autograd.grad(model(x_BP)[1].sum(), x_BP)
    assert gradient_BP[1].abs().max() > 0
    assert not gradient_BP[[0, 2]].any()


@pytest.mark.parametrize("proj_fn", ["C1D", "SW", "linear"])
def test_prediction_does_not_depend_on_the_rest_of_the_batch(proj_fn: str) -> None:
    model = vit(proj_fn=proj_fn, dropout=0.5)
    x_BP = flux(rows=9)
    alone = torch.cat([model(x_BP[[row]]) for row in range(9)])
    torch.testing.assert_close(model(x_BP), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_residual_stream_and_output_are_float32_with_all_positions(precision: str, pool: str) -> None:
    found: dict[str, set[Any]] = {}
    for kind in ("learned", "sinusoidal", "rope", "none"):
        model = vit(pos_encoding_type=kind, pool=pool).float()
        products, stream = set(), []
        for block in model.blocks:
            block.register_forward_hook(lambda _, inputs, output, stream=stream: stream.extend([*inputs[:1], output]))
            block.attention.qkv.register_forward_hook(lambda *each, products=products: products.add(each[2].dtype))
        with autocast(precision, torch.device("cpu")):
            output_BK = model(flux().float())
        for tokens_BSD in stream:
            tokens_BSD.register_hook(lambda gradient, stream=stream: stream.append(gradient))
        output_BK.sum().backward()
        assert len(stream) == 8  # input and output of two blocks, and the gradients of both
        assert {tensor.dtype for tensor in (*stream, output_BK)} == {torch.float32}, kind
        found[kind] = products
    assert set.union(*found.values()) == {AUTOCAST.get(precision, torch.float32)}


@pytest.mark.parametrize("proj_fn", ["C1D", "SW", "linear"])
def test_patch_longer_than_the_spectrum_is_refused(proj_fn: str) -> None:
    with pytest.raises(ConfigError, match=r"patch_size.*68.*67"):
        vit(67, patch_size=68, stride_size=68, proj_fn=proj_fn)


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
@pytest.mark.parametrize("kind", ["learned", "rope"])
def test_parts_hold_every_parameter_once(kind: str, pool: str) -> None:
    model = vit(pool=pool, pos_encoding_type=kind)
    held = [id(parameter) for part in model.parts().values() for parameter in part]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_cost_of_the_reference_size() -> None:
    cost = build_model(ViTConfig(), num_pixels=4096, num_outputs=1, seed=0).cost()
    assert sum(cost.parameters.values()) == pytest.approx(4.85e6, rel=0.02)
    assert (cost.num_tokens, cost.num_prefix_tokens) == (256, 1)
    assert cost.training_flops == pytest.approx(7.289e9, rel=1e-3)  # 8.498e9 with the last block for all tokens


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"proj_fn": "SW", "stride_size": 3, "pool": "mean", "pos_encoding_type": "sinusoidal"},
        {"proj_fn": "linear", "qkv_bias": False, "num_hidden_layers": 3, "intermediate_size": 24},
        {"proj_fn": "stem", "patch_size": 32, "stride_size": 16},
    ],
)
def test_cost_equals_counted_parameters_and_flops(changes: dict) -> None:
    model = build_model(config(**changes), num_pixels=67, num_outputs=2, seed=0).train()
    cost = model.cost()
    assert sum(cost.parameters.values()) == sum(parameter.numel() for parameter in model.parameters())
    rows = 3
    # Only the plain attention kernel is made of matrix products that torch's counter sees on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(flux(rows).float())
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == rows * cost.forward_flops
    assert counter.get_total_flops() == rows * cost.training_flops
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(flux(rows).float())
    length = cost.num_tokens + cost.num_prefix_tokens
    queries = sum(1 if block is model.blocks[-1] and cost.num_prefix_tokens else length for block in model.blocks)
    attention = 4 * length * queries * 16
    assert counter.get_total_flops() in (rows * cost.forward_flops, rows * (cost.forward_flops - attention))


@pytest.mark.parametrize(
    ("model", "pixels", "unread"),
    [
        (config(patch_size=64, stride_size=64), 2000, 16),
        (config(patch_size=64, stride_size=60), 2000, 16),
        (config(patch_size=50, stride_size=50), 2000, 0),
        (CNNConfig(channels=(4, 4), kernel_size=3, pool_size=4), 2000, 0),
        (CNNConfig(channels=(4, 4), kernel_size=3, pool_size=4), 2015, 10),
    ],
)
def test_pixels_that_are_not_read_are_counted_and_said(model: Any, pixels: int, unread: int) -> None:
    """A pixel that is read changes an output, one that is not changes none."""
    network = build_model(model, num_pixels=pixels, num_outputs=1, seed=0).eval()
    cost = network.cost()
    assert cost.unread_pixels == unread
    said = f"note: the last {unread} pixels of each spectrum fill no patch and are not read"
    assert (said in cost.lines()) == (unread > 0)
    flux_BP = torch.randn(1, pixels, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    flux_BP[1, pixels - unread :] += 100.0
    flux_BP[2, pixels - unread - 1] += 100.0
    with torch.no_grad():
        first, same, other = network(flux_BP)[:, 0].tolist()
    assert same == pytest.approx(first, abs=1e-7)
    assert abs(other - first) > 1e-5
