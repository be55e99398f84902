"""MLflow's page of a run, as a person sees it: a real server and a real browser (Debian's package chromium)."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port, serving

from specvit.run_folder.folder import RunFolder
from specvit.tracking.mlflow import Server

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --window-size=1500,6000"
FLAGS += " --disable-background-networking --disable-component-update --virtual-time-budget=60000"

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")]


@pytest.fixture
def recorded(finished_run: RunFolder, mlflow_server: Server) -> Any:
    """Return a finished run as MLflow has it."""
    mlflow_server.sync(finished_run)
    experiment = mlflow_server.client.get_experiment_by_name("specvit")
    (run,) = mlflow_server.client.search_runs([experiment.experiment_id])
    return run


def page(address: str, run: Any, part: str, profile: Path) -> str:
    """Return what a browser makes of a run's page after its scripts ran, as HTML."""
    return seen(f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{part}", profile)


def seen(url: str, profile: Path) -> str:
    words = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", url]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=240, env={**os.environ})
    return shown.stdout


def test_a_studys_runs_are_folded_below_it(finished_run: RunFolder, mlflow_server: Server, tmp_path: Path) -> None:
    mlflow_server.sync(finished_run, {"specvit.study": "a key", "study": "the_study"})
    experiment = mlflow_server.client.get_experiment_by_name("specvit")
    (trial,) = [r for r in mlflow_server.client.search_runs([experiment.experiment_id]) if "state" in r.data.tags]
    assert mlflow_server.file is not None
    with serving(mlflow_server.file, free_port()) as address:
        runs = f"{address}/#/experiments/{experiment.experiment_id}/runs"
        table = seen(runs, tmp_path / "profile")
    assert ">the_study<" in table and trial.info.run_name not in table
    assert re.search(r"<[^>]*>2</[^>]*> matching runs", table)


def test_a_runs_page_shows_metrics_parameters_tags_and_figures(recorded, mlflow_server, tmp_path: Path) -> None:
    assert mlflow_server.file is not None
    with serving(mlflow_server.file, free_port()) as address:
        overview = page(address, recorded, "", tmp_path / "profile")
        figure = page(address, recorded, "/artifacts/figures/curves.png", tmp_path / "profile")
    for name in ("val_r2", "test_r2", "grad_norm_tokenizer", "opt.lr", "train.early_stopping.monitor", "tokenizer"):
        assert f">{name}<" in overview, name
    assert f">{recorded.data.params['opt.lr']}<" in overview
    assert recorded.info.run_name in overview
    assert re.search(r'<img [^>]*alt="figures/curves.png"[^>]* src="blob:', figure)
    assert "predictions.png" in figure or ">figures<" in figure
