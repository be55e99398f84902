"""Ridge regression from sums over the rows, which need not fit into memory. B rows, P pixels, K labels, A penalties.

Pixels are standardised; the penalty alpha is relative to the sum of squared residuals, as in scikit-learn. One
eigenvalue decomposition serves all penalties.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from specvit.config.schema import RidgeConfig
from specvit.data.labels import TargetCoder, by_known_rows
from specvit.data.splits import Splits
from specvit.estimators.estimator import Estimator, FitContext, Fitted
from specvit.training.checkpoint import Parts
from specvit.training.loop import predict
from specvit.utils.quantities import Batch

Array = NDArray[np.float64]


class Linear(nn.Module):
    """Normalised flux (B, P) -> normalised labels (B, K)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight_PK: Tensor, bias_K: Tensor) -> None:
        """Keep weights and bias, float32."""
        super().__init__()
        self.register_buffer("weight", weight_PK)
        self.register_buffer("bias", bias_K)

    @classmethod
    def of_all(cls, weight_APK: NDArray[np.float32], bias_AK: NDArray[np.float32]) -> "Linear":
        """Return several models as one, with their outputs side by side, (B, A * K)."""
        weight_PX = np.ascontiguousarray(weight_APK.transpose(1, 0, 2)).reshape(weight_APK.shape[1], -1)
        return cls(torch.from_numpy(weight_PX), torch.from_numpy(bias_AK.reshape(-1)))

    def forward(self, flux_BP: Tensor) -> Tensor:
        """Return the labels."""
        return torch.addmm(self.bias, flux_BP, self.weight)


@dataclass
class Moments:
    """Sums over rows, float64: of pixels (P,), labels (K,), products of pixels (P, P) and of both (P, K)."""

    rows: int
    pixel_P: Tensor
    label_K: Tensor
    pixels_PP: Tensor
    cross_PK: Tensor

    def add(self, batch: Batch) -> None:
        """Add the rows of a batch, in float64: at low noise the smallest penalties need its precision."""
        flux_BP, label_BK = batch.flux_BP.double(), batch.target.double()
        self.rows += len(flux_BP)
        self.pixel_P += flux_BP.sum(0)
        self.label_K += label_BK.sum(0)
        self.pixels_PP.addmm_(flux_BP.T, flux_BP)
        self.cross_PK.addmm_(flux_BP.T, label_BK)


def with_label(batches: Iterable[Batch], known_N: np.ndarray, labels: np.ndarray) -> Iterable[Batch]:
    """Return batches of the rows (N,) that have some labels, which are numbered, with these labels alone."""
    start = 0
    for batch in batches:
        known_B = torch.from_numpy(known_N[start : start + len(batch.target)]).to(batch.target.device)
        start += len(batch.target)
        if known_B.any():
            yield Batch(batch.flux_BP[known_B], batch.target[known_B][:, labels])


def sum_up(batches: Iterable[Batch], report: Callable[[int], None]) -> Moments:
    """Return the moments of all rows of at least one batch, on their device; `report` gets the rows so far."""
    moments: Moments | None = None
    for batch in batches:
        if moments is None:
            pixels, labels = batch.flux_BP.shape[1], batch.target.shape[1]
            shapes = ((pixels,), (labels,), (pixels, pixels), (pixels, labels))
            zeros = (batch.flux_BP.new_zeros(shape, dtype=torch.float64) for shape in shapes)
            moments = Moments(0, *zeros)
        moments.add(batch)
        report(moments.rows)
    assert moments is not None
    return moments


