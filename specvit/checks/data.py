"""What a run's spectra and labels are like: duplicates, labels, scales, leaks, drift. N rows, P pixels, K labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from specvit.checks import linear
from specvit.checks.rules import Measure
from specvit.config.schema import Config
from specvit.data.labels import ClassCoder
from specvit.data.noise import FluxNorm, added_noise, evaluation_noise, sigma_of
from specvit.data.splits import SPLITS, Splits
from specvit.data.views import SpectraView
from specvit.utils.quantities import LABELS

BLOCKS, BLOCK_ROWS = 8, 64
"""Evenly spaced blocks of rows that a split is sampled from, which chunked files give cheaply, too."""
MOST_CANDIDATES = 2048
"""Rows with the same labels whose spectra are compared."""
FEWEST = 40
"""Rows of a sample below which ridge says nothing."""


@dataclass(frozen=True)
class Sample:
    """Rows of a split as the network gets them: normalised noisy flux, error, S/N and labels, NaN where missing."""

    input_NP: np.ndarray
    error_NP: np.ndarray
    snr_N: np.ndarray
    label_NK: np.ndarray


def data_checks(config: Config, splits: Splits, flux_norm: FluxNorm) -> list[Measure]:
    """Return the measures of a run's data; raises `DataError` for spectra that cannot be read."""
    samples = {name: _sample(config, getattr(splits, name), name, flux_norm) for name in SPLITS}
    views = {name: getattr(splits, name) for name in SPLITS}
    return [
        *_duplicates(views),
        *_labels(config, splits),
        *_scales(samples["train"]),
        *(Measure("masked", _masked(view), name) for name, view in views.items() if view.masked_N is not None),
        *_leaks(config, splits, samples["train"]),
        *_drift(samples),
    ]


