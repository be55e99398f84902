"""Runs to look at the final scores of: three labels or four classes, tested on stars of all S/N and magnitudes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from specvit import train
from specvit.data.shards import write_shard

LABELS = ("log_g", "T_eff", "M_H")
BRIEF = ("train.epochs=3", "opt.lr=3e-3", "noise.noise_level=0.5", "opt.eta_min=0")
CLASSES = ["model.task_type=cls", "loss=ce", "loss.label_smoothing=0.1", "data.class_edges=[2,3,4]"]
CLASSES += ["train.early_stopping.monitor=val_balanced_accuracy", "train.early_stopping.mode=max"]


def trained(tmp: Path, tiny: list[str], stars: Any, *overrides: str) -> Path:
    """Train in `tmp`, with a test set whose S/N and magnitudes spread over the bins; return the run folder."""
    mag = np.linspace(20.2, 22.8, 64)
    mag[5] = np.nan
    spread, test = stars(64, seed=3, mag=mag), tmp / "spread" / "dataset.h5"
    write_shard(test, **{**spread, "error_NP": 5 * spread["error_NP"]})
    brief = [*tiny, *BRIEF, f"data.test_path={test}", f"tracking.folder={tmp / 'outputs'}"]
    assert train.main([*brief, *overrides]) == 0
    (folder,) = (tmp / "outputs").iterdir()
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    """Return a summary; NaN and Infinity, which JSON does not know, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)
