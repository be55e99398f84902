"""The leanest eager loop for the same maths, written out: what specvit's loop is compared with.

One file of functions on two flat buffers: no modules, keys, sums, norms by part, health checks or files. Same network
(C1D without overlap, learned positions, CLS token; its last block for that token only), dropout, noise, clipping,
AdamW; specvit's two hand-written autograd functions are used here, too, since no faster way is known. Legend: B batch,
P pixels, S sequence with CLS, D width, H heads.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specvit.config.schema import ViTConfig
from specvit.models import ViT
from specvit.models.block import attend
from specvit.models.dropout import AddDropped


@dataclass
class FlatParameters:
    """Parameters with and without weight decay in a buffer each; `at` are views by name, gradients lie likewise."""

    decayed: Tensor
    spared: Tensor
    at: dict[str, Tensor]

    @classmethod
    def of(cls, model: ViT, device: torch.device) -> "FlatParameters":
        """Copy a network's parameters."""
        named = {name: parameter.detach().to(device) for name, parameter in model.named_parameters()}
        matrices = {n for n, p in named.items() if p.ndim > 1 and not n.startswith(("positions.", "cls_token"))}
        at: dict[str, Tensor] = {}
        buffers = []
        for names in (matrices, named.keys() - matrices):
            parts = {name: named[name] for name in named if name in names}
            buffer = torch.cat([part.reshape(-1) for part in parts.values()]).requires_grad_()
            buffer.grad = torch.zeros_like(buffer)
            sizes = [part.numel() for part in parts.values()]
            pieces = zip(parts, buffer.detach().split(sizes), buffer.grad.split(sizes), strict=True)
            for name, values, gradient in pieces:
                at[name] = values.view(named[name].shape).requires_grad_()
                at[name].grad = gradient.view(named[name].shape)
            buffers.append(buffer)
        return cls(*buffers, at)


def forward(at: dict[str, Tensor], flux_BP: Tensor, config: ViTConfig, *, training: bool) -> Tensor:
    """Return the outputs (B, K)."""
    width, share = config.hidden_size, config.dropout if training else 0.0
    patches = flux_BP.view(len(flux_BP), -1, config.patch_size)
    x = F.linear(patches, at["tokenizer.proj.weight"].view(width, -1), at["tokenizer.proj.bias"])
    x = torch.cat([at["cls_token"].to(x.dtype).expand(len(x), -1, -1), x], dim=1) + at["positions.weight"]
    x = drop(x, share)
    for index in range(config.num_hidden_layers):
        block = f"blocks.{index}."
        queries = slice(0, 1) if index == config.num_hidden_layers - 1 else slice(None)
        y = norm(at, block + "norm_attention", x)
        weight, bias = at[block + "attention.qkv.weight"], at[block + "attention.qkv.bias"]
        if index == config.num_hidden_layers - 1:
            q = heads(F.linear(y[:, :1], weight[:width], bias[:width]), config)
            k, v = (heads(part, config) for part in F.linear(y, weight[width:], bias[width:]).chunk(2, dim=-1))
        else:
            q, k, v = (heads(part, config) for part in F.linear(y, weight, bias).chunk(3, dim=-1))
        y = attend(q, k, v).transpose(1, 2).flatten(2)
        x = add_dropped(x[:, queries], linear(at, block + "attention.out", y), share)
        y = F.gelu(linear(at, block + "feed_forward.up", norm(at, block + "norm_feed_forward", x)))
        x = add_dropped(x, linear(at, block + "feed_forward.down", y), share)
    return linear(at, "head", norm(at, "norm", x[:, 0])).float()


def linear(at: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return a linear layer's output."""
    return F.linear(x, at[name + ".weight"], at[name + ".bias"])


def norm(at: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return a layer norm's output."""
    return F.layer_norm(x, x.shape[-1:], at[name + ".weight"], at[name + ".bias"])


def heads(x: Tensor, config: ViTConfig) -> Tensor:
    """Return (B, S, D) as (B, H, S, d)."""
    return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)


def drop(x: Tensor, share: float) -> Tensor:
    """Return `x` with dropout."""
    return x if share == 0.0 else torch.where(keep(x, share), x * (1.0 / (1.0 - share)), 0.0)


def add_dropped(x: Tensor, branch: Tensor, share: float) -> Tensor:
    """Return `x` plus `branch` with dropout."""
    return x + branch if share == 0.0 else AddDropped.apply(x, branch, keep(branch, share), 1.0 / (1.0 - share))


def keep(x: Tensor, share: float) -> Tensor:
    """Return what to keep of `x`, from 16 random bits an element."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return words.view(torch.int16)[: x.numel()].view(x.shape) >= round(share * 65536) - 32768


def lean_step(
    flat: FlatParameters,
    config: ViTConfig,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    normalise: Callable[[Tensor], Tensor],
    autocast: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[[], None]:
    """Return a function that takes one training step."""
    groups = [{"params": [flat.decayed], "weight_decay": 0.01}, {"params": [flat.spared], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, fused=True)
    gradients = [flat.decayed.grad, flat.spared.grad]

    def step() -> None:
        flux_BP, error_BP, target = next(batches)
        flux_BP = normalise(torch.addcmul(flux_BP, error_BP, torch.randn_like(flux_BP)))
        with autocast():
            output = forward(flat.at, flux_BP, config, training=True)
        F.mse_loss(output, target).backward()
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for gradient in gradients:
            gradient.mul_((0.5 / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()
        for gradient in gradients:
            gradient.zero_()

    return step
