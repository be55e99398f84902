"""The convolutional network in the loop of the ViT."""

import signal
from pathlib import Path

import pytest
import torch
from whole_runs import assert_same_run, only_run, whole_and_stopped

from specvit.commands import evaluate
from specvit.config.schema import CNNConfig
from specvit.models import CNN, build_model

SMALL = ["model=cnn", "model.channels=[8,16]", "model.pool_size=4", "model.head_size=32", "model.head_dropout=0.1"]


def model(seed: int = 0, channels: tuple[int, ...] = (16, 32, 64, 64)) -> CNN:
    return build_model(CNNConfig(channels=channels), num_pixels=4096, num_outputs=2, seed=seed)


def test_outputs_and_parameters_are_keyed_by_the_seed() -> None:
    one, same, other = model(), model(), model(seed=1)
    flux_BP = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    assert one(flux_BP).shape == (3, 2) and one(flux_BP).dtype == torch.float32
    torch.testing.assert_close(one(flux_BP), same(flux_BP))
    assert not torch.allclose(one(flux_BP), other(flux_BP))
    wider = model(channels=(16, 32, 64, 80)).state_dict()
    torch.testing.assert_close(one.state_dict()["stages.0.weight"], wider["stages.0.weight"])  # streams by name
    assert sum(map(len, one.parts().values())) == len(list(one.parameters()))


def test_a_fresh_network_answers_with_about_zero() -> None:
    """So that the loss starts near that of the mean, whatever the number of stages."""
    flux_BP = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0))
    for channels in ((16, 32, 64, 64), (8,), (4, 8, 8, 8, 8)):
        assert model(channels=channels)(flux_BP).abs().max() < 1


def test_every_pixel_counts() -> None:
    flux_BP = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model()(flux_BP).sum().backward()
    gradient_P = flux_BP.grad
    assert gradient_P is not None
    assert all(part.abs().max() > 0 for part in gradient_P[0].split(512))


def test_cost_is_that_of_the_products() -> None:
    """Counted by torch itself."""
    from torch.utils.flop_counter import FlopCounterMode

    network = model()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 4096))
    assert network.cost().forward_flops == counter.get_total_flops()
    assert sum(network.cost().parameters.values()) == sum(p.numel() for p in network.parameters())
    assert "tokens" not in " ".join(network.cost().lines())


@pytest.mark.nightly
def test_a_killed_run_ends_bitwise_equal_and_can_be_evaluated(tiny: list[str], tmp_path: Path) -> None:
    def words(folder: str) -> list[str]:
        rest = ["train.epochs=4", "opt.lr=3e-3", "train.threads=1", f"tracking.folder={tmp_path / folder}"]
        return [*(text for text in tiny if not text.startswith("model.")), *SMALL, *rest]

    assert "resuming from step" in whole_and_stopped(words, signal.SIGKILL, "epoch 2/4")
    assert_same_run(only_run(tmp_path / "stopped"), only_run(tmp_path / "whole"))
    assert evaluate.main([str(only_run(tmp_path / "whole"))]) == 0
