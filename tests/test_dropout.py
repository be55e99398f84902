"""Dropout masks are a function of (step key, layer), with the right share and scale."""

import pytest
import torch
from torch import Tensor

from specvit.config.schema import ViTConfig
from specvit.models import ViT, build_model
from specvit.models.dropout import KeyedDropout, set_dropout_key

COUNT = 400_000


def mask(p: float = 0.1, *, key: int = 7, layer: int = 1, shape: tuple[int, ...] = (COUNT,)) -> Tensor:
    """Return what a training dropout makes of ones."""
    dropout = KeyedDropout(p, layer).train()
    set_dropout_key(dropout, key)
    return dropout(torch.ones(shape))


def vit(dropout: float = 0.3, **changes) -> ViT:
    """Return a small model in training mode."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**({"patch_size": 8, "stride_size": 8, "dropout": dropout} | sizes | changes))
    return build_model(config, num_pixels=80, num_outputs=2, seed=0).train()


def flux(rows: int = 5) -> Tensor:
    """Return network input."""
    return torch.randn(rows, 80, generator=torch.Generator().manual_seed(4))


def standard_error(share: float, count: int = COUNT) -> float:
    """Return the scatter of an observed share."""
    return (share * (1 - share) / count) ** 0.5


@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.95])
def test_kept_share_and_scale(p: float) -> None:
    kept = mask(p)
    assert torch.all((kept == 0) | (kept == torch.tensor(1 / (1 - p))))
    share = (kept > 0).double().mean().item()
    assert share == pytest.approx(1 - p, abs=5 * standard_error(p) + 1 / 65536)


def test_all_elements_are_dropped_alike_and_independently() -> None:
    kept = (mask(0.5, shape=(COUNT // 4, 4)) > 0).double()
    limit = 5 * standard_error(0.5, COUNT // 4)
    assert torch.all((kept.mean(dim=0) - 0.5).abs() < limit)
    for lag in (1, 2, 3, 4):
        flat = kept.flatten()
        together = (flat[lag:] * flat[:-lag]).mean().item()
        assert together == pytest.approx(0.25, abs=5 * standard_error(0.25))


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 257, 16)])
def test_same_key_gives_the_same_mask_in_any_shape(shape: tuple[int, ...]) -> None:
    first = mask(0.5, shape=shape)
    assert first.shape == shape
    assert torch.equal(first, mask(0.5, shape=shape))


@pytest.mark.parametrize("other", [{"key": 8}, {"layer": 2}])
def test_another_key_or_layer_gives_an_independent_mask(other: dict) -> None:
    agree = ((mask(0.5) > 0) == (mask(0.5, **other) > 0)).double().mean().item()
    assert agree == pytest.approx(0.5, abs=5 * standard_error(0.5))


def test_dropout_is_the_identity_in_evaluation_and_at_zero() -> None:
    x = torch.randn(9)
    assert KeyedDropout(0.5, 0).eval()(x) is x
    assert KeyedDropout(0.0, 0).train()(x) is x


def test_gradient_passes_through_the_same_mask() -> None:
    dropout = KeyedDropout(0.4, 3).train()
    x = torch.randn(1000, requires_grad=True)
    dropout(x).sum().backward()
    assert torch.equal(x.grad, dropout(torch.ones(1000)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dropout_keeps_the_number_format(dtype: torch.dtype) -> None:
    assert KeyedDropout(0.4, 0).train()(torch.ones(10, dtype=dtype)).dtype == dtype


def test_global_generator_is_neither_read_nor_moved() -> None:
    model = vit()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = model(flux())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(model(flux()), first)


def test_step_key_reaches_every_dropout_and_each_has_its_own_layer() -> None:
    model = vit()
    model.set_step_key(12)
    dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    assert {module.key for module in dropouts} == {12}
    assert sorted(module.layer for module in dropouts) == list(range(2 * 3 + 1))


def test_rows_of_a_batch_have_different_masks() -> None:
    output = vit()(flux(1).expand(5, -1))
    assert output.unique(dim=0).shape[0] == 5


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_recomputing_blocks_gives_bitwise_the_same_gradients(precision: torch.dtype | None) -> None:
    gradients = {}
    for recompute in (False, True):
        model = vit()
        model.checkpoint_blocks = recompute
        for key in (5, 6):
            model.set_step_key(key)
            with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
                loss = model(flux()).square().mean()
            loss.backward()
        gradients[recompute] = {name: parameter.grad for name, parameter in model.named_parameters()}
    differ = [name for name in gradients[False] if not torch.equal(gradients[True][name], gradients[False][name])]
    assert differ == []


def test_recomputing_blocks_runs_them_again_in_the_backward_pass() -> None:
    model = vit()
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for recompute, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.checkpoint_blocks = recompute
        model(flux()).sum().backward()
        assert len(calls) == expected
