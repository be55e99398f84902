"""The interface of a network, and what one costs: parameters by part and floating-point operations."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from specvit.models.dropout import set_dropout_key


@dataclass(frozen=True)
class Cost:
    """Counts for one spectrum; a multiply-add is two FLOPs. A network without tokens has 0 of them."""

    parameters: dict[str, int]
    num_tokens: int
    num_prefix_tokens: int
    forward_flops: int
    training_flops: int
    unread_pixels: int
    """Pixels at the red end that reach no token, or no feature of a CNN."""
    stage_flops: dict[str, int] = field(default_factory=dict)
    """Of the forward pass, by part; none for a network without tokens."""
    whole_tokens: int = 0
    whole_flops: int = 0
    """Tokens and forward operations if `model.reduction` kept all tokens."""

    def lines(self) -> list[str]:
        """Return the printed summary."""
        total = sum(self.parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        tokens = f"{self.num_tokens} tokens" + (f" + {self.num_prefix_tokens} CLS" if self.num_prefix_tokens else "")
        tokens = f"{tokens}; " if self.num_tokens else ""
        flops = f"{self.forward_flops / 1e9:.3f} GFLOP forward, {self.training_flops / 1e9:.3f} training a spectrum"
        lines = [f"{total:,} parameters: {parts}", f"{tokens}{flops}"]
        if self.num_tokens < self.whole_tokens:
            kept = f"{self.num_tokens} of {self.whole_tokens} tokens ({self.num_tokens / self.whole_tokens:.1%})"
            parts = ", ".join(f"{name} {count / 1e6:,.1f}" for name, count in self.stage_flops.items())
            share = f"{self.forward_flops / self.whole_flops:.1%} of the forward FLOPs remain ({parts} MFLOP)"
            lines.append(f"model.reduction: {kept} and {share}")
        if self.unread_pixels:
            lines.append(f"note: the last {self.unread_pixels} pixels of each spectrum fill no patch and are not read")
        return lines


class Network(nn.Module, ABC):
    """Normalised flux (B, P) -> outputs (B, K), float32: standardised labels, or class scores."""

    @abstractmethod
    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the outputs (B, K) in float32."""

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by part, such as `head`: the gradient norms in `metrics.jsonl` have these names."""

    @abstractmethod
    def cost(self) -> Cost:
        """Return the cost in matrix products only, without norms and activations (under 1 %)."""

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of parameters of each part."""
        return {name: sum(parameter.numel() for parameter in part) for name, part in self.parts().items()}

    def set_step_key(self, key: int) -> None:
        """Set the key of this forward pass's dropout masks."""
        set_dropout_key(self, key)
