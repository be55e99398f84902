"""One initialisation rule for every tokenizer, and the old rule with its known unfairness."""

import pytest
import torch
from torch import Tensor

from specvit.config.schema import ViTConfig
from specvit.models import ViT, build_model

SEEDS = 20
WIDTH, PATCH, PIXELS = 32, 16, 515


def model(seed: int = 0, num_outputs: int = 3, **changes) -> ViT:
    """Return a small model, initialised."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = ViTConfig(**({"patch_size": PATCH, "stride_size": PATCH} | sizes | changes))
    return build_model(config, num_pixels=PIXELS, num_outputs=num_outputs, seed=seed)


def parameters(**changes) -> dict[str, Tensor]:
    """Return a model's parameters by name, the tokenizer's weight as a matrix."""
    values = {name: value.detach() for name, value in model(**changes).named_parameters()}
    return values | {"tokenizer.proj.weight": values["tokenizer.proj.weight"].reshape(WIDTH, -1)}


def group_of(name: str) -> str:
    """Return the group of parameters that share one nominal distribution."""
    if name in ("tokenizer.proj.weight", "positions.weight", "cls_token"):
        return name
    if name.endswith("bias"):
        return "biases"
    return "norms" if "norm" in name else "linears"


def pooled(first_seed: int, **changes) -> dict[str, Tensor]:
    """Return the numbers of each group over `SEEDS` seeds, as one vector each."""
    groups: dict[str, list[Tensor]] = {}
    for seed in range(first_seed, first_seed + SEEDS):
        for name, value in parameters(seed=seed, **changes).items():
            groups.setdefault(group_of(name), []).append(value.flatten())
    return {group: torch.cat(values).double() for group, values in groups.items()}


def assert_std(values: Tensor, std: float) -> None:
    """Check mean 0 and the std within five standard errors (normal numbers; uniform ones scatter less)."""
    count = len(values)
    assert abs(values.mean().item()) < 5 * std / count**0.5
    assert values.std().item() == pytest.approx(std, rel=5 / (2 * count) ** 0.5)


@pytest.mark.parametrize(
    "changes", [{}, {"stride_size": 7}, {"pool": "mean"}, {"pos_encoding_type": "rope", "pool": "attention"}]
)
def test_same_seed_gives_c1d_and_sw_the_very_same_numbers(changes: dict) -> None:
    c1d, sw = parameters(proj_fn="C1D", seed=11, **changes), parameters(proj_fn="SW", seed=11, **changes)
    assert c1d.keys() == sw.keys()
    assert [name for name in c1d if not torch.equal(c1d[name], sw[name])] == []


def test_c1d_and_sw_have_equal_statistics_at_their_nominal_values() -> None:
    # Different seeds: with the same ones the numbers themselves would be equal.
    for first_seed, proj_fn in ((0, "C1D"), (1000, "SW")):
        groups = pooled(first_seed, proj_fn=proj_fn)
        assert_std(groups["tokenizer.proj.weight"], (3 * PATCH) ** -0.5)
        for name in ("positions.weight", "cls_token", "linears"):
            assert_std(groups[name], 0.02)
        assert not groups["biases"].any()
        assert torch.all(groups["norms"] == 1)


@pytest.mark.parametrize("patch", [4, 64])
@pytest.mark.parametrize("proj_fn", ["C1D", "SW", "linear"])
def test_tokenizer_keeps_unit_noise_at_one_third_whatever_the_patch(proj_fn: str, patch: int) -> None:
    values = pooled(0, proj_fn=proj_fn, patch_size=patch, stride_size=patch, num_hidden_layers=1)
    assert_std(values["tokenizer.proj.weight"], (3 * patch) ** -0.5)


def test_fan_in_scales_the_matrices_of_the_default_rule_and_nothing_else() -> None:
    default, scaled = parameters(), parameters(init="fan_in")
    for name, value in default.items():
        factor = (3 * value.shape[-1]) ** -0.5 / 0.02 if group_of(name) == "linears" else 1.0
        torch.testing.assert_close(scaled[name], value * factor, msg=name)


def test_legacy_rule_gives_c1d_torchs_uniform_and_sw_a_small_normal() -> None:
    c1d, sw = pooled(0, proj_fn="C1D", init="legacy"), pooled(1000, proj_fn="SW", init="legacy")
    uniform, normal = c1d["tokenizer.proj.weight"], sw["tokenizer.proj.weight"]
    assert_std(uniform, 0.1443)
    assert 0.249 < uniform.abs().max() <= PATCH**-0.5
    assert_std(normal, 0.02)
    assert normal.abs().max() > 3 * 0.02
    for groups in (c1d, sw):
        assert_std(groups["positions.weight"], 1.0)
        assert_std(groups["cls_token"], 1.0)
        assert_std(groups["linears"], 0.02)


def test_legacy_rule_gives_only_c1d_a_tokenizer_bias() -> None:
    c1d, sw = (parameters(proj_fn=name, init="legacy")["tokenizer.proj.bias"] for name in ("C1D", "SW"))
    assert 0 < c1d.abs().max() <= PATCH**-0.5
    assert not sw.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "mean"},
        {"pool": "attention"},
        {"pos_encoding_type": "rope"},
        {"pos_encoding_type": "none"},
        {"num_hidden_layers": 3},
        {"stride_size": 5},
        {"num_outputs": 1},
    ],
)
def test_another_part_leaves_the_other_parameters_as_they_were(changes: dict) -> None:
    before, after = parameters(), parameters(**changes)
    common = [name for name in before if name in after and before[name].shape == after[name].shape]
    assert {"tokenizer.proj.weight", "blocks.0.attention.qkv.weight", "blocks.1.feed_forward.up.weight"} <= set(common)
    assert [name for name in common if not torch.equal(before[name], after[name])] == []


def test_every_random_parameter_has_its_own_stream_and_its_own_seed() -> None:
    firsts = {}
    for seed in (0, 1):
        for name, value in parameters(seed=seed).items():
            if group_of(name) not in ("biases", "norms"):
                firsts[seed, name] = round(value.flatten()[:16].div(value.std()).sum().item(), 4)
    assert len(set(firsts.values())) == len(firsts)


def test_initialisation_ignores_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    first = parameters()
    torch.manual_seed(2)
    second = parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
