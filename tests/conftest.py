"""Shared pieces: a folder that all workers of a test run share, small sets of spectra, and reference runs.

A reference run is trained once in a test run, whoever asks for it first, and read by all: `reference_run(overrides)`
is the folder of the finished run with exactly these overrides, e.g. `reference_run([*tiny, "train.epochs=3"])`.
Ask before you patch anything that a run uses, and never change the folder: `copied_run(overrides)` is a copy in
`tmp_path/outputs`, which the command with `tracking.folder={tmp_path}/outputs` finds.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from damage import rewrite_chunked
from hypothesis import settings
from planted import save_blank
from shared import once
from toy_data import ROWS

from specvit.cli import main as cli
from specvit.commands.track import runs_in
from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.data.shards import write_shard
from specvit.data.views import Spectra, open_spectra
from specvit.run.run import run
from specvit.run_folder.folder import RunFolder
from specvit.tracking import figures
from specvit.tracking.mlflow import Server
from specvit.utils.quantities import LABELS

pytest_plugins = ("bounds_fixtures", "faults", "scored_runs", "study_fixtures")
pytest.register_assert_rewrite("toys", "whole_runs")
settings.register_profile("specvit", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("specvit")
SAVE_FIGURE = figures.save
SHARED = "SPECVIT_TESTS_FOLDER"
"""The environment variable that names the folder which the workers share."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the whole run one fresh folder; the workers of xdist inherit it, so that what lies in it is made once."""
    for name in ("SPECVIT_DATA", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    if not hasattr(config, "workerinput"):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="specvit-tests-")
    os.environ["SPECVIT_CACHE"] = f"{os.environ[SHARED]}/cache"
    os.makedirs(os.environ["SPECVIT_CACHE"], exist_ok=True)
    if not torch.cuda.is_available():  # a GPU that torch cannot use would refuse every run
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the shared folder."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[SHARED], ignore_errors=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep workers that share the cores from waiting for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[None]:
    """Let runs write blank figures, which saves more than half of their time; `drawn_figures` draws them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, "save", save_blank)
        yield


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures be drawn in this test."""
    monkeypatch.setattr(figures, "save", SAVE_FIGURE)


@pytest.fixture(scope="session")
def cache() -> Path:
    """Return the cache folder that all tests of this run share."""
    return Path(os.environ["SPECVIT_CACHE"])


def make_stars(rows: int, pixels: int = 256, seed: int = 0, **columns: Any) -> dict[str, Any]:
    """Return what `write_shard` takes: one line as deep as log_g says, another for M_H, a slope for T_eff, no noise.

    `columns` replace columns of the label table after the flux was made.
    """
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame({name: rng.uniform(0.0, 1.0, rows) for name in LABELS})
    labels["log_g"], labels["T_eff"] = 1 + 4 * labels["log_g"], 3750 + 2250 * labels["T_eff"]
    grid_P = np.arange(pixels) / pixels

    def line(centre: float) -> np.ndarray:
        return np.exp(-0.5 * ((grid_P - centre) / 0.02) ** 2)

    depth_N1, other_N1 = labels[["log_g"]].to_numpy() / 6, labels[["M_H"]].to_numpy() / 2
    slope_N1 = labels[["T_eff"]].to_numpy() / 4875 - 1
    flux_NP = (1 + slope_N1 * (grid_P - 0.5)) * (1 - depth_N1 * line(0.4)) * (1 - other_N1 * line(0.7))
    error_NP = rng.uniform(0.01, 0.05, (rows, 1)) * (1 + grid_P)
    wave_P = 7100.0 + 0.5 * np.arange(pixels)
    return {"wave_P": wave_P, "flux_NP": flux_NP, "error_NP": error_NP, "labels": labels.assign(**columns)}


@pytest.fixture(scope="session")
def stars() -> Callable[..., dict[str, Any]]:
    """Return `stars(rows, pixels=256, seed=0, **columns)`, which makes spectra and labels in memory."""
    return make_stars


