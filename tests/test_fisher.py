"""Bounds on what spectra tell: Fisher matrices, Cramér-Rao and van Trees, against estimators that are known exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specvit.analysis.bounds.inputs import Stars, synthetic_stars
from specvit.analysis.bounds.van_trees import Window, faded, field, gradients, whole_window
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.estimators.ridge import solve, sum_up
from specvit.physics.fisher import Information, Observe, cramer_rao, information
from specvit.physics.population import RANGES, STAR_COLUMNS, draw_stars
from specvit.physics.simulator import Simulator
from specvit.utils.quantities import Batch

LOG_G = 1
LOW, HIGH = RANGES["log_g"]


def stars(rows: int, *overrides: str) -> Stars:
    return synthetic_stars(build_config(compose(["data=builtin", *overrides])), rows)


def log_g_bound(found: Stars) -> np.ndarray:
    return cramer_rao(information(found.observe, found.place_NL).free_amplitude(), LOG_G)


@pytest.mark.parametrize("overrides", [[], ["data.max_redshift=0.001"], ["noise=homoscedastic"]], ids=str)
def test_autograd_agrees_with_differences(overrides: list[str]) -> None:
    """Of flux and of the noise's size, in float64, coordinate by coordinate."""
    few = stars(4, *overrides)
    labels, step, rows = few.place_NL.shape[1], 1e-6, np.arange(4)
    slopes, growths = [], []
    flux_NP, sigma = few.observe(few.place_NL, rows)
    for axis in range(labels):
        moved = torch.zeros(labels).double()
        moved[axis] = step
        (above, wide), (below, narrow) = (few.observe(few.place_NL + way * moved, rows) for way in (1, -1))
        slopes.append((above - below) / (2 * step) / sigma)
        growths.append(((wide.log() - narrow.log()) / (2 * step)).expand_as(flux_NP))
    slope_NLP, growth_NLP = torch.stack(slopes, 1).numpy(), torch.stack(growths, 1).numpy()
    found = information(few.observe, few.place_NL)
    scaled_NP = (flux_NP / sigma).numpy()
    for ours, theirs in (
        (found.flux_NLL, np.einsum("nip,njp->nij", slope_NLP, slope_NLP)),
        (found.noise_NLL, 2 * np.einsum("nip,njp->nij", growth_NLP, growth_NLP)),
        (found.cross_NL, np.einsum("nip,np->ni", slope_NLP, scaled_NP)),
        (found.amplitude_N, np.square(scaled_NP).sum(1)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


def test_chunks_change_nothing() -> None:
    few = stars(7)
    whole, parts = (information(few.observe, few.place_NL, chunk=chunk) for chunk in (64, 3))
    np.testing.assert_allclose(whole.free_amplitude(), parts.free_amplitude(), rtol=1e-9)


def test_twice_the_noise_is_twice_the_error() -> None:
    single, double = (np.sqrt(log_g_bound(stars(16, f"noise.noise_level={level}"))) for level in (1.0, 2.0))
    np.testing.assert_allclose(double / single, 2.0, rtol=1e-6)


def test_more_unknowns_never_help_and_fainter_stars_are_harder() -> None:
    few = stars(16)
    found = information(few.observe, few.place_NL)
    alone_N = 1 / found.flux_NLL[:, LOG_G, LOG_G]
    labels_N, amplitude_N = (cramer_rao(matrix, LOG_G) for matrix in (found.flux_NLL, found.free_amplitude()))
    assert (alone_N < labels_N).all() and (labels_N <= amplitude_N * (1 + 1e-9)).all()
    bright_N, faint_N = (log_g_bound(few.at_magnitude(mag)) for mag in (20.0, 22.5))
    assert (3 * bright_N < faint_N).all()


def test_information_at_the_walls_of_the_box_is_that_just_inside() -> None:
    """Nodes of the published distribution are on the walls, where a clamp or the end of a spline may have no slope."""
    at_nodes = stars(48, "data.label_prior=published")
    assert ((at_nodes.place_NL < 1e-6) | (at_nodes.place_NL > 1 - 1e-6)).sum(0).min() > 0
    inside_NL = at_nodes.place_NL.clamp(1e-5, 1 - 1e-5)
    here_NL, near_NL = (
        np.diagonal(information(at_nodes.observe, place_NL).flux_NLL, axis1=1, axis2=2)
        for place_NL in (at_nodes.place_NL, inside_NL)
    )
    np.testing.assert_allclose(here_NL, near_NL, rtol=0.02)


def linear(design_PL: Tensor, sigma_P: Tensor) -> Observe:
    """Return spectra that are linear in their coordinates."""
    return lambda place_BL, _: (1 + place_BL @ design_PL.T, sigma_P.expand(len(place_BL), -1))


def test_least_squares_attains_the_bound_of_a_linear_model() -> None:
    """The spread of 20,000 least-squares fits is the bound, and their matrix with a factor is the one written out."""
    generator = torch.Generator().manual_seed(0)
    design_PL = torch.randn(40, 3, generator=generator).double()
    sigma_P = 0.1 + torch.rand(40, generator=generator).double()
    true_L = torch.tensor([0.3, 0.6, 0.5]).double()
    observe = linear(design_PL, sigma_P)
    found = information(observe, true_L[None])
    flux_1P, _ = observe(true_L[None], np.zeros(1, np.int64))
    noisy_MP = flux_1P + sigma_P * torch.randn(20_000, 40, generator=generator).double()
    weighted_PL = design_PL / sigma_P[:, None]
    fitted_ML = torch.linalg.lstsq(weighted_PL, ((noisy_MP - 1) / sigma_P).T).solution.T
    for column in range(3):
        (bound,) = cramer_rao(found.flux_NLL, column)
        assert fitted_ML[:, column].mean() == pytest.approx(float(true_L[column]), abs=4 * (bound / 20_000) ** 0.5)
        assert fitted_ML[:, column].var() == pytest.approx(bound, rel=0.05)  # a standard error of 1 %
    with_factor_PM = torch.cat([design_PL, flux_1P.T], 1) / sigma_P[:, None]
    wanted_MM = torch.linalg.inv(with_factor_PM.T @ with_factor_PM).numpy()
    for column in range(3):
        assert cramer_rao(found.free_amplitude(), column)[0] == pytest.approx(wanted_MM[column, column], rel=1e-9)
    assert not found.noise_NLL.any()


def test_ridge_attains_the_bound_of_a_linear_model() -> None:
    """As `model=ridge` learns it, from noisy rows and labels alone; labels are spread far wider than the bound."""
    generator = torch.Generator().manual_seed(0)
    design_PL = torch.randn(40, 3, generator=generator).double()
    sigma_P = 0.01 + 0.1 * torch.rand(40, generator=generator).double()
    observe = linear(design_PL, sigma_P)

    def rows(count: int) -> Batch:
        place_NL = torch.rand(count, 3, generator=generator).double()
        flux_NP, _ = observe(place_NL, np.zeros(count, np.int64))
        return Batch(flux_NP + sigma_P * torch.randn(count, 40, generator=generator).double(), place_NL)

    weight_APK, bias_AK = solve(sum_up([rows(20_000) for _ in range(3)], lambda _: None), np.array([1e-3]))
    test = rows(20_000)
    error_NK = (test.flux_BP.numpy() @ weight_APK[0] + bias_AK[0]) - test.target.numpy()
    found = information(observe, torch.full((1, 3), 0.5).double())
    for column in range(3):
        (bound,) = cramer_rao(found.flux_NLL, column)
        assert bound < 0.002 * (1 / 12)
        assert np.mean(error_NK[:, column] ** 2) == pytest.approx(bound, rel=0.04)  # a standard error of 1 %


def test_what_a_singular_matrix_does() -> None:
    """A coordinate that two others share has no bound; one beside them keeps its own; never NaN, never a warning."""
    shared = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 4.0]]
    blind = [[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 4.0]]
    nearly = [[1.0, 1.0 - 1e-9, 0.0], [1.0 - 1e-9, 1.0, 0.0], [0.0, 0.0, 4e-30]]
    broken = [[np.nan] * 3] * 3
    matrix = np.array([shared, blind, nearly, broken, np.zeros((3, 3)), np.eye(3) * [1e20, 1.0, 1e-20]])
    with np.errstate(all="raise"):
        first, last = cramer_rao(matrix, 0), cramer_rao(matrix, 2)
    inf = np.inf
    np.testing.assert_allclose(first, [inf, inf, 5e8, inf, inf, 1e-20], rtol=1e-6)
    np.testing.assert_allclose(last, [0.25, 0.25, 2.5e29, inf, inf, 1e20], rtol=1e-6)


