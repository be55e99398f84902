"""The network: tokenizers, positions, attention, blocks, heads, and their one initialisation rule."""

from specvit.models.vit import ViT, build_model

__all__ = ["ViT", "build_model"]
