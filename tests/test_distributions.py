"""Predicted standard deviations: losses and scores of normal and Laplace distributions, against their definitions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from toys import PIXELS, Shuffled, toy_run

from specvit.config.schema import LossConfig, OptConfig
from specvit.metrics.distributions import BY_LOSS, Uncertainty
from specvit.metrics.intervals import count_matrices
from specvit.metrics.scores import flat_scores, label_rows
from specvit.metrics.statistics import RegressionRows
from specvit.training.task import Regression
from specvit.utils.quantities import Batch

NAMES, OFFSET, SCALE = ("T_eff", "log_g"), (5000.0, 3.0), (800.0, 1.3)
SCIPY: dict[str, Any] = {"gaussian": stats.norm, "laplace": stats.laplace}
LOSSES = pytest.mark.parametrize("name", ["gaussian", "laplace"])


def task(name: str, *, partial: bool = False) -> Regression:
    return Regression(LossConfig(name=name), NAMES, OFFSET, SCALE, partial)


def outputs(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs (N, 4), two locations and two log scales, and normalised labels (N, 2), float32."""
    rng = np.random.default_rng(0)
    output_NX = np.concatenate([rng.normal(0, 1, (rows, 2)), rng.normal(-1, 0.7, (rows, 2))], axis=1)
    return output_NX.astype(np.float32), rng.normal(0, 1, (rows, 2)).astype(np.float32)


def planted(name: str, rows: int = 30) -> tuple[np.ndarray, np.ndarray, Uncertainty]:
    """Return true and predicted values (N,) and their standard deviations, label units."""
    rng = np.random.default_rng(1)
    std_N = rng.uniform(0.2, 2.0, rows)
    true_N = rng.normal(4000, 300, rows)
    return true_N, true_N + 3 * std_N * rng.normal(size=rows), Uncertainty(std_N, BY_LOSS[name])


@LOSSES
def test_scores_are_those_of_the_density_and_of_the_integral_over_the_distribution(name: str) -> None:
    true_N, predicted_N, uncertainty = planted(name)
    rows = RegressionRows(true_N, predicted_N, uncertainty=uncertainty)
    known = [SCIPY[name](mean, std / SCIPY[name].std()) for mean, std in zip(predicted_N, uncertainty.std, strict=True)]
    assert [one.std() for one in known] == pytest.approx(uncertainty.std)
    expected = [-one.logpdf(true) for one, true in zip(known, true_N, strict=True)]
    assert rows.errors.minus_log_density_N == pytest.approx(expected, rel=1e-12)
    z_N = (true_N - predicted_N) / uncertainty.std * SCIPY[name].std()
    below = [one.cdf(true) for one, true in zip(known, true_N, strict=True)]
    assert uncertainty.distribution.cdf(z_N) == pytest.approx(below, rel=1e-9)

    def crps(one: Any, true: float) -> float:
        below, _ = quad(lambda x: one.cdf(x) ** 2, true - 60 * one.std(), true, points=[one.mean()], limit=200)
        above, _ = quad(lambda x: one.sf(x) ** 2, true, true + 60 * one.std(), points=[one.mean()], limit=200)
        return below + above

    by_integral = [crps(one, true) for one, true in zip(known, true_N, strict=True)]
    assert rows.errors.crps_N == pytest.approx(by_integral, rel=1e-6)
    scores = {metric: rows.metrics[metric].function(rows) for metric in ("nll", "crps")}
    assert scores == pytest.approx({"nll": np.mean(expected), "crps": np.mean(by_integral)}, rel=1e-6)


@LOSSES
def test_intervals_are_of_the_same_rows_and_only_predictions_with_a_deviation_have_these_scores(name: str) -> None:
    true_N, predicted_N, uncertainty = planted(name)
    rows = RegressionRows(true_N, predicted_N, uncertainty=uncertainty)
    counts_RN = next(count_matrices(len(true_N)))[:50]
    for metric in ("nll", "crps"):
        found_R = rows.metrics[metric].function(rows.resampled(counts_RN))
        for value, count_N in zip(found_R, counts_RN, strict=True):
            index = np.repeat(np.arange(len(true_N)), count_N)
            one = RegressionRows(true_N[index], predicted_N[index], uncertainty=uncertainty[index])
            assert value == pytest.approx(one.metrics[metric].function(one), rel=1e-12)
    without = RegressionRows(true_N, predicted_N).metrics
    assert rows.metrics.keys() - without.keys() == {"nll", "crps"}


@LOSSES
def test_the_loss_is_the_score_of_normalised_labels(name: str) -> None:
    """Of each label: nll less the logarithm of the label's scale; the loss is their mean."""
    output_NX, target_NK = outputs()
    loss = task(name).loss(torch.from_numpy(output_NX), torch.from_numpy(target_NK))
    assert loss.dtype == torch.float32
    scores = task(name).scores(output_NX, target_NK)
    own = [scores[f"nll_{label}"] - math.log(scale) for label, scale in zip(NAMES, SCALE, strict=True)]
    assert [loss.item(), scores["loss"]] == pytest.approx([np.mean(own)] * 2, rel=1e-5)
    assert (scores["nll"], scores["crps"]) == (scores["nll_T_eff"], scores["crps_T_eff"])
    uncertainty = task(name).uncertainty(output_NX)
    assert uncertainty is not None
    scale_NK = np.exp(20 * np.tanh(output_NX[:, 2:].astype(np.float64) / 20))
    np.testing.assert_allclose(uncertainty.std, scale_NK * SCIPY[name].std() * np.array(SCALE), rtol=1e-12)
    true_NK, location_NK = task(name).decode(target_NK), task(name).decode(output_NX)
    np.testing.assert_allclose(location_NK, output_NX[:, :2] * np.array(SCALE) + np.array(OFFSET), rtol=1e-6)
    flat = flat_scores(label_rows(true_NK, location_NK, NAMES, SCALE, uncertainty))
    assert flat.items() >= {metric: value for metric, value in scores.items() if metric != "loss"}.items()


