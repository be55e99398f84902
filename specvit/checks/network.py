"""What a network is like before its first step: stages, parameters, gradients, memory. B rows, P pixels, K labels.

All of it is of one forward and backward pass in float32 without dropout.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specvit.checks.rules import Measure
from specvit.config.schema import Config, ViTConfig
from specvit.models import Network
from specvit.models.network import Cost
from specvit.run.first_step import Stage, activations
from specvit.training.step import Learner
from specvit.training.task import Classification, Regression
from specvit.utils.memory import free_memory
from specvit.utils.quantities import Batch

FLOP_BUDGET, LEAST_ROWS = 1e11, 16
"""A pass takes as many rows of the first batch as the budget allows, but about these at least. Their number is odd: the
gradient of an L1 loss by the last bias is a sum of signs, which could cancel."""
BYTES_A_PARAMETER = 16
"""Weight, gradient and two moments, float32."""
CHECKLIST_SIZES = {(128, 4, 4, 512): "tiny ~200K", (256, 6, 8, 1024): "small ~2M", (512, 6, 8, 2048): "base ~10M"}
"""Parameters as the tuning checklist gives them, by width, layers, heads and feed-forward width."""
FEW_ROWS, MANY_ROWS = 10_000, 100_000


@dataclass(frozen=True)
class NetworkFacts:
    """What the report shows of a network."""

    rows: int
    """Rows of the measured pass."""
    stages: dict[str, Stage]
    components: dict[str, int]
    """Parameters by component; those of the blocks are of one block."""
    checklist_size: str
    """The size's parameters in the tuning checklist, or ""."""
    cost: Cost
    norms: dict[str, float]
    """Gradient norms: of the whole (`all`), then of each part."""
    step_bytes: float
    """Memory of one training step with its weights and moments in float32, an estimate."""


def network_checks(config: Config, learner: Learner, batch: Batch) -> tuple[NetworkFacts, list[Measure]]:
    """Return what a learner's network makes of rows of the first batch, and the measures of it; no weight changes."""
    network = learner.module
    assert isinstance(network, Network)
    cost = network.cost()
    rows = min(len(batch.target), config.train.batch_size, max(LEAST_ROWS, int(FLOP_BUDGET / cost.training_flops)))
    rows -= 1 - rows % 2
    batch = Batch(batch.flux_BP[:rows].float(), batch.target[:rows])
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    network.eval()
    learner.optimizer.zero_gradients()
    with activations(network) as stages, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(batch.flux_BP)
        loss = learner.task.loss(output, batch.target, learner.task.count(batch.target))
    loss.backward()
    norms = dict(zip(("all", *learner.optimizer.parts), learner.optimizer.gradient_norms().tolist(), strict=True))
    without = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
    learner.optimizer.zero_gradients()
    facts = NetworkFacts(
        rows=rows,
        stages=stages,
        components=components(network),
        checklist_size=_checklist_size(config),
        cost=cost,
        norms=norms,
        step_bytes=BYTES_A_PARAMETER * sum(cost.parameters.values())
        + sum(saved.values()) / rows * config.train.batch_size,
    )
    first = Measure("first_loss", _above_constant(learner, loss.item(), batch.target), config.loss.name)
    return facts, [first, *_measures(config, learner, facts, without, loss.item())]


def components(network: Network) -> dict[str, int]:
    """Return the parameters of each component; one of `each block` counts those of a single block."""
    counts: dict[str, int] = {}
    blocks = len(getattr(network, "blocks", ())) or 1
    for name, parameter in network.named_parameters():
        inner = re.sub(r"\.(weight|bias)$", "", name)
        inner, repeats = re.subn(r"^blocks\.\d+\.", "each block: ", inner)
        inner = re.sub(r"(: )norm_\w+", r"\1norms", re.sub(r"feed_forward\.\w+", "feed_forward", inner))
        counts[inner] = counts.get(inner, 0) + parameter.numel() // (blocks if repeats else 1)
    return counts


def _measures(
    config: Config, learner: Learner, facts: NetworkFacts, without: list[str], loss: float
) -> Iterator[Measure]:
    stages, whole = facts.stages, facts.norms["all"]
    numbers = [loss, *facts.norms.values(), *(stage.rms for stage in stages.values())]
    yield Measure("finite", sum(not abs(number) < float("inf") for number in numbers))
    yield Measure("no_gradient", len(without), ", ".join(without[:3]) + (", …" if len(without) > 3 else ""))
    yield Measure("gradient_norm", whole)
    if whole:
        least = min(facts.norms, key=lambda part: facts.norms[part])
        yield Measure("gradient_share", facts.norms[least] / whole, least)
    positions = getattr(getattr(learner.module, "positions", None), "weight", None)
    if positions is not None:
        yield Measure("token_scale", stages["tokenizer"].std / positions.detach().float().square().mean().sqrt().item())
    greatest = max(stages, key=lambda name: stages[name].rms)
    yield Measure("activation", stages[greatest].rms, greatest)
    yield Measure("prediction", stages["head"].std)
    if config.train.gradient_clip:
        yield Measure("clip", whole / config.train.gradient_clip)
    if not config.train.checkpoint_blocks:
        yield Measure("memory", facts.step_bytes / _free_bytes(learner.device))
    yield Measure("unread", facts.cost.unread_pixels)


def _above_constant(learner: Learner, loss: float, target: Tensor) -> float:
    """Return how far a loss is above that of the best constant output: in units of it, or in nats of a likelihood."""
    task, target = learner.task, target.cpu()  # where medians and counts are deterministic
    if isinstance(task, Classification):
        counts_K = torch.bincount(target) + 1e-9
        return loss - task.loss((counts_K / counts_K.sum()).log().expand(len(target), -1), target).item()
    assert isinstance(task, Regression)
    constants = []
    for centre_K in (target.nanmean(0), target.nanmedian(0).values):
        scale_K = (target - centre_K).square().nanmean(0).sqrt().clamp(min=1e-6)
        output_X = torch.cat([centre_K, scale_K.log()]) if task.distribution else centre_K
        constants.append(task.loss(output_X.expand(len(target), -1), target, task.count(target)).item())
    return (loss - min(constants)) / (1.0 if task.distribution else max(min(constants), 1e-12))


def table_checks(config: Config, rows: int) -> Iterator[Measure]:
    """Yield what the tuning checklist's tables say of these settings by the number of training rows."""
    size = "few" if rows < FEW_ROWS else "many" if rows > MANY_ROWS else ""
    if size:
        yield Measure(f"lr_{size}_rows", config.opt.lr)
        yield Measure(f"decay_{size}_rows", config.opt.weight_decay)
        if isinstance(config.model, ViTConfig):
            yield Measure(f"dropout_{size}_rows", config.model.dropout)


def _checklist_size(config: Config) -> str:
    model = config.model
    if not isinstance(model, ViTConfig):
        return ""
    size = (model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.intermediate_size)
    return CHECKLIST_SIZES.get(size, "")


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