def solve(moments: Moments, alphas_A: Array) -> tuple[Array, Array]:
    """Return weights (A, P, K) and biases (A, K) of each penalty; consumes `moments.pixels_PP`."""
    rows, mean_P, mean_K = moments.rows, moments.pixel_P / moments.rows, moments.label_K / moments.rows
    covariance_PP = moments.pixels_PP.addr_(moments.pixel_P, mean_P, alpha=-1)
    spread_P = (covariance_PP.diagonal() / rows).clamp(min=0).sqrt()
    spread_P[spread_P <= 1e-6 * spread_P.max()] = torch.inf  # a constant pixel carries no information
    covariance_PP.div_(spread_P[:, None]).div_(spread_P)
    cross_PK = (moments.cross_PK - torch.outer(mean_P, moments.label_K)) / spread_P[:, None]
    values_P, vectors_PP = torch.linalg.eigh(covariance_PP)
    values_P.clamp_(min=0)
    along_PK = vectors_PP.T @ cross_PK
    weights = [vectors_PP @ (along_PK / (values_P[:, None] + alpha)) / spread_P[:, None] for alpha in alphas_A]
    weight_APK = torch.stack(weights)
    bias_AK = mean_K - torch.einsum("p,apk->ak", mean_P, weight_APK)
    return weight_APK.cpu().numpy(), bias_AK.cpu().numpy()


class Ridge(Estimator[RidgeConfig]):
    """Linear regression on standardised pixels, with the penalty of the lowest validation loss."""

    parts: ClassVar[Parts] = {"weight": Tensor, "bias": Tensor}

    def describe(self, splits: Splits) -> str:
        """Return pixels and penalties."""
        low, high = self.settings.alpha_range
        penalties = f"{self.settings.num_alphas} penalties from {low:g} to {high:g}"
        return f"ridge regression on {splits.train.num_pixels:,} pixels; {penalties}"

    def fit(self, context: FitContext) -> Fitted:
        """Solve for all penalties at once and take the best on the validation rows."""
        rows = len(context.train)
        alphas_A = np.geomspace(*self.settings.alpha_range, self.settings.num_alphas)
        known_NK = context.train.targets.isnan().logical_not_().cpu().numpy()
        weight_APK = np.empty((len(alphas_A), context.splits.train.num_pixels, known_NK.shape[1]), np.float32)
        bias_AK = np.empty((len(alphas_A), known_NK.shape[1]), np.float32)
        for known_N, labels in by_known_rows(known_NK):  # each label is learnt from the rows that have it
            batches = context.train.batches()
            batches = batches if len(labels) == known_NK.shape[1] else with_label(batches, known_N, labels)
            moments = sum_up(batches, lambda done: context.say(f"summed up {done:,} of {rows:,} spectra"))
            context.say(f"solving for {len(alphas_A)} penalties", now=True)
            weight_APK[:, :, labels], bias_AK[:, labels] = solve(moments, alphas_A)
        output_NX, target_NK = predict(Linear.of_all(weight_APK, bias_AK).to(context.device), context.val)
        output_NAK = output_NX.reshape(len(output_NX), *bias_AK.shape)
        scores_A = [context.task.scores(output_NAK[:, index], target_NK) for index in range(len(alphas_A))]
        best = min(range(len(alphas_A)), key=lambda index: scores_A[index]["loss"])
        scores, alpha = scores_A[best], float(alphas_A[best])
        weight_PK, bias_K = torch.from_numpy(weight_APK[best]), torch.from_numpy(bias_AK[best])
        if best in (0, len(alphas_A) - 1) and len(alphas_A) > 1:
            end = "least" if best == 0 else "greatest"
            context.say(f"note: the {end} penalty, {alpha:g}, is the best; widen model.alpha_range", now=True)
        train_scores = context.task.scores(*predict(Linear(weight_PK, bias_K).to(context.device), context.train))
        context.record(1, train_scores, scores, alpha=alpha)
        context.say(f"penalty {alpha:g}  val loss {scores['loss']:.4f}  val r2 {scores['r2']:.4f}", now=True)
        return Fitted({"weight": weight_PK, "bias": bias_K})

    def load(self, parts: dict[str, Any], coder: TargetCoder, device: torch.device, where: str) -> nn.Module:
        """Return the linear model."""
        return Linear(parts["weight"], parts["bias"])

    def part_shapes(self, num_pixels: int, num_outputs: int) -> dict[str, tuple[int, ...]]:
        """Return (P, K) of the weights and (K,) of the bias."""
        return {"weight": (num_pixels, num_outputs), "bias": (num_outputs,)}