@pytest.fixture(scope="session")
def write_set() -> Callable[..., Path]:
    """Return `write_set(folder, rows, **as_stars)`, which writes `folder/dataset.h5` and returns its path."""

    def write(folder: Path, rows: int, pixels: int = 256, seed: int = 0, **columns: Any) -> Path:
        write_shard(folder / "dataset.h5", **make_stars(rows, pixels, seed, **columns))
        return folder / "dataset.h5"

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder that all workers of this test run share; see `once`."""
    return Path(os.environ[SHARED])


@pytest.fixture(scope="session")
def toy_sets(shared: Path, write_set: Callable[..., Path]) -> Path:
    """Return a folder with train_0, train_1 (96 spectra each), val (48) and test (64), each with `dataset.h5`."""

    def write(folder: Path) -> None:
        for seed, (name, rows) in enumerate({"train_0": 96, "train_1": 96, "val": 48, "test": 64}.items()):
            write_set(folder / name, rows, seed=seed)

    return once(shared / "toy_sets", write)


@pytest.fixture
def sets(toy_sets: Path, tmp_path: Path) -> Path:
    """Return a copy of the toy sets that may be spoilt."""
    return Path(shutil.copytree(toy_sets, tmp_path / "sets"))


@pytest.fixture(scope="session")
def tiny(toy_sets: Path) -> list[str]:
    """Return the overrides of a run on `toy_sets` that trains in a second."""
    data = ["data=hdf5", f"data.root={toy_sets}", "data.file_path=train_*/dataset.h5"]
    data += ["data.val_path=val/dataset.h5", "data.test_path=test/dataset.h5"]
    model = ["model.patch_size=32", "model.hidden_size=16", "model.num_hidden_layers=1"]
    model += ["model.num_attention_heads=2", "model.intermediate_size=32"]
    quiet = ["tracking.progress=lines", "tracking.live=false"]
    return [*data, *model, "train.epochs=2", "train.batch_size=16", "train.precision=32", "train.threads=1", *quiet]


@pytest.fixture(scope="session")
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
    """Return all rows of the one file."""
    return open_spectra(files["contiguous"], -1)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], str]:
    """Return a function that runs arguments in an empty folder and returns the one sentence of their refusal."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["specvit train"])

    def run(arguments: list[str]) -> str:
        code, shown = main(arguments), capsys.readouterr()
        assert code == 2, (arguments, shown)
        assert re.fullmatch(r"specvit: [^\n]+[.?]\n", shown.err), (arguments, shown.err)
        assert "Traceback" not in shown.out + shown.err
        assert list(work.iterdir()) == []
        return shown.err

    return run


@pytest.fixture(scope="session")
def reference_run(shared: Path) -> Callable[[Sequence[str]], Path]:
    """Return `reference_run(overrides)`: the folder of that finished run, trained once for all workers; read only."""

    def train(place: Path, overrides: Sequence[str]) -> None:
        threads = torch.get_num_threads()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            result = run(build_config(compose([*overrides, f"tracking.folder={place}"])))
        assert result.exit_code == 0, output.getvalue()
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)

    def reference(overrides: Sequence[str]) -> Path:
        name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
        (folder,) = once(shared / "runs" / name, lambda place: train(place, overrides)).iterdir()
        return folder

    return reference


@pytest.fixture
def copied_run(reference_run: Callable[[Sequence[str]], Path], tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """Return `copied_run(overrides)`: a copy of that reference run in `tmp_path/outputs`, for the test to change."""

    def copy(overrides: Sequence[str]) -> Path:
        folder = reference_run(overrides)
        return Path(shutil.copytree(folder, tmp_path / "outputs" / folder.name))

    return copy


@pytest.fixture(scope="session")
def finished(reference_run: Callable[[Sequence[str]], Path], tiny: list[str]) -> Path:
    """Return the folder of a finished run of three epochs; `finished_run` is a copy of it."""
    return reference_run([*tiny, "train.epochs=3"])


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> RunFolder:
    """Return a copy of the finished run in `tmp_path/outputs`."""
    shutil.copytree(finished, tmp_path / "outputs" / finished.name)
    (copy,) = runs_in([tmp_path / "outputs"])
    return copy


@pytest.fixture(scope="session")
def empty_database(shared: Path) -> Path:
    """Return a new MLflow database: making one takes seconds, so it is made once."""

    def make(folder: Path) -> None:
        folder.mkdir()
        Server(f"sqlite:///{folder / 'mlflow.db'}")

    return once(shared / "database", make) / "mlflow.db"


@pytest.fixture
def mlflow_server(empty_database: Path, tmp_path: Path) -> Server:
    """Return a database of this test's own, where a run in `tmp_path/outputs` has it by default."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Server(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Work in an empty folder; return a function that imports a text: the exit code and all that was said."""
    monkeypatch.chdir(tmp_path)

    def run_import(text: str | bytes, name: str = "old.yaml", *words: str) -> tuple[int, str]:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        code = cli(["import", name, *words])
        heard = capsys.readouterr()
        return code, heard.out + heard.err

    return run_import
