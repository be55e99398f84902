"""Assign spectra to sets (train, val, test) and shards.

Shape suffixes: N spectra of all sources, G stars, which are spectra of equal labels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit.convert.options import SPLITS, Options
from specvit.utils import seeding
from specvit.utils.errors import ConfigError
from specvit.utils.quantities import LABELS
from specvit.utils.text import counted

MEASURED = ("snr", "mag")
"""Labels in which copies of one star differ."""


def shards_of(labels: Any, options: Options) -> tuple[dict[str, NDArray[np.intp]], list[str]]:
    """Return file under the target -> spectra that go into it, in order, and notes; raises `ConfigError`."""
    parts, notes = {"all": np.arange(len(labels))}, []
    if options.split is not None:
        star_N = stars_of(labels)
        parts = dict(zip(SPLITS, _split_stars(star_N, options.split, options.seed), strict=True))
        copies = len(star_N) - len(np.unique(star_N))
        what = f"note: {copies} spectra have all labels of another one; such copies of one star go into one set"
        notes = [what] if copies else []
    shards = {
        f"{name}_{i}/dataset.h5": rows[start : start + options.shard]
        for name, rows in parts.items()
        for i, start in enumerate(range(0, len(rows), options.shard))
    }
    return shards, notes


def stars_of(labels: Any) -> NDArray[np.intp]:
    """Return a number for each spectrum (N,), the same where all labels are: those of the layout, if any varies."""
    varying = [name for name in labels if name not in MEASURED and labels[name].nunique(dropna=False) > 1]
    known = [name for name in varying if name in LABELS] or varying
    if not known:
        return np.arange(len(labels))
    return labels.groupby(known, sort=False, dropna=False).ngroup().to_numpy(dtype=np.intp)


def _split_stars(star_N: NDArray[np.intp], shares: tuple[float, ...], seed: int) -> list[NDArray[np.intp]]:
    """Return the spectra of each set, whole stars, shuffled, since a run may take the first ones."""
    total, rng = len(star_N), seeding.numpy_rng(seed, "subset", "convert")
    place_G = rng.permutation(int(star_N.max()) + 1)
    mixed_N = np.argsort(place_G[star_N], kind="stable")
    ends_G = np.cumsum(np.bincount(place_G[star_N]))
    counts = [round(share * total) for share in shares[1:]]
    wanted = (total - sum(counts), total - counts[1])
    cuts = [int(ends_G[np.argmin(np.abs(ends_G - cut))]) for cut in wanted]
    parts = np.split(mixed_N, cuts)
    if min(map(len, parts)) < 1:
        copies = f", since by their labels they are of {counted(len(ends_G), 'star')}" if len(ends_G) < total else ""
        what = f"of {total} spectra leaves a set without any{copies}"
        raise ConfigError(what, where="--split", remedy="take larger shares, or convert more spectra")
    return [rng.permutation(part) for part in parts]