@LOSSES
@pytest.mark.parametrize("log_scale", [-6e4, -200.0, -89.0, 0.0, 89.0, 6e4])
def test_no_output_makes_a_loss_or_a_gradient_that_is_not_finite(name: str, log_scale: float) -> None:
    one = Regression(LossConfig(name=name), ("a",), (0.0,), (1.0,))
    output_BX = torch.tensor([[0.0, log_scale], [300.0, log_scale], [-1e-30, log_scale]], requires_grad=True)
    loss = one.loss(output_BX, torch.zeros(3, 1))
    loss.backward()
    assert output_BX.grad is not None
    assert loss.isfinite() and output_BX.grad.isfinite().all()
    assert (output_BX.grad[1, 1] != 0) == (abs(log_scale) < 150)  # it can come back from where exp would overflow
    uncertainty = one.uncertainty(output_BX.detach().numpy())
    assert uncertainty is not None
    assert np.isfinite(uncertainty.std).all() and (uncertainty.std > 0).all()


@LOSSES
def test_a_missing_label_adds_nothing_to_loss_or_gradient(name: str) -> None:
    """As if the loss had been summed by hand over the labels that are known, however a step is cut into pieces."""
    output_NX, target_NK = outputs(12)
    target_NK[:5, 1], target_NK[9, 0] = np.nan, np.nan
    known_NK = ~np.isnan(target_NK)
    target, one = torch.from_numpy(target_NK), task(name, partial=True)
    count, results = one.count(target), []
    assert count is not None
    for pieces in (1, 4):
        output = torch.from_numpy(output_NX).requires_grad_()
        parts = zip(output.chunk(pieces), target.chunk(pieces), strict=True)
        loss = torch.stack([one.loss(*part, count) for part in parts]).sum()
        results.append((loss.item(), *torch.autograd.grad(loss, output)))
    location_NK, log_NK = output_NX[:, :2], 20 * np.tanh(output_NX[:, 2:] / 20)
    by_hand = -SCIPY[name].logpdf(target_NK[known_NK], location_NK[known_NK], np.exp(log_NK[known_NK]))
    assert [loss for loss, _ in results] == pytest.approx([by_hand.mean()] * 2, rel=1e-5)
    assert torch.equal(results[0][1], results[1][1])
    assert ((results[0][1].numpy() != 0) == np.tile(known_NK, 2)).all()
    scores = one.scores(output_NX, target_NK)
    assert scores["loss"] == pytest.approx(by_hand.mean(), rel=1e-5)
    assert np.isfinite([scores["nll_T_eff"], scores["nll_log_g"]]).all()


class Uneven(Shuffled):
    """New rows in each step; the first pixel says how far their label scatters about the second one."""

    def __init__(self, name: str) -> None:
        """Rows are drawn when they are asked for."""
        super().__init__()
        self.name = name

    def batch(self, step: int) -> Batch:
        """Return the rows of one step."""
        rng = np.random.default_rng(step)
        flux_BP = rng.normal(size=(256, PIXELS))
        scatter_B = SCIPY[self.name].rvs(size=256, random_state=rng) * np.exp(planted_log_scale(flux_BP))
        target_B1 = (0.5 * flux_BP[:, 1] + scatter_B)[:, None]
        return Batch(*(torch.from_numpy(part).float() for part in (flux_BP, target_B1)))


def planted_log_scale(flux_NP: Any) -> Any:
    return 0.6 * flux_NP[:, 0] - 1.0


@LOSSES
def test_training_finds_the_scale_that_the_labels_scatter_by(name: str, tmp_path: Path) -> None:
    opt = OptConfig(lr=0.01, weight_decay=0.0, lr_sch="cosine")
    run = toy_run(tmp_path, opt=opt, view=Uneven(name), loss=name, epochs=200)
    for step in range(800):
        run.learner.step(run.view.batch(step), run.state)
        run.state.step += 1
    batch = run.view.batch(10**6)
    output_NX = run.learner.module(batch.flux_BP).detach().numpy()
    uncertainty = run.learner.task.uncertainty(output_NX)
    found_N = np.log(uncertainty.std[:, 0] / 1.3 / SCIPY[name].std())  # 1.3 is the scale of the toy's label
    error_N = found_N - planted_log_scale(batch.flux_BP.numpy())
    typical_N = (batch.flux_BP.abs() < 2).all(dim=1).numpy()
    assert typical_N.sum() > 150
    assert np.abs(error_N[typical_N]).max() < 0.5 and np.sqrt(np.mean(error_N[typical_N] ** 2)) < 0.1
    assert np.abs(output_NX[typical_N, 0] - 0.5 * batch.flux_BP[typical_N, 1].numpy()).mean() < 0.05
