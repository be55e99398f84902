"""Scores a trained network on a split: predictions, summary, figures. The same for the final test and `evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specvit.data.labels import LabelScaler
from specvit.data.resident import signal_to_noise
from specvit.data.views import Spectra
from specvit.engine.loop import predict
from specvit.files import write_atomic, write_json
from specvit.pipeline import Trained, build_task, eval_data
from specvit.quantities import unit_of
from specvit.scores.metrics import all_label_scores, scores_by_snr
from specvit.tracking.figures import draw_predictions
from specvit.tracking.files import finite_or_none


@dataclass(frozen=True)
class Scored:
    """A split's scores and the table they come from: one row a spectrum."""

    scores: dict[str, float]
    by_snr: list[dict[str, float]]
    predictions: Any
    label: str


def score(trained: Trained, spectra: Spectra, split: str, device: Any) -> Scored:
    """Predict every row of `spectra` with its fixed noise and score it; training statistics only."""
    config, coder = trained.config, trained.coder
    view = eval_data(spectra, split, config, coder, trained.flux_norm, device)
    task = build_task(config, coder)
    output_NK, target = predict(trained.model, view)
    predicted_NK, table, scores = task.decode(output_NK), _table(spectra, config.noise), task.scores(output_NK, target)
    if isinstance(coder, LabelScaler):
        names, true_NK = coder.names, spectra.label_values(coder.names)
        scores |= all_label_scores(true_NK, predicted_NK, names, coder.scale)  # the targets were rounded to float32
        by_snr = scores_by_snr(true_NK[:, 0], predicted_NK[:, 0], table["snr"].to_numpy())
    else:
        names, true_NK, by_snr = ("class",), target[:, None], []
    for k, name in enumerate(names):
        table[f"true_{name}"], table[f"pred_{name}"] = true_NK[:, k], predicted_NK[:, k]
    return Scored(scores, by_snr, table, names[0])


def write_scored(scored: Scored, folder: Path, *, split: str, summary: dict[str, Any]) -> None:
    """Write `predictions.csv` and `summary.json` into `folder`."""
    write_atomic(folder / "predictions.csv", lambda stream: scored.predictions.to_csv(stream, index=False))
    scores = finite_or_none({f"{split}_{name}": value for name, value in scored.scores.items()})
    by_snr = [finite_or_none(row) for row in scored.by_snr]
    facts = {**summary, "label": scored.label, "unit": unit_of(scored.label)}
    write_json(folder / "summary.json", {**facts, **scores, f"{split}_by_snr": by_snr})


def draw_scored(scored: Scored, path: Path) -> None:
    """Draw predicted against true values of the primary label."""
    true_N, predicted_N = (scored.predictions[f"{kind}_{scored.label}"].to_numpy() for kind in ("true", "pred"))
    name, value = ("R²", scored.scores["r2"]) if "r2" in scored.scores else ("accuracy", scored.scores["accuracy"])
    title = f"{name} = {value:.3f}, {len(true_N):,} spectra"
    draw_predictions(path, true_N, predicted_N, scored.predictions["snr"].to_numpy(), label=scored.label, title=title)


def _table(spectra: Spectra, noise: Any) -> Any:
    import pandas as pd

    files, rows_N = spectra.origins()
    table = pd.DataFrame({"file": [Path(name).parent.name + "/" + Path(name).name for name in files], "row": rows_N})
    table["snr"] = signal_to_noise(spectra, noise)
    labels = spectra.labels()
    table["mag"] = labels["mag"].to_numpy() if "mag" in labels else np.nan
    return table
