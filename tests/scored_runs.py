"""Runs to look at the final scores of: tested on stars of all S/N and magnitudes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import once

from specvit.data.shards import write_shard

LABELS = ("log_g", "T_eff", "M_H")
THREE_LABELS = f'data.param="{",".join(LABELS)}"'
BRIEF = ("train.epochs=3", "opt.lr=3e-3", "noise.noise_level=0.5", "opt.eta_min=0")
CLASSES = ["model.task_type=cls", "loss=ce", "loss.label_smoothing=0.1", "data.class_edges=[2,3,4]"]
CLASSES += ["train.early_stopping.monitor=val_balanced_accuracy", "train.early_stopping.mode=max"]


@pytest.fixture(scope="session")
def scored(shared: Path, tiny: list[str], stars: Callable[..., dict[str, Any]]) -> list[str]:
    """Return the overrides of a brief run with a test set whose S/N and magnitudes spread over the bins."""

    def write(folder: Path) -> None:
        mag = np.linspace(20.2, 22.8, 64)
        mag[5] = np.nan
        spread = stars(64, seed=3, mag=mag)
        write_shard(folder / "dataset.h5", **{**spread, "error_NP": 5 * spread["error_NP"]})

    return [*tiny, *BRIEF, f"data.test_path={once(shared / 'spread', write) / 'dataset.h5'}"]


@pytest.fixture(scope="session")
def trained_labels(reference_run: Callable[[Sequence[str]], Path], scored: list[str]) -> Path:
    """Return the folder of a run of three labels, typed as a user would; read only."""
    return reference_run([*scored, THREE_LABELS])


@pytest.fixture(scope="session")
def trained_classes(reference_run: Callable[[Sequence[str]], Path], scored: list[str]) -> Path:
    """Return the folder of a run of four classes; read only."""
    return reference_run([*scored, *CLASSES])


def summary_of(folder: Path) -> dict[str, Any]:
    """Return a summary; NaN and Infinity, which JSON does not know, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)
