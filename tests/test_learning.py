"""Each kind of model learns as well as it did: a small run's test score beside the one that was recorded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.run.run import run

pytestmark = pytest.mark.slow
ROWS = {"train": 800, "val": 100, "test": 400}
NETWORK = ["train.epochs=10", "train.batch_size=32", "opt.lr=3e-3"]
VIT = ["model.patch_size=32", "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=4"]
MODELS = {
    "vit": [*NETWORK, *VIT, "model.intermediate_size=64"],
    "cnn": [*NETWORK, "model.channels=[8,16]", "model.head_size=32"],
    "ridge": [],
    "lightgbm": ["model.num_trees=60", "model.pixel_fraction=0.5"],
    "template": [],
}
RECORDED = {
    "vit": (0.944, 0.1),
    "cnn": (0.942, 0.015),
    "ridge": (0.937, 0.006),
    "lightgbm": (0.907, 0.015),
    "template": (0.954, 0.003),
}
"""Test R² of this seed and its tolerance; predicting the mean scores 0.

Training seeds 1 to 5 gave .859 to .944 (vit), .936 to .942 (cnn), .935 to .937 (ridge) and .902 to .908 (lightgbm);
templates see no training noise. Every tolerance holds all five seeds, since another processor rounds otherwise.
"""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory, write_set: Callable[..., Path]) -> list[str]:
    """Return the overrides of a run in float32 and one thread on 800 spectra whose log g one noisy line tells."""
    root = tmp_path_factory.mktemp("learning")
    for seed, (part, rows) in enumerate(ROWS.items()):
        write_set(root / part, rows, seed=seed)
    files = [
        f"data.{key}={part}/dataset.h5" for key, part in zip(("file_path", "val_path", "test_path"), ROWS, strict=True)
    ]
    how = ["noise.noise_level=3", "train.seed=1", "train.precision=32", "train.threads=1", "tracking.live=false"]
    return ["data=hdf5", f"data.root={root}", *files, *how, f"tracking.folder={root / 'outputs'}"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_small_run_scores_as_recorded(kind: str, overrides: list[str]) -> None:
    result = run(build_config(compose([*overrides, f"model={kind}", *MODELS[kind]])))
    recorded, tolerance = RECORDED[kind]
    assert result.summary["test_r2"] == pytest.approx(recorded, abs=tolerance)
