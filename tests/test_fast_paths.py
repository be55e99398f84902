"""What is computed in a faster way than written down is the same: attention, the last block, C1D, dropout, memory."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from specvit.config.schema import ViTConfig
from specvit.models import ViT, build_model
from specvit.models.block import _ExplicitAttention, attend
from specvit.models.dropout import AddDropped, KeyedDropout
from specvit.models.tokenizers import C1D


def queries_keys_values(
    batch: int = 2, heads: int = 3, queries: int = 7, keys: int = 7, width: int = 5
) -> list[Tensor]:
    """Return float64 leaves (B, H, ., d)."""
    generator = torch.Generator().manual_seed(1)
    lengths = (queries, keys, keys)
    made = [torch.randn(batch, heads, n, width, generator=generator, dtype=torch.float64) for n in lengths]
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("queries", [1, 7])
def test_written_out_attention_equals_the_fused_one_with_its_gradients(queries: int) -> None:
    leaves = queries_keys_values(queries=queries)
    direction = torch.randn(2, 3, queries, 5, dtype=torch.float64)
    found, expected = _ExplicitAttention.apply(*leaves), F.scaled_dot_product_attention(*leaves)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(output, leaves, direction) for output in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert gradcheck(_ExplicitAttention.apply, queries_keys_values(1, 2, queries, 4, 3))


def test_bf16_attention_on_a_cpu_is_as_close_to_float32_as_the_format_allows() -> None:
    leaves = [leaf.detach().bfloat16().requires_grad_() for leaf in queries_keys_values(8, 4, 65, 65, 16)]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    direction = torch.randn(8, 4, 65, 16)
    found, expected = attend(*leaves), F.scaled_dot_product_attention(*exact)
    assert found.dtype == torch.bfloat16
    ours = (found, *torch.autograd.grad(found, leaves, direction.bfloat16()))
    theirs = (expected, *torch.autograd.grad(expected, exact, direction))
    for one, another in zip(ours, theirs, strict=True):
        assert (one.float() - another).norm() < 0.01 * another.norm()


def test_bf16_attention_with_large_scores_stays_within_what_the_format_gives() -> None:
    leaves = queries_keys_values(8, 4, 65, 65, 16)
    with torch.no_grad():
        leaves[0].mul_(8.0)
    largest = (leaves[0] @ leaves[1].transpose(-2, -1)).abs().max() / 4
    assert 25 < largest < 60
    exact = F.scaled_dot_product_attention(*leaves)
    found = attend(*[leaf.detach().bfloat16() for leaf in leaves])
    assert (found.double() - exact).norm() < 0.03 * exact.norm()


def all_tokens(model: ViT, flux_BP: Tensor) -> Tensor:
    """Return the output with every block computed for every token."""
    tokens_BSD = model.tokenizer(flux_BP)
    cls_token = model.cls_token
    assert cls_token is not None
    tokens_BSD = model.positions(torch.cat([cls_token.expand(len(flux_BP), -1, -1), tokens_BSD], dim=1))
    for block in model.blocks:
        tokens_BSD = block(tokens_BSD)
    return model.head(model.pool(model.norm(tokens_BSD)))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("kind", ["learned", "rope"])
@pytest.mark.parametrize("layers", [1, 3])
def test_last_block_for_the_cls_token_alone_changes_neither_output_nor_gradients(
    kind: str, layers: int, qkv_bias: bool
) -> None:
    sizes = {"patch_size": 8, "stride_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, num_hidden_layers=layers, dropout=0.0, pos_encoding_type=kind, qkv_bias=qkv_bias)
    model = build_model(config, num_pixels=64, num_outputs=2, seed=3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flux_BP = torch.randn(4, 64, dtype=torch.float64)
    ways: tuple[Callable[[], Tensor], ...] = (lambda: model(flux_BP), lambda: all_tokens(model, flux_BP))
    found = []
    for way in ways:
        model.zero_grad()
        output = way()
        output.double().square().sum().backward()
        found.append([output.double(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)  # the head's output is float32


@pytest.mark.parametrize(("pixels", "patch", "stride"), [(64, 8, 8), (67, 8, 8), (64, 8, 4), (61, 7, 7)])
def test_c1d_is_the_convolution(pixels: int, patch: int, stride: int) -> None:
    tokenizer = C1D(patch_size=patch, stride_size=stride, hidden_size=5).double()
    assert isinstance(tokenizer.proj, nn.Conv1d)
    flux_BP = torch.randn(3, pixels, dtype=torch.float64)
    expected = F.conv1d(flux_BP.unsqueeze(1), tokenizer.proj.weight, tokenizer.proj.bias, stride=stride)
    torch.testing.assert_close(tokenizer(flux_BP), expected.transpose(1, 2))


def test_dropped_branch_is_added_with_the_mask_of_plain_dropout() -> None:
    dropout = KeyedDropout(0.3, layer=2).train()
    dropout.set_key(9)
    x, branch = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    torch.testing.assert_close(dropout.add(x, branch), x + dropout(branch))
    assert torch.equal(dropout.eval().add(x, branch), x + branch)


def test_gradient_of_the_dropped_sum() -> None:
    x, branch = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    keep = torch.rand(3, 4) > 0.4
    assert gradcheck(lambda a, b: AddDropped.apply(a, b, keep, 1.25), (x, branch))


def test_dropped_sum_keeps_the_residual_in_float32_and_the_branch_in_its_own_format() -> None:
    x, branch = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4).bfloat16().requires_grad_()
    output = AddDropped.apply(x, branch, torch.ones(3, 4, dtype=torch.bool), 1.0)
    output.sum().backward()
    assert (output.dtype, x.grad.dtype, branch.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)


FAULTS = """
import resource, sys, torch
from specvit.utils.memory import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def touch():
    torch.ones(16 * 2**20)  # 64 MiB
for _ in range(15):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


TOP = """
import ctypes
from specvit.utils.memory import keep_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_long]
assert keep_memory()
start = libc.sbrk(0)
libc.free(libc.malloc(5 * 2**29))  # 2.5 GiB, never touched
kept = libc.sbrk(0) - start
assert keep_memory(False)
print(kept, libc.sbrk(0) - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_heap_is_never_trimmed_until_that_is_asked_for() -> None:
    words = [sys.executable, "-c", TOP]
    kept, left = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert kept >= 5 * 2**29 > 5 * left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.slow
def test_kept_memory_is_not_faulted_in_again() -> None:
    def faults(way: str) -> int:
        words = [sys.executable, "-c", FAULTS, way]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < 100 < faults("stock") / 10
