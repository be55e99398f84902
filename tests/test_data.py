"""Shards, subsets, order, noise, statistics: what a batch holds is a function of the configuration and the step."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.schema import DataConfig, NoiseConfig
from specvit.data import builtin, resident
from specvit.data.labels import coder_from_dict, coder_to_dict, fit_classes, fit_scaler
from specvit.data.noise import FluxNorm, evaluation_noise, fit_flux_norm
from specvit.data.order import BLOCK_ROWS, WINDOW_BLOCKS, epoch_order
from specvit.data.resident import EvalData, Store, TrainData, signal_to_noise
from specvit.data.shards import find_files, write_shard
from specvit.data.splits import open_splits
from specvit.data.views import Spectra, open_spectra, select_rows
from specvit.errors import DataError
from specvit.physics.population import make_row
from specvit.quantities import ERROR, FLUX, LABELS, WAVE

ROWS, PIXELS, STEP_ROWS = 80, 256, 16
CPU = torch.device("cpu")
CLEAN = NoiseConfig(noise_type="none")


def rewrite_chunked(path: Path) -> None:
    """Store flux and error in compressed chunks, as many tools do."""
    with h5py.File(path, "r+") as file:
        for name in (FLUX, ERROR):
            value = file[name][()]
            del file[name]
            file.create_dataset(name, data=value, chunks=(min(7, len(value)), 50), compression="gzip")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, write_set: Any, stars: Any) -> dict[str, list[Path]]:
    """Return the same 80 spectra in four ways: one file, chunked, three shards, and three with one chunked."""
    root = tmp_path_factory.mktemp("layouts")
    paths = {"contiguous": [write_set(root / "contiguous", ROWS)], "chunked": [write_set(root / "chunked", ROWS)]}
    whole = stars(ROWS)
    for layout in ("shards", "mixed"):
        paths[layout] = []
        for start, stop in ((0, 10), (10, 11), (11, ROWS)):
            part = {n: whole[n][start:stop] for n in ("flux_NP", "error_NP", "labels")}
            write_shard(root / layout / f"{start}.h5", wave_P=whole["wave_P"], **part)
            paths[layout].append(root / layout / f"{start}.h5")
    rewrite_chunked(paths["chunked"][0])
    rewrite_chunked(paths["mixed"][1])
    return paths


@pytest.fixture
def spectra(files: dict[str, list[Path]]) -> Spectra:
    return open_spectra(files["contiguous"], -1)


def raw_norm(pixels: int = PIXELS) -> FluxNorm:
    return FluxNorm(torch.zeros(pixels), 1.0)


def train_data(spectra: Spectra, *, noise: NoiseConfig = CLEAN, order: str = "global", **data: Any) -> TrainData:
    """Return training data whose target is the number of the view's row and whose flux is not normalised."""
    store = Store(spectra, DataConfig(**data), CPU)
    rows = torch.arange(len(spectra))
    norm = raw_norm(spectra.num_pixels)
    return TrainData(store, rows, norm, noise, order=order, seed=3, step_rows=STEP_ROWS)


def eval_flux(spectra: Spectra, noise: NoiseConfig, split: str = "val") -> torch.Tensor:
    """Return the noisy, not normalised flux of a whole evaluation view."""
    store = Store(spectra, DataConfig(), CPU)
    data = EvalData(store, torch.zeros(len(spectra)), raw_norm(spectra.num_pixels), noise, split)
    return torch.cat([batch.flux_BP for batch in data.batches()])


# files and gathering


def test_a_written_file_is_read_by_pandas_and_h5py_at_the_documented_paths(write_set: Any, tmp_path: Path) -> None:
    path = write_set(tmp_path, 5)
    table: Any = pd.read_hdf(path)
    assert list(table.columns) == ["T_eff", "log_g", "M_H", "a_M", "C_M", "mag", "redshift", "snr"]
    assert (len(table), set(table.dtypes)) == (5, {np.dtype(np.float64)})
    with h5py.File(path) as file:
        assert file["spectrumdataset/wave"].shape == (PIXELS,)
        for name in ("flux", "error"):
            array = file[f"dataset/arrays/{name}/value"]
            assert (array.shape, array.dtype, array.chunks) == ((5, PIXELS), np.float32, None)


