"""Labels as the network sees them and back. Statistics come from the training subset only and are saved with the model.

Legend: N rows, K labels.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from specvit.utils.errors import DataError


@dataclass(frozen=True)
class LabelScaler:
    """Regression targets: normalised = (label - offset) / scale, one pair a label, in the label's unit."""

    names: tuple[str, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def num_outputs(self) -> int:
        """Numbers that a prediction has: one a label."""
        return len(self.names)

    def encode(self, labels_NK: np.ndarray) -> np.ndarray:
        """Return normalised labels (N, K), float32; a missing one (NaN) stays NaN."""
        return ((labels_NK - np.array(self.offset)) / np.array(self.scale)).astype(np.float32)

    def decode(self, normalised_NK: np.ndarray) -> np.ndarray:
        """Return labels (N, K) in their units, float64."""
        return normalised_NK.astype(np.float64) * np.array(self.scale) + np.array(self.offset)


@dataclass(frozen=True)
class ClassCoder:
    """Classification targets: bins of one label between `edges`, or the values of an integer column."""

    names: tuple[str, ...]
    edges: tuple[float, ...] = ()
    values: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.edges) + 1 if self.edges else len(self.values)

    @property
    def num_outputs(self) -> int:
        """Numbers that a prediction has: one a class."""
        return self.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each class holds, such as "< 2", "2 to 3" and "≥ 3", or its value."""
        if not self.edges:
            return tuple(str(value) for value in self.values)
        edges = [f"{edge:.12g}" for edge in self.edges]
        inner = (f"{low} to {high}" for low, high in itertools.pairwise(edges))
        return (f"< {edges[0]}", *inner, f"≥ {edges[-1]}")

    def encode(self, labels_NK: np.ndarray) -> np.ndarray:
        """Return class numbers (N,), int64; raises `DataError` for a value that training never saw."""
        if self.edges:
            return np.digitize(labels_NK[:, 0], self.edges).astype(np.int64)
        known = {value: number for number, value in enumerate(self.values)}
        strange = sorted(set(np.unique(labels_NK[:, 0]).tolist()) - set(known))
        if strange:
            what = f"holds class {strange[0]:g}, which the training rows do not"
            raise DataError(
                what, where=f"label {self.names[0]}", remedy="train on every class, or set data.class_edges"
            )
        return np.array([known[int(value)] for value in labels_NK[:, 0]], dtype=np.int64)


TargetCoder = LabelScaler | ClassCoder


def fit_scaler(labels_NK: np.ndarray, names: tuple[str, ...], kind: str) -> LabelScaler:
    """Return the scaler of training labels: `standard` (mean, std), `minmax` (to 0..1) or `none`.

    Each label's are those of the rows that have it. Raises `DataError` for a label that is constant, that no row has,
    or whose variance float64 cannot hold.
    """
    if missing := [name for name, label_N in zip(names, labels_NK.T, strict=True) if np.isnan(label_N).all()]:
        what = "is missing (NaN) in every training row"
        raise DataError(what, where=f"label {missing[0]}", remedy="choose another data.param")
    spread_K = np.nanmax(labels_NK, axis=0) - np.nanmin(labels_NK, axis=0)
    for name, spread in zip(names, spread_K.tolist(), strict=True):
        if spread == 0:
            what = "is the same in every training row"
            raise DataError(what, where=f"label {name}", remedy="choose another data.param")
        if not 1e-150 < spread < 1e150:
            what = f"varies by {spread:.3g} over the training rows, which float64 cannot square"
            raise DataError(what, where=f"label {name}", remedy="give it in another unit")
    offset_K, scale_K = np.zeros(len(names)), np.ones(len(names))
    if kind == "standard":
        offset_K, scale_K = np.nanmean(labels_NK, axis=0), np.nanstd(labels_NK, axis=0)
    elif kind == "minmax":
        offset_K, scale_K = np.nanmin(labels_NK, axis=0), spread_K
    return LabelScaler(names, tuple(map(float, offset_K)), tuple(map(float, scale_K)))


def fit_classes(labels_NK: np.ndarray, names: tuple[str, ...], edges: tuple[float, ...] | None) -> ClassCoder:
    """Return the coder of training labels: bins between `edges`, or the distinct values of an integer column.

    Raises `DataError` for a class without training rows and for a column that is not one of class numbers.
    """
    if edges:
        coder = ClassCoder(names, edges=edges)
        rows_K = np.bincount(coder.encode(labels_NK), minlength=coder.num_classes)
        if not rows_K.all():
            counts = ", ".join(f"{name}: {rows}" for name, rows in zip(coder.class_names, rows_K, strict=True))
            what = f"leaves a class without training rows ({names[0]} {counts})"
            raise DataError(what, where="data.class_edges", remedy="choose edges between the values of the label")
        return coder
    values = np.unique(labels_NK[:, 0])
    if (values != values.astype(np.int64)).any() or not 2 <= len(values) <= 1000:
        what = "is not a column of class numbers"
        raise DataError(what, where=f"label {names[0]}", remedy="set data.class_edges=[...] to cut it into classes")
    return ClassCoder(names, values=tuple(int(value) for value in values))


def by_known_rows(known_NK: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each set of rows (N,) that has a label, with the numbers of the labels that exactly these rows have."""
    sets_GN, number_K = np.unique(known_NK.T, axis=0, return_inverse=True)
    for number, known_N in enumerate(sets_GN):
        yield known_N, np.flatnonzero(number_K.reshape(-1) == number)


def coder_to_dict(coder: TargetCoder) -> dict[str, Any]:
    """Return a coder as plain lists and numbers, for a checkpoint."""
    plain = {name: list(value) for name, value in asdict(coder).items()}
    return {"kind": "labels" if isinstance(coder, LabelScaler) else "classes", **plain}


def coder_from_dict(plain: dict[str, Any]) -> TargetCoder:
    """Return the coder that `coder_to_dict` wrote; raises `ValueError` for anything else."""
    kinds = {"names": str, "offset": float, "scale": float, "edges": (float, int), "values": int}
    fields = {name: value for name, value in plain.items() if name != "kind"}
    for name, values in fields.items():
        if name not in kinds or not isinstance(values, list) or not all(isinstance(v, kinds[name]) for v in values):
            raise ValueError(f"{name} is not what it should be")
    try:
        coder = {"labels": LabelScaler, "classes": ClassCoder}[plain["kind"]](
            **{n: tuple(v) for n, v in fields.items()}
        )
    except (KeyError, TypeError) as problem:
        raise ValueError("it has no kind, or not its fields") from problem
    if isinstance(coder, LabelScaler) and not len(coder.names) == len(coder.offset) == len(coder.scale):
        raise ValueError("its lists differ in length")
    return coder
