"""A plain 1-D convolutional network, the ViT's rival in the same loop. Legend: B batch, P pixels, C channels."""

import torch
from torch import Tensor, nn

from specvit.config.schema import CNNConfig
from specvit.config.validate import check_fits
from specvit.models.dropout import KeyedDropout, set_dropout_key
from specvit.models.init import LINEAR_STD
from specvit.utils import seeding


class CNN(nn.Module):
    """Normalised flux (B, P) -> outputs (B, K): stages of convolution, GELU and max pooling, then two linear layers.

    The design of StarNet (Fabbro et al. 2018, MNRAS 475, 2978) with more stages, and a pool after each.
    """

    def __init__(self, config: CNNConfig, *, num_pixels: int, num_outputs: int) -> None:
        """Build the layers of `config`; parameters are set by `build_cnn` afterwards."""
        super().__init__()
        stages: list[nn.Module] = []
        inputs, self.num_pixels, self.pool_size = 1, num_pixels, config.pool_size
        for outputs in config.channels:
            stages.append(nn.Conv1d(inputs, outputs, config.kernel_size, padding=config.kernel_size // 2))
            stages += [nn.GELU(), nn.MaxPool1d(config.pool_size)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        with torch.no_grad():
            left = self.stages(torch.zeros(1, 1, num_pixels)).numel()
        self.hidden = nn.Linear(left, config.head_size)
        self.drop = KeyedDropout(config.head_dropout, 0)
        self.head = nn.Linear(config.head_size, num_outputs)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the outputs (B, K) in float32."""
        features_BC = self.stages(flux_BP[:, None]).flatten(1)
        return self.head(self.drop(nn.functional.gelu(self.hidden(features_BC)))).float()

    def set_step_key(self, key: int) -> None:
        """Set what this forward pass's dropout masks are drawn from."""
        set_dropout_key(self, key)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by part: stages and head."""
        return {"stages": list(self.stages.parameters()), "head": [*self.hidden.parameters(), *self.head.parameters()]}


def build_cnn(config: CNNConfig, *, num_pixels: int, num_outputs: int, seed: int) -> CNN:
    """Return an initialised CNN; raises `ConfigError` if its pools leave nothing of `num_pixels`.

    Weights are normal with std sqrt(1 / inputs), which a max pool after each stage makes up for, those of the last
    layer with std 0.02; biases are zero. Each parameter draws from its own stream, keyed by its name.
    """
    check_fits(config, num_pixels)
    model = CNN(config, num_pixels=num_pixels, num_outputs=num_outputs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
                continue
            std = LINEAR_STD if name == "head.weight" else parameter[0].numel() ** -0.5
            parameter.normal_(0.0, std, generator=seeding.torch_rng(seed, "init", name))
    return model
