"""The packaged grid: its file, its axes, and the errors recorded beside it."""

import json
import time
from pathlib import Path

import numpy as np

import specvit.physics
from specvit.physics.grid import Grid, QuantizedMatrix, carbon, carbon_to_oxygen, packaged_grid
from specvit.physics.population import RANGES

FOLDER = Path(specvit.physics.__file__).parent


def test_the_packaged_grid_is_good_enough() -> None:
    """A small part of the noise of the brightest stars, 6 % per pixel, even where interpolation is hardest."""
    facts = json.loads((FOLDER / "grid.json").read_text())
    grid = packaged_grid()
    assert facts["fingerprint"] == grid.fingerprint
    assert facts["axes"] == {name: list(nodes) for name, nodes in grid.axes.items()}
    assert facts["error of the compression"]["rms"] < 0.001
    assert facts["error between the nodes"]["median"] < 0.002
    assert facts["error between the nodes"]["95 %"] < 0.005
    assert facts["error between the nodes"]["max"] < 0.03
    assert facts["error in cool stars with as much carbon as oxygen"]["95 %"] < 0.02
    assert (FOLDER / "grid.npz").stat().st_size < 5e6


def test_axes_span_the_ranges_of_the_labels() -> None:
    axes = packaged_grid().axes
    for name, nodes in axes.items():
        assert list(nodes) == sorted(set(nodes))
        assert name == "C_O" or (nodes[0], nodes[-1]) == RANGES[name]
    (low_c, high_c), (low_a, high_a) = RANGES["C_M"], RANGES["a_M"]
    assert axes["C_O"][0] <= carbon_to_oxygen(low_c, high_a) and axes["C_O"][-1] >= carbon_to_oxygen(high_c, low_a)


def test_the_carbon_coordinate_can_be_inverted() -> None:
    c_M, a_M = np.meshgrid(np.linspace(-0.75, 0.5, 7), np.linspace(-0.25, 0.5, 5))
    np.testing.assert_allclose(carbon(carbon_to_oxygen(c_M, a_M), a_M), c_M, atol=1e-12)


def test_quantization_rounds_to_half_a_unit_of_each_scale() -> None:
    matrix = np.random.default_rng(0).normal(size=(30, 7)) * 10.0 ** np.arange(7)
    columns, rows = QuantizedMatrix.of(matrix, axis=1), QuantizedMatrix.of(matrix.T, axis=0)
    for rounded in (columns.dequantized(), rows.dequantized().T):
        assert (np.abs(rounded - matrix).max(axis=0) <= 0.51 * np.abs(matrix).max(axis=0) / 32767).all()
    assert QuantizedMatrix.of(np.zeros((2, 2)), axis=1).dequantized().tolist() == [[0, 0], [0, 0]]


def test_a_grid_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    axes, kinds = {"a": (0.0, 1.0, 2.0), "b": (0.0, 0.5)}, {"a": "natural", "b": "not-a-knot"}
    basis_KQ = QuantizedMatrix.of(rng.normal(size=(4, 20)), axis=0)
    coefficient_NK = QuantizedMatrix.of(rng.normal(size=(6, 4)), axis=1)
    grid = Grid(axes, kinds, "abc", rng.normal(size=20).astype(np.float32), basis_KQ, coefficient_NK)
    for name in ("one.npz", "two.npz"):
        with open(tmp_path / name, "wb") as stream:
            grid.save(stream)
        time.sleep(0.01)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = Grid.load(tmp_path / "one.npz")
    assert (again.axes, again.kinds, again.fingerprint) == (axes, kinds, "abc")
    for ours, theirs in ((again.basis_KQ, basis_KQ), (again.coefficient_NK, coefficient_NK)):
        np.testing.assert_array_equal(ours.integers, theirs.integers)
        np.testing.assert_array_equal(ours.scale, theirs.scale)
    np.testing.assert_array_equal(again.mean_Q, grid.mean_Q)