def _sample(config: Config, view: SpectraView, split: str, flux_norm: FluxNorm) -> Sample:
    starts = np.linspace(0, max(0, len(view) - BLOCK_ROWS), BLOCKS).astype(np.int64)
    rows_N = np.unique((starts[:, None] + np.arange(BLOCK_ROWS)).clip(max=len(view) - 1))
    flux_NP, error_NP = view.gather(rows_N)
    flux_NP = flux_NP if view.observed else flux_NP.clip(min=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr_N = np.nanmedian(flux_NP / error_NP, axis=1)
    sigma = sigma_of(torch.from_numpy(error_NP), added_noise(view, config.noise))
    if sigma is not None:
        unit_NP = evaluation_noise(view.rows_N[rows_N], view.num_pixels, seed=config.noise.eval_seed, split=split)
        flux_NP = flux_NP + sigma.numpy() * unit_NP
    input_NP = (flux_NP - flux_norm.mean_P.cpu().numpy()) / flux_norm.scale
    return Sample(input_NP, error_NP, snr_N, view.label_values(config.data.param)[rows_N])


def _duplicates(views: Mapping[str, SpectraView]) -> Iterator[Measure]:
    """Yield how many rows of one split are in another: the same labels in all columns, and the same flux."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        yield Measure("duplicates", _same_rows(views[one], views[other]), f"{one} and {other}")


def _same_rows(one: SpectraView, other: SpectraView) -> int:
    from pandas.core.util.hashing import hash_pandas_object

    tables = [view.labels().select_dtypes("number").astype(np.float64) for view in (one, other)]
    columns = [name for name in tables[0].columns if name in tables[1].columns]
    keys = [hash_pandas_object(table[columns], index=False).to_numpy() for table in tables]
    rows = [np.flatnonzero(np.isin(keys[side], keys[1 - side]))[:MOST_CANDIDATES] for side in (0, 1)]
    if not len(rows[0]) or not len(rows[1]):
        return 0
    known = {flux_P.tobytes() for flux_P in one.gather(rows[0])[0]}
    return sum(flux_P.tobytes() in known for flux_P in other.gather(rows[1])[0])


def _labels(config: Config, splits: Splits) -> Iterator[Measure]:
    coder = splits.coder
    if isinstance(coder, ClassCoder):
        counts_K = np.bincount(coder.encode(splits.train.label_values(config.data.param)), minlength=coder.num_classes)
        rarest = int(counts_K.argmin())
        yield Measure("class_share", counts_K[rarest] / counts_K.sum(), coder.class_names[rarest])
        return
    values = {name: getattr(splits, name).label_values(config.data.param) for name in SPLITS}
    scaled_NK = coder.encode(values["train"])
    for column, label in enumerate(config.data.param):
        known = {name: rows[:, column][~np.isnan(rows[:, column])] for name, rows in values.items()}
        yield from _label(label, known)
        yield Measure("label_scale", float(np.sqrt(np.nanmean(np.square(scaled_NK[:, column])))), label)


def _label(label: str, known: Mapping[str, np.ndarray]) -> Iterator[Measure]:
    train_n, std = known["train"], float(known["train"].std())
    others_n = np.concatenate([known["val"], known["test"]])
    stds = {name: float(values_n.std()) for name, values_n in known.items() if len(values_n)}
    narrowest = min(stds, key=lambda name: stds[name])
    yield Measure("label_spread", stds[narrowest] / std, f"{label}, {narrowest}")
    if label in LABELS:
        low, high = LABELS[label].low, LABELS[label].high
        yield Measure("label_bounds", sum(int(((v < low) | (v > high)).sum()) for v in known.values()), label)
    quarter, middle, three_quarters = np.quantile(train_n, (0.25, 0.5, 0.75))
    yield Measure(
        "label_outlier", float(np.abs(train_n - middle).max() / max(three_quarters - quarter, 0.01 * std)), label
    )
    margin = 0.01 * np.ptp(train_n)
    outside_n = (others_n < train_n.min() - margin) | (others_n > train_n.max() + margin)
    yield Measure("label_range", float(outside_n.mean()) if len(outside_n) else 0.0, label)
    distinct = np.unique(train_n)
    step = float(np.median(np.diff(distinct))) if len(distinct) < len(train_n) / 5 else 0.0
    yield Measure("label_rounding", step / 12**0.5 / std, label)


def _scales(sample: Sample) -> Iterator[Measure]:
    mean_P = linear.column_means(sample.input_NP)
    std = float(np.sqrt(np.nanmean(np.square(sample.input_NP - mean_P))))
    yield Measure("input_scale", std)
    yield Measure("input_mean", float(np.sqrt(np.square(mean_P).mean())) / max(std, 1e-12))


def _masked(view: SpectraView) -> float:
    return 0.0 if view.masked_N is None else float(view.masked_N.sum() / (len(view) * view.num_pixels))


def _leaks(config: Config, splits: Splits, sample: Sample) -> Iterator[Measure]:
    """Yield how well ridge predicts the labels from S/N, error arrays and flux alone."""
    if isinstance(splits.coder, ClassCoder):
        number_N = splits.coder.encode(sample.label_NK)
        target_NK, where = np.eye(splits.coder.num_classes)[number_N], splits.coder.class_names
    else:
        target_NK, where = sample.label_NK, config.data.param
    known_N = ~np.isnan(target_NK).any(axis=1)
    if known_N.sum() < FEWEST:
        return
    target_NK = target_NK[known_N]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_snr_N, log_error_NP = np.log(sample.snr_N[known_N]), np.log(sample.error_NP[known_N])
    powers_N3 = np.stack([log_snr_N, log_snr_N**2, log_snr_N**3], axis=1)
    blocks = {"leak_snr": powers_N3, "leak_error": log_error_NP, "linear_signal": sample.input_NP[known_N]}
    for rule, block in blocks.items():
        if np.isfinite(block).any():
            score_K = linear.r2([np.where(np.isfinite(block), block, np.nan)], target_NK)
            worst = rule == "linear_signal" and not isinstance(splits.coder, ClassCoder)  # a middle class is not linear
            chosen = int(np.nanargmin(score_K) if worst else np.nanargmax(score_K))
            yield Measure(rule, float(score_K[chosen]), where[chosen])


def _drift(samples: Mapping[str, Sample]) -> Iterator[Measure]:
    """Yield the AUC with which ridge on input and labels tells validation and test rows from training rows."""
    train = samples["train"]
    for name in ("val", "test"):
        other = samples[name]
        if min(len(train.snr_N), len(other.snr_N)) < FEWEST:
            continue
        pairs = ((train.input_NP, other.input_NP), (train.label_NK, other.label_NK))
        blocks = [np.concatenate([a[::2], b[::2]]) for a, b in pairs]
        is_other_N = np.arange(len(blocks[0])) >= len(train.input_NP[::2])
        area, error = linear.auc(blocks, is_other_N)
        yield Measure("drift", area - 3 * error, name)
