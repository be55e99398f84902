"""The notebooks of `examples/`: without outputs in the file, and their code runs as it is."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((TOP / "examples").glob("*.ipynb"))


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text())["cells"]


def code_of(notebook: Path) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "code")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs_and_explains_each_cell(notebook: Path) -> None:
    before = ""
    for cell in cells_of(notebook):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
            assert before == "markdown", cell["id"]
            ast.parse("".join(cell["source"]))  # no magic of notebooks, which a script lacks
        before = cell["cell_type"]


CHECKS = """
from specvit.commands.predict import main

assert run.state == "completed" and len(table) == 40 and len(runs) == 4 and runs.finished.all()
np.savez("own.npz", wave=wave, flux=flux)
assert main(["--study", "first_day", "own.npz", "--unit", "A", "--no-normalise", "--out", "own.csv"]) == 0
pd.testing.assert_frame_equal(pd.read_csv("own.csv")[list(table)], table, check_dtype=False)
"""
"""Run after the notebook's cells, whose predictions are those of the command."""


@pytest.mark.nightly
def test_the_first_day_runs(tmp_path: Path) -> None:
    """In a fresh process and folder, cell after cell."""
    script = "\n\n".join([code_of(TOP / "examples" / "first_day.ipynb"), CHECKS])
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(TOP)}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "test R²" in ran.stdout and "within the interval for 90 %" in ran.stdout
    assert (tmp_path / "first_day.png").stat().st_size > 10_000
    assert len(list((tmp_path / "multirun/first_day/runs").iterdir())) == 4
