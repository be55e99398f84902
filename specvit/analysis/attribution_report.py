"""What `specvit analysis attention` found, as CSV, markdown and JSON. Shape suffixes: R runs (seeds), P pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specvit import __version__
from specvit.analysis.bounds.report import about, seeds_and_ids
from specvit.analysis.features import FEATURES
from specvit.analysis.runs import Setting, TestSet
from specvit.utils.files import write_json, write_text
from specvit.utils.provenance import commit
from specvit.utils.quantities import unit_of
from specvit.utils.text import csv_text, markdown_table

if TYPE_CHECKING:
    from specvit.analysis.attribution import Attribution
    from specvit.analysis.optimal_weights import OptimalWeights

Row = dict[str, Any]
DEFINITIONS = {
    "saliency": "share of the variance that noise gives to the prediction: (d label / d flux * sigma)^2 of a pixel "
    "over its sum over all pixels, mean over stars; of runs without noise, errors stand for it",
    "optimum": "the same of the best estimator that is linear about the star, knows the labels' box beforehand and not "
    "the amplitude, by the built-in model",
    "attention": "share of what the pooled vector takes in the last block, mean over heads and stars; each token's "
    "evenly over its pixels; what goes to the CLS token is left out",
    "rollout": "the same through all blocks, half of each block's output being the connection around its attention "
    "(Abnar & Zuidema 2020)",
    "noise": "standard deviation that noise gives to the prediction, to first order: root mean square over stars",
    "spread": "standard deviation over seeds",
}


@dataclass(frozen=True)
class SettingAttribution:
    """The runs of one setting and what each does."""

    setting: Setting
    attributions: "Sequence[Attribution]"

    def saliency_RP(self) -> np.ndarray:
        """Return each run's shares."""
        return np.array([attribution.share_P for attribution in self.attributions])

    def attention_RP(self) -> np.ndarray | None:
        """Return each run's attention in the last block, of what goes to pixels; None for models without any."""
        found = [attribution.attention for attribution in self.attributions]
        return np.array([one.blocks_LP[-1] / one.blocks_LP[-1].sum() for one in found if one]) if found[0] else None

    def rollout_RP(self) -> np.ndarray | None:
        """Return each run's attention through all blocks; None for models without any."""
        found = [attribution.attention for attribution in self.attributions]
        return np.array([one.rollout_P for one in found if one]) if found[0] else None


@dataclass(frozen=True)
class AttributionFindings:
    """All settings on one test set."""

    label: str
    test_set: TestSet
    stars: int
    wave_P: np.ndarray
    flux_P: np.ndarray
    """Mean flux of these stars, without noise."""
    optimal_weights: "OptimalWeights | None"
    settings: list[SettingAttribution]


def names_of(found: AttributionFindings) -> list[str]:
    """Return a file name, without ending, for each setting's figure: after its first run where there are several."""
    if len(found.settings) == 1:
        return ["attention"]
    return [f"attention-{one.setting.runs[0].run_id}" for one in found.settings]


def write_attention(found: AttributionFindings, out: Path) -> None:
    """Write attention.csv (pixels), features.csv, attention.md and attention.json into `out`."""
    write_text(out / "attention.csv", csv_text(list(_pixels(found))))
    write_text(out / "features.csv", csv_text(list(feature_rows(found))))
    write_text(out / "attention.md", "\n".join(_markdown(found, out)) + "\n")
    write_json(out / "attention.json", _plain(found))


def feature_rows(found: AttributionFindings) -> Iterator[Row]:
    """Yield each feature's shares, setting by setting; the part of all pixels that it has; None where there is none."""
    for one in found.settings:
        for feature in FEATURES:
            inside_P = feature.inside(found.wave_P)
            if not inside_P.any():
                continue
            row: Row = {"setting": one.setting.name, "feature": feature.name, "pixels": float(inside_P.mean())}
            row |= {
                "optimum": None
                if found.optimal_weights is None
                else float(found.optimal_weights.share_P[inside_P].sum())
            }
            for name, shares_RP in _kinds(one):
                mean, spread = (None, None) if shares_RP is None else _mean_and_spread(shares_RP[:, inside_P].sum(1))
                row |= {name: mean, f"{name}_sd": spread}
            yield row | seeds_and_ids(one.setting)


