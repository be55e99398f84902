"""Optimizers over all parameters in flat buffers, with gradient norms by part and clipping.

A network has about a hundred parameters. Segments name their part, learning-rate factor and weight decay; those that
share the last two are in one buffer, so that each update, norm and clipping is a few passes over memory. Not
`torch.optim`: its first use imports the compiler (1.3 s). Nothing waits for the device, but RMSprop in 16-mixed, where
GradScaler asks on the host whether to skip a step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specvit.config.schema import OptConfig

EPSILON = 1e-8
SMOOTHING = 0.99
"""RMSprop's share of the old mean square; both numbers are torch's defaults."""
MOMENTS = {"AdamW": ("exp_avg", "exp_avg_sq"), "Adam": ("exp_avg", "exp_avg_sq")}
MOMENTS |= {"SGD": ("momentum_buffer",), "RMSprop": ("square_avg", "momentum_buffer")}


@dataclass(frozen=True)
class Segment:
    """Parameters of one part of a network that are updated alike."""

    part: str
    parameters: Sequence[nn.Parameter]
    decays: bool
    """Whether `opt.weight_decay` applies to them."""
    lr_factor: float = 1.0
    """Multiplies the learning rate of each step."""


class FlatParameters:
    """Segments in one flat buffer `values`, their gradients in `values.grad`; each parameter becomes a view."""

    def __init__(self, segments: Sequence[Segment], opt: OptConfig) -> None:
        """Move the parameters into one buffer, keeping their values; `decays` and `lr_factor` are the first's."""
        self.segments, self.lr_factor = segments, segments[0].lr_factor
        self.weight_decay = opt.weight_decay if segments[0].decays else 0.0
        parameters = [parameter for segment in segments for parameter in segment.parameters]
        self.values = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        gradient = torch.zeros_like(self.values)
        self.values.grad = gradient
        pieces = zip(parameters, _spans(parameters), strict=True)
        for parameter, span in pieces:
            parameter.data = self.values.detach()[span].view(parameter.shape)
            parameter.grad = gradient[span].view(parameter.shape)
        self.gradient = gradient
        self.moments = {name: torch.zeros_like(gradient) for name in MOMENTS[opt.type]}
        self.step = torch.zeros((), device=gradient.device)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the part and the gradient of each segment."""
        sizes = [sum(parameter.numel() for parameter in segment.parameters) for segment in self.segments]
        for segment, gradient in zip(self.segments, self.gradient.split(sizes), strict=True):
            yield segment.part, gradient


class Optimizer:
    """One of `opt.type`. Parameters and gradients may be read at any time, but only be changed in place."""

    _step_supports_amp_scaling: bool  # read by torch's GradScaler: `step` itself skips when gradients overflowed
    grad_scale: Tensor | None = None  # GradScaler sets both before a step, and deletes them after it
    found_inf: Tensor | None = None

    def __init__(self, segments: Sequence[Segment], opt: OptConfig) -> None:
        """`segments` hold every parameter once, none of them is empty."""
        self.opt, self.lr = opt, opt.lr
        self._step_supports_amp_scaling = opt.type != "RMSprop"
        buffers: dict[tuple[bool, float], list[Segment]] = {}
        for segment in segments:
            buffers.setdefault((not segment.decays, segment.lr_factor), []).append(segment)
        self.flats = [FlatParameters(buffers[key], opt) for key in sorted(buffers)]
        self._gradients: dict[str, list[Tensor]] = {segment.part: [] for segment in segments}
        self.parts = tuple(self._gradients)
        for flat in self.flats:
            for part, gradient in flat.gradients():
                self._gradients[part].append(gradient)

    @property
    def param_groups(self) -> list[dict[str, list[Tensor]]]:
        """The buffers, in the form that torch's GradScaler reads."""
        return [{"params": [flat.values for flat in self.flats]}]

    def gradient_norms(self) -> Tensor:
        """Return the 2-norm of the whole gradient, then of each part, as one float32 vector on the device."""
        squares = [
            torch.stack([torch.linalg.vector_norm(piece) for piece in pieces]).square().sum()
            for pieces in self._gradients.values()
        ]
        squares = torch.stack(squares)
        return torch.cat([squares.sum().reshape(1), squares]).sqrt()

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale all gradients so that their norm, which is `norm` now, is at most `limit`."""
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for flat in self.flats:
            flat.gradient.mul_(factor)

    def zero_gradients(self) -> None:
        """Set all gradients to zero, for the next step to add to."""
        for flat in self.flats:
            flat.gradient.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters, or none where GradScaler found an overflow."""
        for flat in self.flats:
            flat.step += 1
            update = {"SGD": self._sgd, "RMSprop": self._rmsprop}.get(self.opt.type, self._adam)
            update(flat)
            if self.found_inf is not None:
                flat.step -= self.found_inf

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides parameters and gradients."""
        return {"flats": [{"step": flat.step, **flat.moments} for flat in self.flats]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for flat, saved in zip(self.flats, state["flats"], strict=True):
            flat.step.copy_(saved["step"])
            for name, moment in flat.moments.items():
                moment.copy_(saved[name])

    def _adam(self, flat: FlatParameters) -> None:
        kernel = torch.ops.aten._fused_adamw_ if self.opt.type == "AdamW" else torch.ops.aten._fused_adam_
        kernel(
            [flat.values],
            [flat.gradient],
            [flat.moments["exp_avg"]],
            [flat.moments["exp_avg_sq"]],
            [],
            [flat.step],
            amsgrad=False,
            lr=self.lr * flat.lr_factor,
            beta1=self.opt.betas[0],
            beta2=self.opt.betas[1],
            weight_decay=flat.weight_decay,
            eps=EPSILON,
            maximize=False,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )

    def _sgd(self, flat: FlatParameters) -> None:
        torch.ops.aten._fused_sgd_(
            [flat.values],
            [flat.gradient],
            [flat.moments["momentum_buffer"]] if self.opt.momentum else [],
            weight_decay=flat.weight_decay,
            momentum=self.opt.momentum,
            lr=self.lr * flat.lr_factor,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,  # the buffer starts at zero, which is equivalent
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
        )

    def _rmsprop(self, flat: FlatParameters) -> None:
        square_avg, momentum = flat.moments["square_avg"], flat.moments["momentum_buffer"]
        gradient = flat.gradient.add(flat.values, alpha=flat.weight_decay)
        square_avg.mul_(SMOOTHING).addcmul_(gradient, gradient, value=1 - SMOOTHING)
        momentum.mul_(self.opt.momentum).addcdiv_(gradient, square_avg.sqrt().add_(EPSILON))
        flat.values.add_(momentum, alpha=-self.lr * flat.lr_factor)


def segments_of(module: nn.Module, parts: Mapping[str, Sequence[nn.Parameter]]) -> Iterator[Segment]:
    """Yield the parameters of each part with weight decay, then those without: biases, norms, positions and CLS.

    `parts` hold every parameter of `module` once.
    """
    named = dict(module.named_parameters())
    assert sorted(map(id, named.values())) == sorted(id(p) for part in parts.values() for p in part)
    spared = {p for name, p in named.items() if p.ndim <= 1 or name.startswith(("positions.", "cls_token"))}
    for part, parameters in parts.items():
        for decays in (True, False):
            if chosen := [p for p in parameters if (p not in spared) == decays]:
                yield Segment(part, chosen, decays)


def build_optimizer(module: nn.Module, parts: Mapping[str, Sequence[nn.Parameter]], opt: OptConfig) -> Optimizer:
    """Return the optimizer of `opt` with `segments_of` the module, which must be on its device already."""
    return Optimizer(list(segments_of(module, parts)), opt)


def _spans(parameters: Sequence[nn.Parameter]) -> Iterator[slice]:
    start = 0
    for parameter in parameters:
        yield slice(start, start + parameter.numel())
        start += parameter.numel()
