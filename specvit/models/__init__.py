"""The networks: the ViT, of tokenizers, positions, attention, blocks and heads with one initialisation, and the CNN."""

from typing import overload

from specvit.config.schema import CNNConfig, NetworkConfig, ViTConfig
from specvit.models.cnn import CNN, build_cnn
from specvit.models.vit import ViT, build_vit

__all__ = ["CNN", "Network", "ViT", "build_model"]

Network = ViT | CNN


@overload
def build_model(config: ViTConfig, *, num_pixels: int, num_outputs: int, seed: int) -> ViT: ...
@overload
def build_model(config: CNNConfig, *, num_pixels: int, num_outputs: int, seed: int) -> CNN: ...
def build_model(config: NetworkConfig, *, num_pixels: int, num_outputs: int, seed: int) -> Network:
    """Return an initialised network; raises `ConfigError` if it does not fit `num_pixels`."""
    sizes = {"num_pixels": num_pixels, "num_outputs": num_outputs, "seed": seed}
    return build_cnn(config, **sizes) if isinstance(config, CNNConfig) else build_vit(config, **sizes)
