"""The figure of `specvit analysis attention`: mean spectrum, saliency and attention by wavelength, with known lines."""

import textwrap
from typing import Any

import numpy as np

from specvit.analysis.attribution_report import AttributionReport, SettingAttribution
from specvit.physics.features import FEATURES
from specvit.tracking.figures import canvas, set_log

BIN = 8
"""Pixels per point of the saliency's line: two of the instrument's resolution elements."""
EVEN = {"color": "0.5", "lw": 0.6, "ls": ":"}
NAME_ROWS, NAME_WIDTH = 3, 0.007
"""Rows of names over the spectrum, and a letter's part of the figure's width."""
COLORS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "navy", "darkgreen", "olive", "black")
"""One for each feature."""
SALIENCY = (
    "Saliency: pixel's share of the variance that noise gives to the prediction, mean over stars, in bins of "
    f"{BIN} pixels; optimum: that of the best estimator linear about each star, by the built-in model. Relative "
    "to uniform: over an equal share of all pixels. Bands: least and greatest of the seeds. "
)
ATTENTION = (
    "Attention: of the pooled token to each token (mean over heads and stars) in the last block, and through all "
    "blocks (rollout), over that of equal attention to all tokens."
)


def draw_attention(report: AttributionReport, one: SettingAttribution) -> Any:
    """Return one setting's figure."""
    attends = one.attends
    figure, axes = canvas(4 if attends else 2, 1, (10.0, 8.2 if attends else 5.0))
    rows = list(axes[:, 0])
    _spectrum(rows[0], report)
    _saliency(rows[1], report, one)
    if attends:
        _attention(rows[2], report, one)
        figure.colorbar(_blocks(rows[3], report, one), ax=rows[3], label="relative to uniform", pad=0.01)
    for axis in rows:
        axis.set_xlim(report.wave_P[0], report.wave_P[-1])
        axis.tick_params(labelbottom=axis is rows[-1])
        for number, feature in enumerate(FEATURES):
            for place in feature.places:
                axis.axvline(place, color=COLORS[number], lw=0.5, alpha=0.5, zorder=0)
    rows[-1].set_xlabel("vacuum wavelength, Å")
    runs = f"{len(one.attributions)} seeds" if len(one.attributions) > 1 else f"run {one.setting.runs[0].run_id}"
    title = f"{report.label} by {one.setting.name} ({runs}); {report.test_set.description}; first {report.stars:,} rows"
    figure.suptitle(textwrap.fill(title, 130), fontsize=9)
    figure.supxlabel(textwrap.fill(SALIENCY + ATTENTION * attends, 190), fontsize=6.2, x=0.01, ha="left", color="0.25")
    return figure


def _spectrum(axis: Any, report: AttributionReport) -> None:
    """Draw the mean spectrum with the features' names above it, in rows where they do not touch each other."""
    axis.plot(report.wave_P, report.flux_P, color="black", lw=0.6)
    axis.set_ylabel("mean flux")
    first, last = float(report.wave_P[0]), float(report.wave_P[-1])
    low, high = float(report.flux_P.min()), float(report.flux_P.max())
    axis.set_ylim(low - 0.05 * (high - low), high + 0.12 * (NAME_ROWS + 1) * (high - low))
    ends = [-np.inf] * NAME_ROWS
    for number, feature in sorted(enumerate(FEATURES), key=lambda pair: pair[1].places[0]):
        if first <= feature.places[0] <= last:
            half = 0.5 * NAME_WIDTH * len(feature.name) * (last - first)
            place = float(np.clip(feature.places[0], first + half, last - half))
            row = min(range(NAME_ROWS), key=lambda row: (ends[row] > place - half, row))
            ends[row] = place + half
            height = high + (0.08 + 0.12 * row) * (high - low)
            axis.text(place, height, feature.name, fontsize=6.5, color=COLORS[number], ha="center")


def _saliency(axis: Any, report: AttributionReport, one: SettingAttribution) -> None:
    wave_b = _binned(report.wave_P)
    _banded(
        axis,
        wave_b,
        np.array([_binned(s) for s in one.shares()["saliency"]]) * len(report.wave_P),
        "C0",
        one.setting.name,
    )
    if report.optimal_weights is not None:
        axis.plot(
            wave_b, _binned(report.optimal_weights.share_P) * len(report.wave_P), color="black", lw=0.8, label="optimum"
        )
    axis.axhline(1.0, **EVEN)
    set_log(axis)
    axis.set_ylabel("saliency,\nrelative to uniform")
    _legend(axis)


def _attention(axis: Any, report: AttributionReport, one: SettingAttribution) -> None:
    shares = one.shares()
    for kind, color, name, stroke in (("attention", "C1", "last block", "-"), ("rollout", "C2", "rollout", "--")):
        _banded(axis, report.wave_P, _over_even(one, shares[kind]), color, name, stroke)
    axis.axhline(1.0, **EVEN)
    axis.set_ylabel("attention,\nrelative to uniform")
    _legend(axis)


def _legend(axis: Any) -> None:
    """Put the legend above the axes, where no data are."""
    axis.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.1)


def _blocks(axis: Any, report: AttributionReport, one: SettingAttribution) -> Any:
    """Draw attention block by block, mean over runs, and return what a colour bar needs."""
    of_runs = [attribution.attention.blocks_LP for attribution in one.attributions if attribution.attention is not None]
    blocks_LP = np.mean([blocks_LP / blocks_LP.sum(1, keepdims=True) for blocks_LP in of_runs], axis=0)
    extent = (float(report.wave_P[0]), float(report.wave_P[-1]), len(blocks_LP) + 0.5, 0.5)
    drawn = axis.imshow(_over_even(one, blocks_LP), aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    axis.set_yticks(range(1, len(blocks_LP) + 1))
    axis.set_ylabel("block")
    return drawn


def _banded(axis: Any, x: np.ndarray, values_RX: np.ndarray, color: str, name: str, stroke: str = "-") -> None:
    """Draw the mean of some runs as a line, and their least and greatest as a band."""
    axis.plot(x, values_RX.mean(0), stroke, color=color, lw=0.8, label=name)
    if len(values_RX) > 1:
        axis.fill_between(x, values_RX.min(0), values_RX.max(0), color=color, alpha=0.25, lw=0)


def _over_even(one: SettingAttribution, shares_XP: np.ndarray) -> np.ndarray:
    """Return shares over those of equal attention to all tokens, NaN where no token reaches."""
    attention = one.attributions[0].attention
    assert attention is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        return shares_XP / np.where(attention.even_P > 0, attention.even_P, np.nan)


def _binned(value_P: np.ndarray) -> np.ndarray:
    """Return means over bins of `BIN` pixels; the last, incomplete one is left out."""
    whole = len(value_P) // BIN * BIN
    return value_P[:whole].reshape(-1, BIN).mean(axis=1)
