"""`specvit analysis attention`: what trained models look at, and where the information is."""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvit.analysis.attribution_report import AttributionFindings, SettingAttribution, names_of, write_attention
from specvit.analysis.runs import FinishedRun, TestSet, by_test_set, finished_runs
from specvit.config.model_kinds import kind_of
from specvit.config.schema import Config, effective_level
from specvit.utils.errors import DataError, FolderError

if TYPE_CHECKING:
    import numpy as np

    from specvit.analysis.attribution import Attribution
    from specvit.analysis.optimal_weights import OptimalWeights
    from specvit.data.views import SpectraView

WEIGHTS = "best.ckpt"
ROWS = 4096


def attention(options: argparse.Namespace) -> int:
    """Look at the runs of each test set, write and draw."""
    runs, notes = finished_runs(options.folder, options.label, noiseless=True)
    kept, left = _with_slopes(runs)
    print("\n".join([*notes, *left]), end="\n" if notes or left else "", flush=True)
    if not kept:
        where = ", ".join(map(str, options.folder))
        remedy = "name networks or ridge with their checkpoints; an archive has records only"
        raise FolderError("has no run to look into", where=where, remedy=remedy)
    sets = by_test_set(kept)
    out = options.out or (options.folder[0] / "attention" if len(options.folder) == 1 else Path("attention"))
    for found in sets:
        _one_set(found, options, out / found.short if len(sets) > 1 else out)
    return 0


def _with_slopes(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Return the runs whose model is on file and follows each pixel smoothly, and notes on the others."""
    kept, left = [], Counter[str]()
    for run in runs:
        if not kind_of(run.config.model).has_gradient:
            left[f"model={run.config.model.kind} has no derivative by its pixels"] += 1
        elif not (run.folder / WEIGHTS).exists():
            left[f"no {WEIGHTS}"] += 1
        else:
            kept.append(run)
    return kept, [f"note: {count} run(s) left out: {why}" for why, count in left.items()]


def _one_set(found: TestSet, options: argparse.Namespace, out: Path) -> None:
    """Look at the runs of one test set. Loads torch, which a refusal need not wait for."""
    from specvit.analysis.attribution_figure import draw_attention
    from specvit.data.splits import open_split, split_manifest
    from specvit.tracking.console import Screen
    from specvit.tracking.figures import attempt
    from specvit.training.device import resolve_device, set_up_torch

    first = found.runs[0].config
    device = resolve_device(dataclasses.replace(first.train, device=options.device))
    set_up_torch(first.train, None, Screen("lines"), device)
    spectra = open_split(first.data, "test", lambda *_: None)
    if split_manifest(first.data, "test", spectra) != found.runs[0].identity["data"]["test"]:
        remedy = "put the spectra back that the runs were tested on"
        raise DataError("is not what it was", where="data.test_path", remedy=remedy)
    stars = min(options.rows, len(spectra))
    print(f"test set: {found.said}, {len(found.runs)} run(s), first {stars:,} rows", flush=True)
    settings = []
    for setting in found.settings:
        settings.append(
            SettingAttribution(
                setting, [_attribution(run, spectra, options.label, stars, device) for run in setting.runs]
            )
        )
        print(f"{setting.name}: {len(setting.runs)} run(s)", flush=True)
    best = _optimal_weights(first, options.label, stars)
    findings = AttributionFindings(
        options.label, found, stars, spectra.wave_P, _mean_flux(spectra, stars), best, settings
    )
    out.mkdir(parents=True, exist_ok=True)
    for one, name in zip(settings, names_of(findings), strict=True):
        for ending in ("png", "pdf"):
            attempt(out / f"{name}.{ending}", lambda path, one=one: draw_attention(findings, one, path), print)
    write_attention(findings, out)
    print(f"written: {out}", flush=True)


def _attribution(run: FinishedRun, spectra: "SpectraView", label: str, stars: int, device: Any) -> "Attribution":
    """Return what one run's model does with the pixels; raises `DataError`, `CheckpointError`."""
    from specvit.analysis.attribution import attribution
    from specvit.data.batches import eval_data
    from specvit.run.predictor import load_predictor

    trained = load_predictor(run.folder / WEIGHTS, run.config, device, run.run_id)
    trained.check_pixels(spectra)
    view = eval_data(spectra, "test", run.config, trained.coder, trained.flux_norm, device)
    return attribution(trained, view, label, stars, str(run.folder / WEIGHTS))


def _mean_flux(spectra: "SpectraView", stars: int) -> "np.ndarray":
    """Return the mean flux (P,) of the first rows."""
    import numpy as np

    parts = (
        spectra.gather(np.arange(start, min(start + ROWS, stars)))[0].sum(axis=0) for start in range(0, stars, ROWS)
    )
    return sum(parts, np.zeros(spectra.num_pixels)) / stars


def _optimal_weights(config: Config, label: str, stars: int) -> "OptimalWeights | None":
    """Return what the best linear estimator does, None with a note where the built-in model cannot tell."""
    from specvit.analysis.bounds.inputs import open_stars
    from specvit.analysis.optimal_weights import optimal_weights

    if effective_level(config.noise) == 0:
        print("note: no optimum to compare with: without noise each pixel tells all", flush=True)
        return None
    try:
        known = open_stars(config, stars, lambda *_: None)
    except DataError as problem:
        print(f"note: no optimum to compare with: {problem}", flush=True)
        return None
    if label not in known.names:
        print(f"note: no optimum to compare with: the built-in model has no {label}", flush=True)
        return None
    return optimal_weights(known, label)