def _kinds(one: SettingAttribution) -> tuple[tuple[str, np.ndarray | None], ...]:
    return ("saliency", one.saliency_RP()), ("attention", one.attention_RP()), ("rollout", one.rollout_RP())


def _mean_and_spread(value_R: np.ndarray) -> tuple[float, float | None]:
    return float(value_R.mean()), float(value_R.std(ddof=1)) if len(value_R) > 1 else None


def _pixels(found: AttributionFindings) -> Iterator[Row]:
    """Yield one row a setting and pixel; shares sum to 1 over pixels."""
    for one in found.settings:
        gradient_P = np.mean([attribution.gradient_P for attribution in one.attributions], axis=0)
        columns: dict[str, Any] = {"wave": found.wave_P, "flux": found.flux_P, "gradient": gradient_P}
        columns |= {name: shares_RP.mean(0) for name, shares_RP in _kinds(one) if shares_RP is not None}
        if found.optimal_weights is not None:
            columns["optimum"] = found.optimal_weights.share_P
        for values in zip(*columns.values(), strict=True):
            yield {"setting": one.setting.name} | {k: f"{v:.6g}" for k, v in zip(columns, values, strict=True)}


def _plain(found: AttributionFindings) -> Row:
    settings = []
    features = list(feature_rows(found))
    for one in found.settings:
        mine = [
            {k: v for k, v in row.items() if k != "setting"} for row in features if row["setting"] == one.setting.name
        ]
        to_prefix = [
            attribution.attention.prefix_L.tolist() for attribution in one.attributions if attribution.attention
        ]
        noise = [attribution.noise for attribution in one.attributions]
        facts = {"name": one.setting.name, **seeds_and_ids(one.setting), "noise": noise, "to_cls_by_block": to_prefix}
        settings.append(facts | {"features": mine})
    return {
        **about(found.label, found.test_set),
        "optimum_noise": found.optimal_weights.noise if found.optimal_weights else None,
        "unit": unit_of(found.label),
        "stars": found.stars,
        "definitions": DEFINITIONS,
        "settings": settings,
        "specvit": __version__,
        "commit": commit(),
    }


def _markdown(found: AttributionFindings, out: Path) -> Iterator[str]:
    yield f"# Where models look for {found.label}"
    yield f"\n{found.test_set.said}; first {found.stars:,} rows. Shares of the whole spectrum, in %."
    rows = list(feature_rows(found))
    for one, name in zip(found.settings, names_of(found), strict=True):
        yield f"\n## {one.setting.name}\n"
        yield from _noise_said(found, one)
        if (out / f"{name}.png").exists():
            yield f"![{one.setting.name}]({name}.png)\n"
        kinds = ["saliency", *(["attention", "rollout"] if one.attributions[0].attention else [])]
        best = ["optimum"] if found.optimal_weights is not None else []
        cells = []
        for row in (row for row in rows if row["setting"] == one.setting.name):
            shares = [_percent(row[kind], row.get(f"{kind}_sd")) for kind in (*kinds, *best)]
            cells.append([row["feature"], _percent(row["pixels"], None), *shares])
        yield from markdown_table([["feature", "pixels", *kinds, *best], *cells])
        yield f"\nSeeds {seeds_and_ids(one.setting)['seeds']}, runs {seeds_and_ids(one.setting)['run_ids']}."
    yield ""
    yield from (f"- {name.capitalize()}: {meaning}." for name, meaning in DEFINITIONS.items())


def _percent(share: float | None, spread: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _noise_said(found: AttributionFindings, one: SettingAttribution) -> Iterator[str]:
    """Say how far noise moves the prediction, and the optimum's."""
    noise = [attribution.noise for attribution in one.attributions if attribution.noise is not None]
    if noise:
        mean, spread = _mean_and_spread(np.array(noise))
        best = f"; the optimum's by {found.optimal_weights.noise:.3g}" if found.optimal_weights else ""
        moved = f"{mean:.3g}" + (f" ± {spread:.2g}" if spread is not None else "")
        yield f"Noise moves the prediction by {moved} {unit_of(found.label)}".rstrip() + f"{best}.\n"
