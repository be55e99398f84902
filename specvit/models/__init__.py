"""The networks: the ViT and the CNN, by `model.kind`."""

from collections.abc import Callable, Sequence

from specvit.config.schema import NetworkConfig
from specvit.models.cnn import CNN, build_cnn
from specvit.models.network import Network
from specvit.models.vit import ViT, build_vit

__all__ = ["CNN", "NETWORKS", "Network", "ViT", "build_model"]

NETWORKS: dict[str, Callable[..., Network]] = {"vit": build_vit, "cnn": build_cnn}
"""By `model.kind`, as in `config.model_kinds.MODEL_KINDS`."""


def build_model(
    config: NetworkConfig, *, num_pixels: int, num_outputs: int, seed: int, kept: Sequence[int] | None = None
) -> Network:
    """Return an initialised network; raises `ConfigError` if it does not fit `num_pixels`.

    `kept` are the numbers of the tokens that a ViT with `model.reduction` computes, rising.
    """
    sizes = {"num_pixels": num_pixels, "num_outputs": num_outputs, "seed": seed}
    return NETWORKS[config.kind](config, **sizes, **({} if kept is None else {"kept": kept}))
