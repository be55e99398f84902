"""The spectral Vision Transformer. Legend: B batch, P pixels, N tokens, S = N + prefix tokens, D width, K outputs."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specvit.config.model_kinds import STEM_REACH, check_fits, vit_flops, vit_stage_flops
from specvit.config.schema import ViTConfig
from specvit.models.block import Attention, Block, FeedForward
from specvit.models.dropout import KeyedDropout
from specvit.models.init import initialise, token_std
from specvit.models.network import Cost, Network
from specvit.models.pooling import build_pool
from specvit.models.positions import LearnedPositions, NoPositions, RotaryPositions, SinusoidalPositions
from specvit.models.tokenizers import TOKENIZERS, num_tokens


class ViT(Network):
    """Normalised flux (B, P) -> outputs (B, K): standardised labels, or class scores.

    Of N patches only those in `kept_N` become tokens, at their places in the whole sequence; None: all.
    """

    kept_N: Tensor | None

    def __init__(
        self, config: ViTConfig, *, num_pixels: int, num_outputs: int, kept: Sequence[int] | None = None
    ) -> None:
        """Build the parts of `config`; parameters are set by `initialise` afterwards."""
        super().__init__()
        width = config.hidden_size
        whole = num_tokens(num_pixels, config.patch_size, config.stride_size)
        self.whole_tokens, self.num_tokens = whole, whole if kept is None else len(kept)
        all_kept = self.num_tokens == whole
        self.register_buffer("kept_N", None if all_kept else torch.tensor(kept), persistent=False)
        reach = STEM_REACH if config.proj_fn == "stem" else 0
        self.unread_pixels = max(0, num_pixels - ((whole - 1) * config.stride_size + config.patch_size + reach))
        sizes = {"patch_size": config.patch_size, "stride_size": config.stride_size, "hidden_size": width}
        self.tokenizer = TOKENIZERS[config.proj_fn](**sizes)
        self.pool = build_pool(config.pool, width)
        self.num_prefix_tokens = self.pool.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.num_prefix_tokens else None
        self.positions, rotary = _positions(config, whole, self.num_prefix_tokens, self.kept_N)
        self.drop = KeyedDropout(config.dropout, 0)
        self.blocks = nn.ModuleList(_block(config, rotary, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        sizes = (asdict(config), num_pixels, num_outputs)
        self.flops, self.stage_flops = vit_flops(*sizes, self.num_tokens), vit_stage_flops(*sizes, self.num_tokens)
        self.whole_flops = vit_flops(*sizes, whole)[0]
        self.checkpoint_blocks = False

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the outputs (B, K) in float32."""
        tokens_BSD = self._embedded(flux_BP)
        for number, block in enumerate(self.blocks, 1):
            # Nothing reads the last block's other tokens; computing them would be a seventh of the work at 6 blocks.
            only_prefix = self.num_prefix_tokens if number == len(self.blocks) and self.num_prefix_tokens else None
            if self.checkpoint_blocks and self.training:
                tokens_BSD = checkpoint(block, tokens_BSD, only_prefix, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens_BSD = block(tokens_BSD, only_prefix)
        return self.head(self.pool(self.norm(tokens_BSD))).float()

    def attention(self, flux_BP: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return each block's attention weights, mean over heads, (B, S, S), and the pooling's weights (B, S)."""
        tokens_BSD = self._embedded(flux_BP)
        weights: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, Block)
            weights.append(block.attention.weights(block.norm_attention(tokens_BSD)).mean(dim=1))
            tokens_BSD = block(tokens_BSD)
        return weights, self.pool.weights(self.norm(tokens_BSD))

    def _embedded(self, flux_BP: Tensor) -> Tensor:
        """Return the first block's input (B, S, D): tokens after the prefix, with positions; never in 16 bits."""
        tokens_BSD = self.tokenizer(flux_BP) if self.kept_N is None else self.tokenizer(flux_BP, self.kept_N)
        if self.cls_token is not None:
            cls_B1D = self.cls_token.to(tokens_BSD.dtype).expand(len(flux_BP), -1, -1)
            tokens_BSD = torch.cat([cls_B1D, tokens_BSD], dim=1)
        return self.drop(self.positions(tokens_BSD))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by part: tokenizer, positions (with CLS), blocks (with the last norm), head."""
        positions = [*self.positions.parameters(), *([] if self.cls_token is None else [self.cls_token])]
        return {
            "tokenizer": list(self.tokenizer.parameters()),
            "positions": positions,
            "blocks": [*self.blocks.parameters(), *self.norm.parameters()],
            "head": [*self.pool.parameters(), *self.head.parameters()],
        }

    def cost(self) -> Cost:
        """Return the operations of matrix products, by `vit_flops`."""
        return Cost(
            parameters=self.parameter_counts(),
            num_tokens=self.num_tokens,
            num_prefix_tokens=self.num_prefix_tokens,
            forward_flops=self.flops[0],
            training_flops=self.flops[1],
            unread_pixels=self.unread_pixels,
            stage_flops=self.stage_flops,
            whole_tokens=self.whole_tokens,
            whole_flops=self.whole_flops,
        )


def build_vit(
    config: ViTConfig, *, num_pixels: int, num_outputs: int, seed: int, kept: Sequence[int] | None = None
) -> ViT:
    """Return an initialised ViT; raises `ConfigError` if a patch does not fit into `num_pixels`.

    `kept` are the numbers of the tokens that it computes, rising: given if and only if `model.reduction` keeps some.
    """
    assert (kept is None) == (config.reduction.kind == "none")
    check_fits(config, num_pixels)
    model = ViT(config, num_pixels=num_pixels, num_outputs=num_outputs, kept=kept)
    initialise(model, rule=config.init, seed=seed)
    return model


def _positions(
    config: ViTConfig, tokens: int, prefix: int, kept_N: Tensor | None
) -> tuple[nn.Module, RotaryPositions | None]:
    """Return the additive positions (`NoPositions` if there are none) and the rotary ones, if any.

    A kept token has the position that it has among all `tokens`.
    """
    kind, width, places_S = config.pos_encoding_type, config.hidden_size, torch.arange(prefix + tokens)
    if kept_N is not None:
        places_S = torch.cat([places_S[:prefix], kept_N + prefix])
    if kind == "learned":
        return LearnedPositions(prefix + tokens, width, None if kept_N is None else places_S), None
    if kind == "sinusoidal":
        # A sine of amplitude a has std a / sqrt(2).
        return SinusoidalPositions(places_S, width, scale=token_std(config.init) * 2**0.5), None
    if kind == "rope":
        return NoPositions(), RotaryPositions(places_S, width // config.num_attention_heads, prefix)
    return NoPositions(), None


def _block(config: ViTConfig, rotary: RotaryPositions | None, index: int) -> Block:
    width = config.hidden_size
    attention = Attention(
        hidden_size=width, num_heads=config.num_attention_heads, qkv_bias=config.qkv_bias, rotary=rotary
    )
    feed_forward = FeedForward(hidden_size=width, intermediate_size=config.intermediate_size)
    return Block(attention=attention, feed_forward=feed_forward, hidden_size=width, dropout=config.dropout, index=index)