def test_a_failing_writer_leaves_the_old_file_and_no_other(write_set: Any, stars: Any, tmp_path: Path) -> None:
    path = write_set(tmp_path, 5)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_shard(path, **stars(3) | {"labels": "no table"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "shards", "mixed"])
@pytest.mark.parametrize(
    "index",
    [[0], [79, 3, 10, 11, 3, 0], list(range(80)), [9, 8, 7, 12, 11, 10]],
    ids=lambda index: f"{len(index)} rows",
)
def test_every_layout_gives_the_same_rows_in_the_order_asked(
    layout: str, index: list[int], files: dict[str, list[Path]], stars: Any
) -> None:
    flux_BP, error_BP = open_spectra(files[layout], -1).gather(np.array(index))
    whole = stars(ROWS)
    np.testing.assert_array_equal(flux_BP, whole["flux_NP"][index].astype(np.float32))
    np.testing.assert_array_equal(error_BP, whole["error_NP"][index].astype(np.float32))


def test_labels_and_origins_follow_the_rows_over_shards(files: dict[str, list[Path]], stars: Any) -> None:
    view = open_spectra(files["shards"], 40, subset="random", seed=1)
    expected = stars(ROWS)["labels"].iloc[view.rows_N]
    np.testing.assert_array_equal(view.label_values(("log_g", "mag")), expected[["log_g", "mag"]].to_numpy())
    names, rows = view.origins()
    starts = {str(path): start for path, start in zip(files["shards"], (0, 10, 11), strict=True)}
    assert [starts[name] + row for name, row in zip(names, rows, strict=True)] == view.rows_N.tolist()


def test_globs_come_in_natural_order_and_patterns_in_the_order_typed(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"set_{number}").mkdir()
        (tmp_path / f"set_{number}" / "dataset.h5").touch()
    found = find_files(["set_*/dataset.h5"], root=str(tmp_path), where="data.file_path")
    assert [path.parent.name for path in found] == ["set_1", "set_2", "set_10"]
    found = find_files(["set_10/dataset.h5", "set_[12]/*.h5"], root=str(tmp_path), where="data.file_path")
    assert [path.parent.name for path in found] == ["set_10", "set_1", "set_2"]


# subsets and order


@given(st.integers(1, 300), st.data(), st.sampled_from(["first", "random"]), st.integers(0, 3))
def test_subsets_nest(total: int, data: Any, subset: str, seed: int) -> None:
    larger = data.draw(st.integers(1, total))
    smaller = data.draw(st.integers(1, larger))
    few, many = (select_rows(total, n, subset=subset, seed=seed, where="") for n in (smaller, larger))
    assert (len(few), len(many)) == (smaller, larger)
    assert set(few) <= set(many) <= set(range(total))
    assert (np.diff(many) > 0).all()


