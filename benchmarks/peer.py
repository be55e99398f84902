"""The peer: what users run today for the same network. HuggingFace ViTModel, Lightning, DataLoader over tensors.

Needs the `bench` extra. A spectrum is an image of 1 x P pixels with patches of 1 x patch, so the patch embedding is
the library's own. Legend: B batch, P pixels.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig as PeerConfig
from transformers import ViTModel

from specvit.config.schema import ViTConfig
from specvit.models import ViT
from specvit.models.foreign_weights import place_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning

for noisy in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(noisy).setLevel(logging.ERROR)


class Peer(lightning.LightningModule):
    """The network and its training step as users write them."""

    def __init__(self, config: ViTConfig, num_pixels: int, *, attention_dropout: float, lr: float = 3e-4) -> None:
        """`attention_dropout` is a separate key of the library; users set both to `model.dropout`."""
        super().__init__()
        self.vit = ViTModel(
            PeerConfig(
                image_size=(1, num_pixels),
                patch_size=(1, config.patch_size),
                num_channels=1,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=attention_dropout,
                qkv_bias=config.qkv_bias,
                layer_norm_eps=1e-5,
            ),
            add_pooling_layer=False,
        )
        self.head = nn.Linear(config.hidden_size, 1)
        self.lr = lr

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the outputs (B, 1)."""
        return self.head(self.vit(flux_BP[:, None, None, :]).last_hidden_state[:, 0])

    def training_step(self, batch: tuple[Tensor, ...], number: int) -> Tensor:
        """Add noise and return the loss."""
        flux_BP, error_BP, target = batch
        return nn.functional.mse_loss(self(flux_BP + error_BP * torch.randn_like(flux_BP)), target)

    def configure_optimizers(self) -> Any:
        """Return AdamW over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)


def matching(source: ViT, target: Peer, read: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (peer's, specvit's) tensors that mean the same, `read` from their parameters: values, or gradients.

    `source` has C1D, learned positions and a CLS token.
    """
    ours = dict(source.named_parameters())
    for name, theirs in target.named_parameters():
        own, third = place_of(name)
        yield read(theirs), read(ours[own]) if third is None else read(ours[own]).chunk(3)[third]


def copy_weights(source: ViT, target: Peer) -> None:
    """Give the peer the parameters of a specvit network."""
    with torch.no_grad():
        for theirs, ours in matching(source, target, lambda parameter: parameter):
            theirs.copy_(ours.reshape(theirs.shape))


class Timer(lightning.Callback):
    """Times whole steps after a warm-up, until `seconds` have passed."""

    def __init__(self, seconds: float, warm_up: int) -> None:
        """`warm_up` steps are not counted."""
        super().__init__()
        self.seconds, self.warm_up = seconds, warm_up
        self.started, self.steps, self.elapsed = 0.0, 0, 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step."""
        if self.warm_up:
            self.warm_up -= 1
            self._wait(module)
            self.started = time.perf_counter()
            return
        self.steps += 1
        if module.device.type == "cpu" or self.steps % 10 == 0:
            self._wait(module)
            self.elapsed = time.perf_counter() - self.started
            trainer.should_stop = self.elapsed >= self.seconds

    @staticmethod
    def _wait(module: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)


def peer_rate(
    peer: Peer,
    arrays: tuple[Tensor, Tensor, Tensor],
    *,
    batch_size: int,
    precision: str,
    deterministic: bool,
    seconds: float,
    warm_up: int,
    device: torch.device,
    helped: bool,
) -> float:
    """Return spectra/s of `Trainer.fit` over flux, error and targets in memory."""
    on_gpu = device.type == "cuda"
    workers = {"num_workers": 4, "persistent_workers": True, "pin_memory": True} if on_gpu and helped else {}
    loader = DataLoader(TensorDataset(*arrays), batch_size=batch_size, shuffle=True, drop_last=True, **workers)
    timer = Timer(seconds, warm_up)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice on workers and loggers
        trainer = lightning.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=1,
            max_epochs=10**6,
            min_epochs=0,
            precision={"32": "32-true"}.get(precision, precision),
            gradient_clip_val=0.5,
            deterministic=deterministic,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
        )
        trainer.fit(peer, loader)
    return timer.steps * batch_size / timer.elapsed
