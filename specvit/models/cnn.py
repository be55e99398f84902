"""A plain 1-D convolutional network, the baseline of the ViT. Legend: B batch, P pixels, C channels, K outputs."""

from dataclasses import asdict

import torch
from torch import Tensor, nn

from specvit.config.model_kinds import check_fits, cnn_flops
from specvit.config.schema import CNNConfig
from specvit.models.dropout import KeyedDropout
from specvit.models.init import LINEAR_STD
from specvit.models.network import Cost, Network
from specvit.utils import seeding


class CNN(Network):
    """Normalised flux (B, P) -> outputs (B, K): stages of convolution, GELU and max pooling, then two linear layers.

    The design of StarNet (Fabbro et al. 2018, MNRAS 475, 2978) with more stages, and a pool after each.
    """

    def __init__(self, config: CNNConfig, *, num_pixels: int, num_outputs: int) -> None:
        """Build the layers of `config`; parameters are set by `build_cnn` afterwards."""
        super().__init__()
        stages: list[nn.Module] = []
        inputs, self.num_pixels, self.config = 1, num_pixels, config
        for outputs in config.channels:
            stages.append(nn.Conv1d(inputs, outputs, config.kernel_size, padding=config.kernel_size // 2))
            stages += [nn.GELU(), nn.MaxPool1d(config.pool_size)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        with torch.no_grad():
            num_features = self.stages(torch.zeros(1, 1, num_pixels)).numel()
        self.hidden = nn.Linear(num_features, config.head_size)
        self.drop = KeyedDropout(config.head_dropout, 0)
        self.head = nn.Linear(config.head_size, num_outputs)

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the outputs (B, K) in float32."""
        features_BC = self.stages(flux_BP[:, None]).flatten(1)
        return self.head(self.drop(nn.functional.gelu(self.hidden(features_BC)))).float()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by part: stages and head."""
        return {"stages": list(self.stages.parameters()), "head": [*self.hidden.parameters(), *self.head.parameters()]}

    def cost(self) -> Cost:
        """Return the operations of matrix products, by `cnn_flops`."""
        channels, kernel, pool = self.config.channels, self.config.kernel_size, self.config.pool_size
        end = self.hidden.in_features // channels[-1]
        for _ in channels:  # the last pixel that reaches a feature, followed back through pools and convolutions
            end = end * pool + kernel // 2
        forward, training = cnn_flops(asdict(self.config), self.num_pixels, self.head.out_features)
        return Cost(
            parameters=self.parameter_counts(),
            num_tokens=0,
            num_prefix_tokens=0,
            forward_flops=forward,
            training_flops=training,
            unread_pixels=max(0, self.num_pixels - end),
        )


def build_cnn(config: CNNConfig, *, num_pixels: int, num_outputs: int, seed: int) -> CNN:
    """Return an initialised CNN; raises `ConfigError` if its pools leave nothing of `num_pixels`.

    Weights are normal with std sqrt(1 / inputs), since the max pools raise the variance again; those of the last layer
    have std 0.02. Biases are zero. Each parameter has its own random stream, keyed by its name.
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
