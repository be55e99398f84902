"""The interpolated spectra: smooth, exact at the nodes, and moved by the redshift as light is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specvit.physics.forward import LABEL_COLUMNS, ForwardModel, SplineWeights, check_labels
from specvit.physics.grid import QuantizedMatrix, carbon, packaged_grid
from specvit.physics.instrument import MAX_REDSHIFT, STEP, padded_wavelength, wavelength
from specvit.physics.population import STAR_COLUMNS, draw_stars
from specvit.physics.simulator import Simulator
from specvit.utils.errors import DataError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SIGMA = 1.6
"""Pixels: the narrowest line there can be, the profile of the instrument."""


def labels_of(rows: int, max_redshift: float = MAX_REDSHIFT) -> torch.Tensor:
    stars_NS = draw_stars(0, "test", np.arange(rows), max_redshift=max_redshift)
    return torch.from_numpy(stars_NS[:, : len(LABEL_COLUMNS)])


def span(model: ForwardModel) -> torch.Tensor:
    return torch.tensor([high - low for low, high in (model.bounds[name] for name in LABEL_COLUMNS)]).double()


@pytest.mark.parametrize("kind", ["not-a-knot", "natural"])
def test_weights_belong_to_their_node_and_sum_to_one(kind: str) -> None:
    nodes = (-1.0, 0.0, 0.5, 2.0, 4.0)
    weights = SplineWeights(nodes, kind).double()
    torch.testing.assert_close(weights(torch.tensor(nodes).double()), torch.eye(5).double(), rtol=0, atol=1e-6)
    place_B = torch.linspace(-1, 4, 77).double()
    torch.testing.assert_close(weights(place_B).sum(1), torch.ones(77).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("nodes", "degree"), [((0.0, 3.0), 1), ((0.0, 1.0, 3.0), 2), ((0.0, 1.0, 1.5, 3.0), 3)])
def test_weights_reproduce_polynomials(nodes: tuple[float, ...], degree: int) -> None:
    """A line through two nodes, a parabola through three, a cubic through more."""
    values_N = torch.tensor(nodes).double() ** degree - torch.tensor(nodes).double()
    place_B = torch.linspace(0, 3, 31).double()
    found_B = SplineWeights(nodes, "not-a-knot").double()(place_B) @ values_N
    torch.testing.assert_close(found_B, place_B**degree - place_B, rtol=1e-5, atol=1e-5)


def test_nodes_have_their_own_spectra() -> None:
    grid = packaged_grid()
    shape = tuple(len(nodes) for nodes in grid.axes.values())
    numbers = np.random.default_rng(1).integers(0, np.prod(shape), 200)
    places = [np.array(nodes)[i] for nodes, i in zip(grid.axes.values(), np.unravel_index(numbers, shape), strict=True)]
    places[-1] = carbon(places[-1], places[-2])
    inside = (places[-1] >= -0.75) & (places[-1] <= 0.5)
    assert inside.sum() > 5
    labels_BL = torch.tensor(np.stack([*places, np.zeros(200)], axis=1))[inside]
    numbers = numbers[inside]
    log_BQ = grid.coefficient_NK.dequantized()[numbers] @ grid.basis_KQ.dequantized() + grid.mean_Q
    found_BP = ForwardModel(redshifted=False).double()(labels_BL)
    np.testing.assert_allclose(found_BP, np.exp(log_BQ[:, 24:-24]), rtol=1e-5)


def test_gradients_are_exact_for_every_label() -> None:
    model = ForwardModel().double()
    low_L = torch.tensor([model.bounds[name][0] for name in LABEL_COLUMNS]).double()

    def pixels(place_BL: torch.Tensor) -> torch.Tensor:
        return model(low_L + span(model) * place_BL)[:, ::307]

    place_BL = torch.rand(4, len(LABEL_COLUMNS), generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(pixels, (place_BL.requires_grad_(),), atol=1e-6)


@pytest.mark.parametrize("column", range(len(LABEL_COLUMNS)), ids=LABEL_COLUMNS)
def test_single_precision_gradients_match_differences(column: int) -> None:
    """Derivatives of all pixels in float32 against differences in float64, as a Fisher matrix needs them."""
    model, labels_BL = ForwardModel(), labels_of(3)
    step_L = torch.zeros(len(LABEL_COLUMNS)).double()
    step_L[column] = 1e-5 * span(model)[column]
    _, found_BP = torch.func.jvp(model, (labels_BL.float(),), (step_L.float().expand_as(labels_BL),))
    precise = ForwardModel().double()
    differences_BP = (precise(labels_BL + step_L) - precise(labels_BL - step_L)) / 2
    assert (found_BP - differences_BP).abs().max() < 2e-3 * differences_BP.abs().max()


@pytest.mark.parametrize("redshifted", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_row_does_not_depend_on_its_batch(redshifted: bool, device: str) -> None:
    simulator = Simulator(redshifted).to(device)
    stars_BS = torch.from_numpy(draw_stars(0, "val", np.arange(96), max_redshift=MAX_REDSHIFT)).to(device)
    together = simulator(stars_BS)
    for rows in (slice(0, 1), slice(5, 12), slice(32, 96)):
        for part, whole in zip(simulator(stars_BS[rows]), together, strict=True):
            torch.testing.assert_close(part, whole[rows], rtol=4e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_single_precision_is_enough(device: str) -> None:
    stars_BS = torch.from_numpy(draw_stars(0, "val", np.arange(64), max_redshift=MAX_REDSHIFT))
    for single, double in zip(Simulator().to(device)(stars_BS.to(device)), Simulator().double()(stars_BS), strict=True):
        assert single.dtype == torch.float32 and single.device.type == device
        torch.testing.assert_close(single.cpu().double(), double, rtol=2e-5, atol=0)


@pytest.mark.parametrize("redshift", [0.0, 1e-5, 0.00037, -0.00062, 0.001, -0.001])
def test_lines_move_as_light_does(redshift: float) -> None:
    """Spectra of narrow lines everywhere, also at both ends, against the same lines put elsewhere."""
    at_L = np.linspace(7092, 8858, 53)

    def flux(wave: np.ndarray) -> np.ndarray:
        offset = (wave[:, None] - at_L) / STEP
        depth = (0.5 * np.exp(-0.5 * (offset / SIGMA) ** 2)).sum(axis=1)
        return np.exp(-depth)

    log_Q = np.log(flux(padded_wavelength())).astype(np.float32)
    packaged = packaged_grid()
    nothing = QuantizedMatrix(np.zeros_like(packaged.basis_KQ.integers), packaged.basis_KQ.scale)
    model = ForwardModel(grid=replace(packaged, mean_Q=log_Q, basis_KQ=nothing)).double()
    found_BP = model(torch.tensor([[5000.0, 3.0, 0.0, 0.0, 0.0, redshift]]).double())
    expected_P = flux(wavelength() / (1 + redshift))
    assert np.abs(found_BP[0].numpy() / expected_P - 1).max() < 1e-3
    if redshift:
        wrong_P = flux(wavelength() / (1 - redshift))
        assert np.abs(wrong_P / expected_P - 1).max() > 5e-3


def test_a_model_without_redshifts_is_the_one_at_redshift_zero() -> None:
    labels_BL = labels_of(16, max_redshift=0.0)
    still, moving = ForwardModel(redshifted=False), ForwardModel()
    torch.testing.assert_close(still(labels_BL), moving(labels_BL), rtol=3e-6, atol=0)
    torch.testing.assert_close(still(labels_BL), still(labels_BL[:, :-1]))
    labels_BL[:, -1] = 0.001
    assert (moving(labels_BL) / still(labels_BL) - 1).abs().max() > 0.05


@pytest.mark.parametrize("column", range(len(LABEL_COLUMNS)), ids=LABEL_COLUMNS)
@pytest.mark.parametrize("end", [0, 1])
def test_nothing_is_extrapolated(column: int, end: int) -> None:
    """Exactly at the end of the grid there are numbers; beyond it NaN in that row only, and a sentence on the host."""
    model, labels_BL, name = ForwardModel(), labels_of(3), LABEL_COLUMNS[column]
    labels_BL[1, column] = model.bounds[name][end]
    assert model(labels_BL).isfinite().all()
    check_labels(model, labels_BL)
    labels_BL[1, column] += (0.01 if end else -0.01) * span(model)[column]
    assert model(labels_BL).isnan().all(dim=1).tolist() == [False, True, False]
    with pytest.raises(DataError, match=rf"row 1: {name} is "):
        check_labels(model, labels_BL)


def test_no_label_at_all_is_refused_by_name() -> None:
    labels_BL = labels_of(3)
    labels_BL[2, 1] = torch.nan
    with pytest.raises(DataError, match="row 2: log_g is nan"):
        check_labels(ForwardModel(), labels_BL)


def test_the_simulator_reads_its_columns_by_name() -> None:
    stars_BS = torch.from_numpy(draw_stars(0, "val", np.arange(4)))
    simulator = Simulator(False)
    flux_BP, error_BP = simulator(stars_BS)
    torch.testing.assert_close(flux_BP, simulator.model(stars_BS[:, : len(LABEL_COLUMNS)]))
    mag_B, throughput_B = (stars_BS[:, STAR_COLUMNS.index(name)].float() for name in ("mag", "throughput"))
    torch.testing.assert_close(error_BP, simulator.noise(flux_BP, mag_B, throughput_B))


def test_stars_look_like_the_reference_set() -> None:
    """Bounds of the flux, and the S/N quantiles of the reference test set."""
    with torch.inference_mode():
        flux_BP, error_BP = Simulator(False)(torch.from_numpy(draw_stars(0, "train", np.arange(2000))))
    assert flux_BP.min() > 0.01 and flux_BP.max() < 1.5
    assert (flux_BP.median(dim=1).values - 0.5).abs().max() < 0.02
    assert error_BP.isfinite().all() and error_BP.min() > 0
    snr_B = (flux_BP / error_BP).median(dim=1).values.numpy()
    quantiles = np.quantile(snr_B, (0.05, 0.25, 0.5, 0.75, 0.95))
    np.testing.assert_allclose(quantiles, (3.7, 5.3, 8.2, 12.5, 17.2), rtol=0.1)
    assert snr_B.min() > 1.8 and snr_B.max() < 32
