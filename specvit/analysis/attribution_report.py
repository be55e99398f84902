"""What `specvit analysis attention` reports. Shape suffixes: R runs (seeds), P pixels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specvit.analysis.grouping import Setting, TestSet
from specvit.analysis.records import Runs, rows_of
from specvit.analysis.report import Row, bullets, table, write_report
from specvit.config.model_kinds import kind_of
from specvit.physics.features import FEATURES
from specvit.utils.files import write_text
from specvit.utils.quantities import unit_of
from specvit.utils.text import counted, csv_text

if TYPE_CHECKING:
    from specvit.analysis.attribution import Attribution, OptimalWeights

WEIGHTS = "best.ckpt"
DEFINITIONS = {
    "saliency": "share of the variance that noise gives to the prediction: (d label / d flux * sigma)^2 of a pixel "
    "over its sum over all pixels, mean over stars; of runs without noise, errors stand for it",
    "optimum": "the same of the best estimator that is linear about the star, knows the labels' box beforehand and not "
    "the amplitude, by the built-in model",
    "attention": "share of the pooled token's attention in the last block, mean over heads and stars; each token's "
    "evenly over its pixels; attention to the CLS token is left out",
    "rollout": "the same through all blocks, half of each block's output being its residual connection "
    "(Abnar & Zuidema 2020)",
    "noise": "standard deviation that noise gives to the prediction, to first order: root mean square over stars",
    "spread": "standard deviation over seeds",
}


@dataclass(frozen=True)
class SettingAttribution:
    """The attributions of a setting's runs."""

    setting: Setting
    attributions: "Sequence[Attribution]"

    @property
    def attends(self) -> bool:
        """Whether its models have attention."""
        return self.attributions[0].attention is not None

    def shares(self) -> dict[str, np.ndarray]:
        """Return saliency, attention in the last block and rollout of each run (R, P); models may have no attention."""
        shares = {"saliency": np.array([one.share_P for one in self.attributions])}
        attentions = [one.attention for one in self.attributions if one.attention]
        if attentions:
            shares["attention"] = np.array([one.blocks_LP[-1] / one.blocks_LP[-1].sum() for one in attentions])
            shares["rollout"] = np.array([one.rollout_P for one in attentions])
        return shares


@dataclass(frozen=True)
class AttributionReport:
    """All settings on one test set."""

    label: str
    test_set: TestSet
    stars: int
    wave_P: np.ndarray
    flux_P: np.ndarray
    """Mean flux of these stars, without noise."""
    optimal_weights: "OptimalWeights | None"
    settings: list[SettingAttribution]

    def figure_names(self) -> list[str]:
        """Return a name for each setting's figure: after its first run where there are several settings."""
        if len(self.settings) == 1:
            return ["attention"]
        return [f"attention-{one.setting.runs[0].run_id}" for one in self.settings]


def with_slopes(runs: Runs) -> tuple[Runs, list[str]]:
    """Return the runs with a checkpoint of a model that is differentiable by its pixels, and notes on the others."""
    reasons = []
    for run in rows_of(runs):
        known = kind_of(run.config.model).has_gradient
        lacking = "" if (run.folder / WEIGHTS).exists() else f"no {WEIGHTS}"
        reasons.append(lacking if known else f"model={run.config.model.kind} has no derivative by its pixels")
    omitted = Counter(filter(None, reasons))
    usable = runs[[not reason for reason in reasons]]
    return usable, [f"note: {counted(count, 'run')} left out: {why}" for why, count in omitted.items()]


def write_attention(report: AttributionReport, out: Path) -> None:
    """Write attention.csv (pixels), features.csv, attention.md and attention.json into `out`.

    The markdown shows the figures that are already there.
    """
    features = [_feature_rows(report, one) for one in report.settings]
    settings = []
    for one, rows in zip(report.settings, features, strict=True):
        by_block = [run.attention.prefix_L.tolist() for run in one.attributions if run.attention]
        noise = [run.noise for run in one.attributions]
        facts = {"name": one.setting.name, **one.setting.seeds_and_ids, "noise": noise, "to_cls_by_block": by_block}
        settings.append(facts | {"features": [{k: v for k, v in row.items() if k != "setting"} for row in rows]})
    facts = {
        **report.test_set.facts(report.label),
        "optimum_noise": report.optimal_weights.noise if report.optimal_weights else None,
        "unit": unit_of(report.label),
        "stars": report.stars,
        "definitions": DEFINITIONS,
        "settings": settings,
    }
    blocks = _blocks(report, features, out)
    write_report(out, "attention", rows=list(_pixel_rows(report)), facts=facts, blocks=blocks)
    write_text(out / "features.csv", csv_text([row for rows in features for row in rows]))


