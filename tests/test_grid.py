"""The packaged grid is what the synthesis gives, and making it survives being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specvit.physics import grid as making
from specvit.physics.accuracy import at_nodes, between_nodes, left_out
from specvit.physics.compress import compress
from specvit.physics.coordinates import carbon, carbon_place
from specvit.physics.elements import elements
from specvit.physics.grid import AXES, NAMES, crossing_places, fingerprint, labels_of, node_places, random_places
from specvit.physics.package import Grid, Rows16, packaged_grid
from specvit.physics.population import RANGES
from specvit.physics.synthesis import padded_flux

TINY = {"T_eff": [4800, 5600], "log_g": [2, 4], "M_H": [-1, 0], "a_M": [0, 0.2], "C_O": [-5, -4]}
CUBE = {"a": [0.0, 1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0]}
NOT_A_KNOT = dict.fromkeys(CUBE, "not-a-knot")


def smooth_flux(labels_NL: np.ndarray, pixels: int = 300) -> np.ndarray:
    """Return flux that is a parabola in its logarithm along `a`, and a line along `b`."""
    a_N1, b_N1 = labels_NL[:, :1], labels_NL[:, 1:]
    pixel_Q = np.linspace(0, 1, pixels)
    return np.exp(a_N1 * pixel_Q - 0.1 * a_N1**2 * pixel_Q**2 + b_N1 * np.sin(9 * pixel_Q)).astype(np.float32)


def test_packaged_spectra_are_those_of_the_synthesis() -> None:
    """Whoever changes the physics has to make the grid again."""
    grid = packaged_grid()
    facts = json.loads(Path(making.__file__).with_name("grid.json").read_text())
    assert facts["fingerprint"] == grid.fingerprint == fingerprint(AXES)
    assert facts["axes"] == {name: list(nodes) for name, nodes in grid.axes.items()}
    labels_NL = labels_of(node_places(grid.axes))
    with_tio = np.flatnonzero((labels_NL[:, 0] < 4000) & (labels_NL[:, 4] < labels_NL[:, 3]))
    rng = np.random.default_rng(7)
    for number in (*rng.choice(len(labels_NL), 4, replace=False), *rng.choice(with_tio, 2, replace=False)):
        flux_Q = padded_flux(dict(zip(NAMES, labels_NL[number].tolist(), strict=True)))
        log_Q = grid.coefficient_NK.matrix()[number] @ grid.basis_KQ.matrix() + grid.mean_Q
        error_Q = np.exp(log_Q) / flux_Q - 1
        assert np.sqrt(np.mean(error_Q**2)) < 10 * facts["error of the compression"]["rms"]
        assert np.abs(error_Q).max() < 1.1 * facts["error of the compression"]["max"]


def test_the_packaged_grid_is_good_enough() -> None:
    """A small part of the noise of the brightest stars, 6 % a pixel, and in the hardest corner, too."""
    facts = json.loads(Path(making.__file__).with_name("grid.json").read_text())
    assert facts["error of the compression"]["rms"] < 0.001
    assert facts["error between the nodes"]["median"] < 0.002
    assert facts["error between the nodes"]["95 %"] < 0.005
    assert facts["error between the nodes"]["max"] < 0.03
    assert facts["error in cool stars with as much carbon as oxygen"]["95 %"] < 0.02
    assert Path(making.__file__).with_name("grid.npz").stat().st_size < 5e6


def test_axes_span_the_ranges_of_the_labels() -> None:
    axes = packaged_grid().axes
    for name, nodes in axes.items():
        assert list(nodes) == sorted(set(nodes))
        assert name == "C_O" or (nodes[0], nodes[-1]) == RANGES[name]
    (low_c, high_c), (low_a, high_a) = RANGES["C_M"], RANGES["a_M"]
    assert axes["C_O"][0] <= carbon_place(low_c, high_a) and axes["C_O"][-1] >= carbon_place(high_c, low_a)


def test_the_carbon_axis_is_the_label_in_other_words() -> None:
    c_M, a_M = np.meshgrid(np.linspace(-0.75, 0.5, 7), np.linspace(-0.25, 0.5, 5))
    np.testing.assert_allclose(carbon(carbon_place(c_M, a_M), a_M), c_M, atol=1e-12)
    table = elements()
    log_eps = dict(zip(table.names, table.log_eps_E, strict=True))
    assert carbon_place(log_eps["O"] - log_eps["C"], 0.0) == pytest.approx(0, abs=1e-9)


def test_checks_lie_inside_the_labels() -> None:
    for place_ML in (random_places(AXES, 300), crossing_places(AXES, 300)):
        for name, column in zip(NAMES, labels_of(place_ML).T, strict=True):
            low, high = RANGES[name]
            assert (column >= low - 1e-9).all() and (column <= high + 1e-9).all(), name
    assert np.ptp(labels_of(random_places(AXES, 300))[:, 4]) > 1.2


@pytest.mark.parametrize("nodes", [5, 40])
def test_compression_keeps_what_its_components_can_hold(nodes: int) -> None:
    """Three components hold three shapes, with fewer nodes than pixels and with more."""
    axes = {"a": np.linspace(0, 4, nodes).tolist(), "b": [0.0, 1.0]}
    flux_NQ = smooth_flux(node_places(axes), pixels=20)
    two, three = (compress(axes, flux_NQ, k, kinds=NOT_A_KNOT, fingerprint="") for k in (2, 3))
    assert at_nodes(three, flux_NQ)["max"] < 2e-4
    assert at_nodes(two, flux_NQ)["max"] > 1e-2
    assert at_nodes(two, flux_NQ)["rms"] < at_nodes(two, flux_NQ)["99.9 %"] <= at_nodes(two, flux_NQ)["max"]


def test_errors_are_measured_where_interpolation_fails() -> None:
    labels_NL = node_places(CUBE)
    flux_NQ = smooth_flux(labels_NL)
    grid = compress(CUBE, flux_NQ, 5, kinds=NOT_A_KNOT, fingerprint="")
    checks_ML = np.array([[0.5, 0.5], [3.3, 0.1]])
    assert between_nodes(grid, checks_ML, smooth_flux(checks_ML))["max"] < 3e-4
    assert between_nodes(grid, checks_ML, 1.02 * smooth_flux(checks_ML))["median"] == pytest.approx(0.02, rel=0.05)
    found = left_out(grid, flux_NQ)
    assert list(found) == ["a"] and found["a"]["max"] < 3e-4  # a parabola through the four that are left
    bent_NQ = flux_NQ * np.where(labels_NL[:, :1] == 2, 1.1, 1).astype(np.float32)
    bent = compress(CUBE, bent_NQ, 5, kinds=NOT_A_KNOT, fingerprint="")
    assert left_out(bent, bent_NQ)["a"]["max"] > 0.08
    assert left_out(grid, flux_NQ, "natural")["a"]["max"] > 1e-3  # which has no curvature at the ends


def test_sixteen_bits_a_number() -> None:
    matrix = np.random.default_rng(0).normal(size=(30, 7)) * 10.0 ** np.arange(7)
    columns, rows = Rows16.of(matrix, axis=1), Rows16.of(matrix.T, axis=0)
    for found in (columns.matrix(), rows.matrix().T):
        assert (np.abs(found - matrix).max(axis=0) <= 0.51 * np.abs(matrix).max(axis=0) / 32767).all()
    assert Rows16.of(np.zeros((2, 2)), axis=1).matrix().tolist() == [[0, 0], [0, 0]]


def test_a_grid_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    grid = compress(CUBE, smooth_flux(node_places(CUBE)), 3, kinds=NOT_A_KNOT, fingerprint="abc")
    for name in ("one.npz", "two.npz"):
        with open(tmp_path / name, "wb") as stream:
            grid.save(stream)
        time.sleep(0.01)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = Grid.load(tmp_path / "one.npz")
    assert (again.axes, again.kinds, again.fingerprint) == (
        {name: tuple(nodes) for name, nodes in CUBE.items()},
        NOT_A_KNOT,
        "abc",
    )
    np.testing.assert_array_equal(again.coefficient_NK.matrix(), grid.coefficient_NK.matrix())
    np.testing.assert_array_equal(again.basis_KQ.matrix(), grid.basis_KQ.matrix())


def test_the_fingerprint_is_of_axes_and_physics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(making.__file__).parent
    copy = tmp_path / "physics"
    shutil.copytree(here, copy)
    shutil.copy(here.parent / "quantities.py", tmp_path)
    monkeypatch.setattr(making, "files", lambda name: copy if name.endswith("physics") else tmp_path)
    before = fingerprint(TINY)
    assert fingerprint(TINY | {"M_H": [-1, 0.1]}) != before
    for name, matters in {"forward.py": False, "synthesis.py": True, "elements.csv": True, "new.py": True}.items():
        with open(copy / name, "a") as stream:
            stream.write("\n")
        assert (fingerprint(TINY) != before) is matters, name
        before = fingerprint(TINY)


COMMAND = """
import sys
from specvit.physics import grid
grid.PIECE_NODES = 4
from specvit.physics.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def command(out: Path, cache: Path, axes: dict = TINY) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COMMAND, "grid", "--out", str(out), "--axes", json.dumps(axes), "--workers", "1"]
    words += ["--components", "8", "--checks", "2"]
    environment = os.environ | {"SPECVIT_CACHE": str(cache)}
    return subprocess.Popen(
        words, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def pieces(cache: Path) -> dict[str, int]:
    """Return finished pieces of the nodes, with the time of their making."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("grid-*/nodes/[!.]*.npy")}


def wait_for_pieces(process: subprocess.Popen[str], cache: Path) -> None:
    until = time.monotonic() + 120
    while len(pieces(cache)) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_grid_goes_on_and_is_the_same(number: signal.Signals, whole: SimpleNamespace, tmp_path: Path) -> None:
    out, cache = tmp_path / "grid.npz", tmp_path / "cache"
    stopped = command(out, cache)
    wait_for_pieces(stopped, cache)
    stopped.send_signal(number)
    _, said = stopped.communicate(timeout=60)
    if number == signal.SIGINT:
        assert stopped.returncode == 130
        assert said.strip() == "specvit: stopped by Ctrl-C; the same command goes on."
    assert not out.exists()
    left = pieces(cache)
    assert 2 <= len(left) < 8
    again = command(out, cache)
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert left.items() <= pieces(cache).items()  # none was made twice
    assert out.read_bytes() == whole.out.read_bytes()
    assert out.with_suffix(".json").read_text() == whole.out.with_suffix(".json").read_text()
    assert not list(cache.rglob("*.tmp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return a grid that nothing interrupted."""
    place = tmp_path_factory.mktemp("whole")
    process = command(place / "grid.npz", place / "cache")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return SimpleNamespace(out=place / "grid.npz", cache=place / "cache", said=said)


@pytest.mark.slow
def test_the_command_says_how_good_the_grid_is(whole: SimpleNamespace) -> None:
    for words in ("synthesised 32 of 32 spectra", "32 nodes", "8 components", "compression:", "between nodes:", "6 %"):
        assert words in whole.said
    facts = json.loads(whole.out.with_suffix(".json").read_text())
    assert facts["nodes"] == 32 and facts["error of the compression"]["rms"] < 0.01


@pytest.mark.slow
def test_other_axes_share_no_spectra_and_those_of_other_sources_go(whole: SimpleNamespace, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(whole.cache, cache)
    (before,) = cache.glob("grid-*")
    (cache / "grid-0123456789ab-01234567" / "nodes").mkdir(parents=True)
    process = command(tmp_path / "grid.npz", cache, TINY | {"T_eff": [4800, 5500]})
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert before in (there := list(cache.glob("grid-*"))) and len(there) == 2
    assert (tmp_path / "grid.npz").read_bytes() != whole.out.read_bytes()


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--axes", '{"T_eff": [1, 2]}'], "needs T_eff, log_g, M_H, a_M, C_O in this order"),
        (["--axes", '{"T_eff": [2, 1]}'], "every label needs at least two rising places"),
        (["--axes", json.dumps(TINY | {"T_eff": [0, 5000]})], "T_eff goes from 0 to 5000; stay between 3000 and 7000"),
        (["--out", "no/such/folder/grid.npz"], "is no folder; make it first"),
        (["--axes", "[1]"], "is no JSON object"),
        (["--workers", "0"], "counts must be at least 1"),
    ],
)
def test_odd_options_are_refused(words: list[str], refusal: str, capsys: pytest.CaptureFixture[str]) -> None:
    from specvit.physics.__main__ import main

    assert main(["grid", *words]) == 2
    assert refusal in capsys.readouterr().err
