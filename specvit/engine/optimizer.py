"""Optimizers by name, and gradient norms by part with clipping, all without a device sync."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specvit.config.schema import OptConfig


def build_optimizer(model: nn.Module, opt: OptConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `opt`; weight decay is for matrices only, not for biases, norms, positions or CLS."""
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and not name.startswith(("positions.", "cls_token"))
        (decayed if is_matrix else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": opt.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if opt.type == "AdamW":
        return torch.optim.AdamW(groups, lr=opt.lr, betas=opt.betas, fused=True)
    if opt.type == "Adam":
        return torch.optim.Adam(groups, lr=opt.lr, betas=opt.betas, fused=True)
    if opt.type == "SGD":
        return torch.optim.SGD(groups, lr=opt.lr, momentum=opt.momentum, fused=True)
    return torch.optim.RMSprop(groups, lr=opt.lr, momentum=opt.momentum)


def gradient_norms(parts: Sequence[Sequence[nn.Parameter]]) -> Tensor:
    """Return the 2-norm of the whole gradient, then of each part, as one float32 vector on the device."""
    norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None], foreach=True) for part in parts]
    norms = torch.stack([norm.float() for norm in norms])
    return torch.cat([norms.square().sum().sqrt().reshape(1), norms])


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their norm, which is `norm` now, is at most `limit`."""
    nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