def bound_of(observe: Observe, place_NL: Tensor, window: Window | None = None) -> tuple[float, float]:
    """Return the van Trees bound for the first coordinate."""
    here = information(observe, place_NL)
    axes = range(place_NL.shape[1])
    found = field(here, gradients(observe, place_NL, here, axes), place_NL.numpy(), 0, axes)
    return found.bound(window or whole_window(np.ones(len(place_NL), dtype=bool), place_NL.shape[1]))


def midpoints(count: int) -> Tensor:
    return ((torch.arange(count) + 0.5) / count).double()


def bayes_error(sigma: float) -> float:
    """Return the mean squared error of the posterior mean of u, uniform in 0..1, seen with Gaussian noise; exactly."""
    u_M = np.linspace(0, 1, 1201)
    x_K = np.linspace(-6 * sigma, 1 + 6 * sigma, 4001)
    like_KM = np.exp(-0.5 * ((x_K[:, None] - u_M) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    weight_M = np.full(len(u_M), 1 / 1200.0)
    weight_M[[0, -1]] /= 2
    evidence_K = like_KM @ weight_M
    mean_K = (like_KM * u_M) @ weight_M / evidence_K
    return 1 / 3 - float((mean_K**2 * evidence_K).sum() * (x_K[1] - x_K[0]))


@pytest.mark.slow
def test_van_trees_lies_just_below_the_best_possible_error() -> None:
    """Also where the prior is all there is, and where it says nothing."""
    ratios = {}
    for sigma in (0.01, 0.03, 0.1, 0.3, 1.0, 10.0):
        bound, _ = bound_of(linear(torch.ones(1, 1).double(), torch.tensor([sigma]).double()), midpoints(6000)[:, None])
        ratios[sigma] = bound / bayes_error(sigma)
    assert not {sigma: ratio for sigma, ratio in ratios.items() if not 0.8 < ratio <= 1 + 1e-4}


def test_noise_that_depends_on_the_label_tells_of_it() -> None:
    """Flux says nothing here, the size of its noise a lot: a bound that forgot it would be above what is reached."""
    pixels, rng = 30, np.random.default_rng(0)

    def observe(place_BL: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        return torch.ones(len(place_BL), pixels).double() + 0 * place_BL, (2 * place_BL).exp().expand(-1, pixels)

    place_NL = midpoints(4000)[:, None]
    bound, _ = bound_of(observe, place_NL)
    u_N, u_M = rng.random(4000), np.linspace(0, 1, 400)
    power_N = np.exp(4 * u_N) * rng.chisquare(pixels, 4000)
    log_NM = -0.5 * power_N[:, None] * np.exp(-4 * u_M) - pixels * 2 * u_M
    weight_NM = np.exp(log_NM - log_NM.max(1, keepdims=True))
    reached = np.square(weight_NM @ u_M / weight_NM.sum(1) - u_N).mean()
    here = information(observe, place_NL)
    deaf = Information(here.flux_NLL, np.zeros_like(here.noise_NLL), here.cross_NL, here.amplitude_N)
    forgetful, _ = field(deaf, np.zeros((1, 4000, 1, 1)), place_NL.numpy(), 0, [0]).bound(
        whole_window(np.ones(4000, bool), 1)
    )
    assert bound < reached < forgetful == pytest.approx(1 / 12, rel=1e-3)


def test_a_range_that_the_label_itself_decides_has_its_own_bound() -> None:
    """Stars with .2 <= u < .6 and no information are known to .4^2 / 12; a field that ignores the ends says more."""
    place_NL = midpoints(8000)[:, None]
    observe = linear(torch.zeros(1, 1).double(), torch.ones(1).double())
    u_N = place_NL[:, 0].numpy()
    window = faded(u_N, np.ones((len(u_N), 1)), 0.2, 0.6)
    bound, _ = bound_of(observe, place_NL, window)
    careless, _ = bound_of(observe, place_NL, whole_window(window.inside_N, 1))
    assert 0 < bound <= 0.16 / 12 < careless
    sharp = linear(torch.ones(1, 1).double(), torch.tensor([0.01]).double())
    bound, _ = bound_of(sharp, place_NL, window)
    assert 0.6e-4 < bound < 1e-4


def test_windows_hold_their_ends() -> None:
    value_N = np.array([3.9, 4.0, 4.02, 4.04, 5.0, 5.97, 5.999, 6.0])
    window = faded(value_N, np.full((8, 2), 2.0), 4.0, 6.0)
    np.testing.assert_array_equal(window.inside_N, [False, True, True, True, True, True, True, False])
    np.testing.assert_allclose(window.weight_N[1:7], [0.0, 0.5, 1.0, 1.0, 0.5, 1 / 60], atol=1e-9)
    np.testing.assert_allclose(window.slope_NL[[2, 4, 5], 0], [50.0, 0.0, -100 / 3], atol=1e-9)
    open_ended = faded(value_N, np.ones((8, 1)), 0.0, np.inf)
    assert open_ended.inside_N.all() and (open_ended.weight_N == 1).all() and not open_ended.slope_NL.any()


@pytest.mark.parametrize("axes", [pytest.param([0, 1, 2, 3, 4], marks=pytest.mark.slow), [1, 2]], ids=str)
def test_the_divergence_is_that_of_the_field(axes: list[int]) -> None:
    """By differences of the field itself, on built-in spectra, near a wall as inside."""
    few = stars(3)
    place_NL = few.place_NL.clone()
    place_NL[0, LOG_G] = 0.002

    def field_at(place_NL: Tensor) -> Any:
        here = information(few.observe, place_NL)
        return field(here, gradients(few.observe, place_NL, here, axes), place_NL.numpy(), LOG_G, axes)

    found, step = field_at(place_NL), 2e-6
    expected_N = np.zeros(3)
    for axis in axes:
        moved = torch.zeros(place_NL.shape[1]).double()
        moved[axis] = step
        above, below = (field_at(place_NL + way * moved).h_NL[:, axis] for way in (1, -1))
        expected_N += (above - below) / (2 * step)
    np.testing.assert_allclose(found.divergence_N, expected_N, rtol=2e-3, atol=1e-4 * np.abs(expected_N).max())


def template_mean(mag: float, tested: int, templates: int) -> tuple[np.ndarray, np.ndarray]:
    """Return true log g of built-in stars at one magnitude and its posterior mean over random clean spectra."""
    simulator, generator = Simulator(redshifted=False), torch.Generator().manual_seed(0)
    stars_TS, stars_MS = (draw_stars(0, split, np.arange(n)) for split, n in (("test", tested), ("train", templates)))
    for drawn in (stars_TS, stars_MS):
        drawn[:, STAR_COLUMNS.index("mag")], drawn[:, STAR_COLUMNS.index("throughput")] = mag, 1.0
    with torch.inference_mode():
        flux_TP, error_TP = simulator(torch.from_numpy(stars_TS))
        middle_P = flux_TP.mean(0)
        seen_TP = flux_TP + error_TP * torch.randn(flux_TP.shape, generator=generator) - middle_P
        parts = []
        for stars_BS in torch.from_numpy(stars_MS).split(1000):
            flux_BP, error_BP = simulator(stars_BS)
            weight_BP, apart_BP = error_BP**-2, flux_BP - middle_P
            chi2_TB = seen_TP.square() @ weight_BP.T - 2 * seen_TP @ (apart_BP * weight_BP).T
            chi2_TB += (apart_BP.square() * weight_BP).sum(1) - weight_BP.log().sum(1)
            parts.append(-0.5 * chi2_TB.double())
    share_TM = torch.softmax(torch.cat(parts, 1), 1).numpy()
    return stars_TS[:, LOG_G], share_TM @ stars_MS[:, LOG_G]


@pytest.mark.slow
def test_the_posterior_mean_of_built_in_spectra_stays_below_the_ceiling() -> None:
    """Bayes' own estimator, nearly: never better than the van Trees bound by more than chance, and not far from it."""
    rows, mag = 256, 22.5
    true_N, estimate_N = template_mean(mag, rows, 8000)
    square_N = np.square(estimate_N - true_N)
    placed = stars(rows)
    placed.drawn[:, STAR_COLUMNS.index("throughput")] = 1.0
    placed = placed.at_magnitude(mag)
    here = information(placed.observe, placed.place_NL)
    axes = range(4)
    found = field(here, gradients(placed.observe, placed.place_NL, here, axes), placed.place_NL.numpy(), LOG_G, axes)
    bound, error = (x * (HIGH - LOW) ** 2 for x in found.bound(whole_window(np.ones(rows, dtype=bool), 5)))
    chance = np.hypot(error, square_N.std() / rows**0.5)
    assert square_N.mean() > bound - 2 * chance
    assert bound > 0.6 * square_N.mean()
    assert square_N.mean() < 0.7 * true_N.var()  # the estimator reads something