def _feature_rows(report: AttributionReport, one: SettingAttribution) -> list[Row]:
    """Return each feature's shares, and the part of all pixels that it has; None for what does not exist."""
    rows = []
    optimal, shares = report.optimal_weights, one.shares()
    for feature in FEATURES:
        inside_P = feature.inside(report.wave_P)
        if not inside_P.any():
            continue
        row: Row = {"setting": one.setting.name, "feature": feature.name, "pixels": float(inside_P.mean())}
        row["optimum"] = None if optimal is None else float(optimal.share_P[inside_P].sum())
        for name in ("saliency", "attention", "rollout"):
            of_runs = shares[name][:, inside_P].sum(1) if name in shares else None
            row[name], row[f"{name}_sd"] = (None, None) if of_runs is None else _mean_and_spread(of_runs)
        rows.append(row | one.setting.seeds_and_ids)
    return rows


def _mean_and_spread(value_R: np.ndarray) -> tuple[float, float | None]:
    return float(value_R.mean()), float(value_R.std(ddof=1)) if len(value_R) > 1 else None


def _pixel_rows(report: AttributionReport) -> Iterator[Row]:
    """Yield a row for each setting and pixel; shares sum to 1 over pixels."""
    for one in report.settings:
        gradient_P = np.mean([run.gradient_P for run in one.attributions], axis=0)
        columns: dict[str, Any] = {"wave": report.wave_P, "flux": report.flux_P, "gradient": gradient_P}
        columns |= {name: shares_RP.mean(0) for name, shares_RP in one.shares().items()}
        if report.optimal_weights is not None:
            columns["optimum"] = report.optimal_weights.share_P
        for values in zip(*columns.values(), strict=True):
            yield {"setting": one.setting.name} | {k: f"{v:.6g}" for k, v in zip(columns, values, strict=True)}


def _blocks(report: AttributionReport, features: Sequence[Sequence[Row]], out: Path) -> Iterator[str]:
    """Yield the markdown."""
    yield f"# Where models look for {report.label}"
    yield f"{report.test_set.description}; first {report.stars:,} rows. Shares of the whole spectrum, in %."
    for one, rows, name in zip(report.settings, features, report.figure_names(), strict=True):
        yield f"## {one.setting.name}"
        yield _noise_sentence(report, one)
        if (out / f"{name}.png").exists():
            yield f"![{one.setting.name}]({name}.png)"
        kinds = [*one.shares(), *(["optimum"] if report.optimal_weights is not None else [])]
        cells = [["feature", "pixels", *kinds]]
        for row in rows:
            shares = [_percent(row[kind], row.get(f"{kind}_sd")) for kind in kinds]
            cells.append([row["feature"], _percent(row["pixels"], None), *shares])
        yield table(cells)
        seeds, ids = one.setting.seeds_and_ids.values()
        yield f"Seeds {seeds}, runs {ids}."
    yield bullets(f"{name.capitalize()}: {meaning}" for name, meaning in DEFINITIONS.items())


def _percent(share: float | None, spread: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _noise_sentence(report: AttributionReport, one: SettingAttribution) -> str:
    """Return by how much noise changes the prediction, and the best estimator's; "" for runs without noise."""
    noise = [run.noise for run in one.attributions if run.noise is not None]
    if not noise:
        return ""
    mean, spread = _mean_and_spread(np.array(noise))
    best = f"; the optimum's by {report.optimal_weights.noise:.3g}" if report.optimal_weights else ""
    moved = f"{mean:.3g}" + (f" ± {spread:.2g}" if spread is not None else "")
    return f"Noise moves the prediction by {moved} {unit_of(report.label)}".rstrip() + f"{best}."
