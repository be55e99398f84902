"""What a model costs: parameters by part and floating-point operations, from the configuration's numbers alone."""

from dataclasses import dataclass

from torch import nn

from specvit.models import CNN, Network, ViT


@dataclass(frozen=True)
class Cost:
    """Counts for one spectrum; FLOPs count a multiply-add as two. A network without tokens has 0 of them."""

    parameters: dict[str, int]
    num_tokens: int
    num_prefix_tokens: int
    forward_flops: int
    training_flops: int
    unread_pixels: int
    """Pixels at the red end that reach no token, or no feature of a CNN."""

    def lines(self) -> list[str]:
        """Return the printed summary."""
        total = sum(self.parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        tokens = f"{self.num_tokens} tokens" + (f" + {self.num_prefix_tokens} CLS" if self.num_prefix_tokens else "")
        tokens = f"{tokens}; " if self.num_tokens else ""
        flops = f"{self.forward_flops / 1e9:.3f} GFLOP forward, {self.training_flops / 1e9:.3f} training a spectrum"
        lines = [f"{total:,} parameters: {parts}", f"{tokens}{flops}"]
        if self.unread_pixels:
            lines.append(f"note: the last {self.unread_pixels} pixels of each spectrum fill no patch and are not read")
        return lines


def cost_of(model: Network) -> Cost:
    """Return the cost of `model`: matrix products only, norms and activations left out (under 1 %)."""
    return _cost_of_cnn(model) if isinstance(model, CNN) else _cost_of_vit(model)


def _cost_of_cnn(model: CNN) -> Cost:
    """Return 2 L k C_in C_out a stage of L pixels, and 2 times the weights of the two layers."""
    pixels, stages = model.num_pixels, []
    for layer in model.stages:
        if isinstance(layer, nn.Conv1d):
            pixels += 2 * int(layer.padding[0]) - layer.kernel_size[0] + 1
            stages.append(2 * pixels * layer.weight.numel())
        elif isinstance(layer, nn.MaxPool1d):
            pixels //= model.pool_size
    end = pixels  # pixels up to which the last stage looks, followed back through pools and convolutions
    for layer in reversed(model.stages):
        if isinstance(layer, nn.Conv1d):
            end += layer.kernel_size[0] // 2
        elif isinstance(layer, nn.MaxPool1d):
            end *= model.pool_size
    forward = sum(stages) + 2 * (model.hidden.weight.numel() + model.head.weight.numel())
    return Cost(
        parameters={name: sum(p.numel() for p in part) for name, part in model.parts().items()},
        num_tokens=0,
        num_prefix_tokens=0,
        forward_flops=forward,
        training_flops=3 * forward - stages[0],
        unread_pixels=max(0, model.num_pixels - end),
    )


def _cost_of_vit(model: ViT) -> Cost:
    """Return the cost of a ViT.

    Forward: 2NPD (tokenizer) + 4SD^2 + Q(4D^2 + 4DF) + 4QSD a block + 2DK, with P the patch, F the feed-forward width
    and Q the tokens that go on: all S, in the last block only the CLS token where it is what is pooled. Training is
    three times that less the tokenizer's gradient with respect to its input, which nobody needs.
    """
    width = model.head.in_features
    patch = model.tokenizer.get_parameter("proj.weight").shape[-1]
    length = model.num_tokens + model.num_prefix_tokens
    tokenizer = 2 * model.num_tokens * patch * width
    blocks = 0
    for number, block in enumerate(model.blocks, 1):
        feed_forward = block.get_parameter("feed_forward.up.weight").shape[0]
        queries = (number == len(model.blocks) and model.num_prefix_tokens) or length
        blocks += 4 * width * (length * width + queries * (width + feed_forward + length))
    forward = tokenizer + blocks + 2 * width * model.head.out_features
    return Cost(
        parameters={name: sum(p.numel() for p in part) for name, part in model.parts().items()},
        num_tokens=model.num_tokens,
        num_prefix_tokens=model.num_prefix_tokens,
        forward_flops=forward,
        training_flops=3 * forward - tokenizer,
        unread_pixels=model.unread_pixels,
    )