def test_first_is_the_start_and_random_is_another_choice_a_seed() -> None:
    assert select_rows(100, 9, subset="first", seed=5, where="").tolist() == list(range(9))
    chosen = [select_rows(100, 30, subset="random", seed=seed, where="").tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    assert chosen[0] != list(range(30))
    assert select_rows(20, 5, subset="random", seed=0, where="").tolist() == [0, 8, 11, 14, 17]  # for good


@pytest.mark.parametrize("subset", ["first", "random"])
def test_minus_one_is_every_row(subset: str) -> None:
    assert select_rows(77, -1, subset=subset, seed=3, where="").tolist() == list(range(77))


@given(st.integers(1, 3 * BLOCK_ROWS), st.integers(0, 5), st.integers(0, 5), st.sampled_from(["global", "block"]))
def test_an_epoch_visits_each_row_once(rows: int, seed: int, epoch: int, order: str) -> None:
    assert np.array_equal(np.sort(epoch_order(rows, seed=seed, epoch=epoch, order=order)), np.arange(rows))


@pytest.mark.parametrize("order", ["global", "block"])
def test_every_epoch_and_seed_has_its_own_order(order: str) -> None:
    orders = [epoch_order(500, seed=s, epoch=e, order=order).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] not in orders[1:3]
    assert sorted(orders[0]) not in orders


def test_block_order_reads_whole_blocks_of_neighbouring_rows_a_window() -> None:
    window = WINDOW_BLOCKS * BLOCK_ROWS
    order_N = epoch_order(3 * window, seed=0, epoch=0, order="block")
    seen = [set(order_N[start : start + window] // BLOCK_ROWS) for start in range(0, 3 * window, window)]
    assert [len(blocks) for blocks in seen] == [WINDOW_BLOCKS] * 3
    assert seen[0] != set(range(WINDOW_BLOCKS))
    assert len(set(order_N[:64] // BLOCK_ROWS)) > 8  # rows are mixed within the window


# batches


@pytest.mark.parametrize(
    ("layout", "setting", "place"),
    [
        ("contiguous", "auto", "mapped from files"),
        ("chunked", "auto", "in memory"),
        ("chunked", "never", "read from chunked files (slow)"),
        ("mixed", "auto", "in memory"),
        ("shards", "never", "mapped from files"),
    ],
)
@pytest.mark.parametrize("order", ["global", "block"])
def test_a_batch_is_a_function_of_the_step_wherever_the_rows_lie(
    layout: str, setting: str, place: str, order: str, files: dict[str, list[Path]], spectra: Spectra
) -> None:
    noise = NoiseConfig()
    reference = train_data(spectra, noise=noise, order=order)
    expected = {step: reference.batch(step) for step in range(8)}
    data = train_data(open_spectra(files[layout], -1), noise=noise, order=order, resident=setting)
    assert data.store.place == place
    for step in (6, 0, 7, 3, 3):
        batch = data.batch(step)
        assert torch.equal(batch.flux_BP, expected[step].flux_BP)
        assert torch.equal(batch.target, expected[step].target)


def test_a_batch_holds_the_spectra_of_its_targets(spectra: Spectra) -> None:
    batch = train_data(spectra).batch(4)
    expected, _ = spectra.gather(batch.target.numpy())
    assert torch.equal(batch.flux_BP, torch.from_numpy(expected))


def test_an_epoch_holds_each_row_at_most_once_and_the_next_another_order(files: dict[str, list[Path]]) -> None:
    data = train_data(open_spectra(files["contiguous"], 75))
    assert data.steps_per_epoch == 4
    epochs = [torch.cat([data.batch(4 * epoch + step).target for step in range(4)]).tolist() for epoch in (0, 1)]
    for rows in epochs:
        assert len(set(rows)) == 64
    assert epochs[0] != epochs[1]


def test_half_precision_storage_differs_only_by_rounding(files: dict[str, list[Path]], spectra: Spectra) -> None:
    exact = train_data(spectra).batch(0).flux_BP
    for layout in ("contiguous", "chunked"):
        rounded = train_data(open_spectra(files[layout], -1), storage="float16").batch(0).flux_BP
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=0)


def test_flux_is_clipped_at_zero_before_the_noise(stars: Any, tmp_path: Path) -> None:
    made = stars(STEP_ROWS)
    made["flux_NP"][:, 5] = -3.0
    write_shard(tmp_path / "a.h5", **made)
    spectra = open_spectra([tmp_path / "a.h5"], -1)
    assert train_data(spectra).batch(0).flux_BP[:, 5].tolist() == [0.0] * STEP_ROWS
    assert train_data(spectra, noise=NoiseConfig()).batch(0).flux_BP[:, 5].min() < 0
    assert eval_flux(spectra, CLEAN)[:, 5].tolist() == [0.0] * STEP_ROWS
    assert fit_flux_norm(spectra, "standard", CLEAN).mean_P[5] == 0


# noise


@pytest.mark.parametrize("noise", [CLEAN, NoiseConfig(noise_level=0.0)])
def test_the_error_array_never_reaches_the_network(noise: NoiseConfig, stars: Any, tmp_path: Path) -> None:
    for factor in (1, 50):
        made = stars(STEP_ROWS)
        write_shard(tmp_path / f"{factor}.h5", **made | {"error_NP": factor * made["error_NP"]})
    one, other = (open_spectra([tmp_path / f"{factor}.h5"], -1) for factor in (1, 50))
    assert not np.array_equal(one.gather(np.arange(3))[1], other.gather(np.arange(3))[1])
    assert torch.equal(train_data(one, noise=noise).batch(0).flux_BP, train_data(other, noise=noise).batch(0).flux_BP)
    assert torch.equal(eval_flux(one, noise), eval_flux(other, noise))
    norms = [fit_flux_norm(view, "standard", noise) for view in (one, other)]
    assert norms[0].scale == norms[1].scale


def residual_of(spectra: Spectra, noise: NoiseConfig, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise (N, P) as it was added, and the error array of the same rows."""
    if split != "train":
        flux_NP, error_NP = map(torch.from_numpy, spectra.gather(np.arange(len(spectra))))
        return eval_flux(spectra, noise, split) - flux_NP, error_NP
    data = train_data(spectra, noise=noise)
    batches = [data.batch(step) for step in range(data.steps_per_epoch)]
    rows = torch.cat([batch.target for batch in batches]).numpy()
    flux_NP, error_NP = map(torch.from_numpy, spectra.gather(rows))
    return torch.cat([batch.flux_BP for batch in batches]) - flux_NP, error_NP


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("level", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["heteroscedastic", "homoscedastic"])
def test_noise_has_the_sigma_that_was_asked_for(split: str, level: float, kind: str, spectra: Spectra) -> None:
    noise_NP, error_NP = residual_of(spectra, NoiseConfig(noise_level=level, noise_type=kind), split)
    if kind == "homoscedastic":
        error_NP = error_NP.median(dim=1, keepdim=True).values
    unit_NP = noise_NP / (level * error_NP)
    for half in (unit_NP[:, : PIXELS // 2], unit_NP[:, PIXELS // 2 :]):
        assert half.std().item() == pytest.approx(1.0, abs=0.03)
        assert half.mean().item() == pytest.approx(0.0, abs=0.05)


def test_training_noise_is_fresh_in_every_step(stars: Any, tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", **stars(STEP_ROWS))  # one step an epoch: the same rows each time
    spectra = open_spectra([tmp_path / "a.h5"], -1)
    data = train_data(spectra, noise=NoiseConfig())
    seen = []
    for step in range(3):
        batch = data.batch(step)
        flux_BP, error_BP = map(torch.from_numpy, spectra.gather(batch.target.numpy()))
        unit_BP = (batch.flux_BP - flux_BP) / error_BP
        seen.append(unit_BP[batch.target.argsort()].flatten())
    correlation = torch.corrcoef(torch.stack(seen))
    assert correlation.fill_diagonal_(0).abs().max() < 0.06


def test_evaluation_noise_belongs_to_the_row(
    files: dict[str, list[Path]], spectra: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = eval_flux(spectra, NoiseConfig())
    assert torch.equal(eval_flux(open_spectra(files["mixed"], 13), NoiseConfig()), whole[:13])
    subset = open_spectra(files["shards"], 20, subset="random", seed=4)
    assert torch.equal(eval_flux(subset, NoiseConfig()), whole[subset.rows_N])
    monkeypatch.setattr(resident, "EVAL_BATCH", 7)
    assert torch.equal(eval_flux(spectra, NoiseConfig()), whole)


def test_evaluation_noise_is_another_for_another_row_split_or_seed() -> None:
    rows = np.array([4, 5])
    unit = evaluation_noise(rows, 50, seed=42, split="val")
    assert np.array_equal(evaluation_noise(rows[1:], 50, seed=42, split="val")[0], unit[1])
    others = [evaluation_noise(rows, 50, seed=s, split=n)[0] for s, n in ((42, "test"), (43, "val"))]
    for other in (unit[1], *others):
        assert not np.isclose(other, unit[0]).any()


def test_an_evaluation_set_is_the_same_each_time_it_is_read(spectra: Spectra) -> None:
    data = EvalData(Store(spectra, DataConfig(), CPU), torch.arange(ROWS), raw_norm(), NoiseConfig(), "val")
    first, second = (torch.cat([batch.flux_BP for batch in data.batches()]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.cat([batch.target for batch in data.batches()]), torch.arange(ROWS))


def test_signal_to_noise_is_the_median_of_flux_over_error_a_level(spectra: Spectra, stars: Any) -> None:
    made = stars(ROWS)
    expected = np.median(made["flux_NP"] / made["error_NP"], axis=1)
    np.testing.assert_allclose(signal_to_noise(spectra, NoiseConfig(noise_level=2.0)), expected / 2, rtol=1e-5)
    assert np.isinf(signal_to_noise(spectra, CLEAN)).all()


# statistics


@pytest.mark.parametrize("level", [0.0, 1.0, 20.0])
def test_the_networks_input_has_mean_zero_and_unit_power(level: float, spectra: Spectra) -> None:
    noise = NoiseConfig(noise_level=level)
    data = replace(train_data(spectra, noise=noise), flux_norm=fit_flux_norm(spectra, "standard", noise))
    flux_NP = torch.cat([data.batch(step).flux_BP for step in range(data.steps_per_epoch)])
    assert flux_NP.mean().item() == pytest.approx(0.0, abs=0.02)
    assert flux_NP.square().mean().item() == pytest.approx(1.0, abs=0.03)


def test_the_mean_spectrum_is_that_of_all_training_rows(stars: Any, tmp_path: Path) -> None:
    made = stars(1500, pixels=16)
    write_shard(tmp_path / "a.h5", **made)
    norm = fit_flux_norm(open_spectra([tmp_path / "a.h5"], -1), "standard", CLEAN)
    np.testing.assert_allclose(norm.mean_P, made["flux_NP"].mean(axis=0), rtol=1e-6)
    assert norm.scale == pytest.approx(np.sqrt(made["flux_NP"].var(axis=0).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["standard", "minmax", "none"])
def test_labels_come_back_in_their_units(kind: str, spectra: Spectra) -> None:
    names = ("log_g", "T_eff")
    labels_NK = spectra.label_values(names)
    scaler = fit_scaler(labels_NK, names, kind)
    encoded_NK = scaler.encode(labels_NK)
    np.testing.assert_allclose(scaler.decode(encoded_NK), labels_NK, rtol=1e-5)
    found = {"standard": (encoded_NK.mean(0), encoded_NK.std(0)), "minmax": (encoded_NK.min(0), encoded_NK.max(0))}
    if kind == "none":
        np.testing.assert_array_equal(encoded_NK, labels_NK.astype(np.float32))
    else:
        np.testing.assert_allclose(found[kind], [[0, 0], [1, 1]], atol=1e-5)
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(scaler)))) == scaler


def test_statistics_come_from_the_chosen_training_rows_alone(toy_sets: Path, tiny: list[str], write_set: Any) -> None:
    config = build_config(compose([*tiny, "data.num_samples=100", "data.subset=random", "data.param=log_g,mag"]))
    splits = open_splits(config, lambda *progress: None)
    tables = [pd.read_hdf(toy_sets / name / "dataset.h5") for name in ("train_0", "train_1")]
    chosen = pd.concat(tables).iloc[splits.train.rows_N][["log_g", "mag"]]
    assert len(chosen) == 100
    np.testing.assert_allclose(splits.coder.offset, chosen.mean())
    np.testing.assert_allclose(splits.coder.scale, chosen.std(ddof=0))


def test_classes_are_bins_between_edges_that_hold_their_lower_end() -> None:
    coder = fit_classes(np.array([[1.0], [5.0]]), ("log_g",), (2.0, 3.5))
    assert coder.num_outputs == 3
    assert coder.encode(np.array([[1.9], [2.0], [3.4], [3.5], [9.0]])).tolist() == [0, 1, 1, 2, 2]
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(coder)))) == coder


def test_an_integer_column_is_classes_and_a_new_value_is_refused() -> None:
    coder = fit_classes(np.array([[7.0], [3.0], [5.0], [3.0]]), ("kind",), None)
    assert coder.encode(np.array([[3.0], [5.0], [7.0]])).tolist() == [0, 1, 2]
    assert coder_from_dict(json.loads(json.dumps(coder_to_dict(coder)))) == coder
    with pytest.raises(DataError, match="class 4, which the training rows do not"):
        coder.encode(np.array([[4.0]]))


# built-in spectra


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        flux_NP, error_NP = file[FLUX][()], file[ERROR][()]
        assert file[WAVE].shape == flux_NP.shape[1:]
    table: Any = pd.read_hdf(path)
    return flux_NP, error_NP, table[list(LABELS)].to_numpy()


def silent(*progress: object) -> None:
    """Report nothing."""


def test_a_builtin_row_is_the_same_in_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {tmp_path / "one.h5": range(6)}
    two = {tmp_path / "a.h5": range(2), tmp_path / "b.h5": range(2, 6)}
    builtin.make_shards(one, seed=1, split="train", report=silent)
    monkeypatch.setattr(builtin, "PIECE_ROWS", 3)
    builtin.make_shards(two, seed=1, split="train", report=silent)
    parts = zip(*(read(path) for path in two), strict=True)
    for whole, (first, second) in zip(read(tmp_path / "one.h5"), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    flux_P, error_P, labels = make_row(1, "train", 4)
    flux_NP, error_NP, table_NK = read(tmp_path / "one.h5")
    np.testing.assert_array_equal([flux_P, error_P], [flux_NP[4], error_NP[4]])
    assert dict(zip(LABELS, table_NK[4], strict=True)) == labels


MAKER = """
import sys
from specvit.data import builtin
builtin.SHARD_ROWS, builtin.ROUND_UP = 4, 2
made = []
paths = builtin.builtin_files(int(sys.argv[1]), seed=2, split="val", report=lambda *progress: made.append(progress))
print(len(made), *paths, sep="\\n")
"""


def make_together(cache: Path, *counts: int) -> list[list[str]]:
    """Ask for built-in spectra from several processes at once; return what each printed: reports, then paths."""
    environment = {"SPECVIT_CACHE": str(cache), "PATH": ""}
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(count)], stdout=subprocess.PIPE, text=True, env=environment)
        for count in counts
    ]
    return [maker.communicate(timeout=120)[0].split() for maker in makers]


def test_processes_that_want_builtin_spectra_at_once_make_each_file_once(tmp_path: Path) -> None:
    first, second = make_together(tmp_path, 6, 6)
    assert first[1:] == second[1:]
    assert sorted([first[0], second[0]]) == ["0", "2"]  # one report a shard, all from one of the two
    rows = np.concatenate([read(Path(path))[0] for path in first[1:]])
    np.testing.assert_array_equal(rows[5], make_row(2, "val", 5)[0])
    # a damaged shard and a longer wish are made anew; the rest is left alone
    whole, last = (Path(path) for path in first[1:])
    kept = whole.stat().st_mtime_ns
    last.write_bytes(last.read_bytes()[:5000])
    (again,) = make_together(tmp_path, 8)
    assert (again[0], whole.stat().st_mtime_ns) == ("1", kept)
    flux_NP, _, _ = read(last)
    assert len(flux_NP) == 4
    np.testing.assert_array_equal(flux_NP[1], rows[5])


# manifest


@pytest.mark.parametrize("layout", ["chunked", "shards", "mixed"])
def test_the_manifest_does_not_know_how_rows_are_stored(layout: str, files: Any, spectra: Spectra) -> None:
    assert open_spectra(files[layout], -1).manifest() == spectra.manifest()


def one_label(made: dict[str, Any]) -> None:
    made["labels"].loc[33, "mag"] += 1e-9


def change_at(name: str, index: Any) -> Callable[[dict[str, Any]], None]:
    def change(made: dict[str, Any]) -> None:
        made[name][index] *= 1.001

    return change


@pytest.mark.parametrize(
    "change",
    [
        one_label,
        change_at("flux_NP", (0, 3)),
        change_at("flux_NP", (ROWS - 1, 200)),
        change_at("error_NP", (0, 0)),
        change_at("wave_P", PIXELS - 1),
        lambda made: made.update(labels=made["labels"].rename(columns={"mag": "magnitude"})),
        lambda made: made.update({name: made[name][:-1] for name in ("flux_NP", "error_NP", "labels")}),
    ],
    ids=["a label", "first pixel row", "last pixel row", "an error", "a wavelength", "a column's name", "a row less"],
)
def test_the_manifest_tells_other_data_apart(change: Any, stars: Any, spectra: Spectra, tmp_path: Path) -> None:
    made = stars(ROWS)
    change(made)
    write_shard(tmp_path / "a.h5", **made)
    assert open_spectra([tmp_path / "a.h5"], -1).manifest() != spectra.manifest()
