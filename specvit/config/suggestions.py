"""Known keys, near misses, and the names of older configuration files."""

import dataclasses
import difflib
import typing
from functools import cache

from specvit.config.model_kinds import MODEL_KINDS
from specvit.config.schema import Config, ModelConfig

OLDER_KEYS = {
    "train.ep": "train.epochs",
    "train.lr": "opt.lr",
    "train.batch": "train.batch_size",
    "data.train_size": "data.num_samples",
    "train_size": "data.num_samples",
    "num_samples": "data.num_samples",
    "position_encoding": "model.pos_encoding_type",
    "model.position_encoding": "model.pos_encoding_type",
    "model.name": "model.kind",
    "optimizer": "opt",
    "optimizer.type": "opt.type",
    "optimizer.lr": "opt.lr",
    "opt.name": "opt.type",
    "lr": "opt.lr",
    "lr_scheduler": "opt.lr_sch",
    "opt.lr_scheduler": "opt.lr_sch",
    "noise.sigma": "noise.noise_level",
    "noise_level": "noise.noise_level",
    "project": "tracking.experiment",
    "seed": "train.seed",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
}
OLDER_OPTIONS = {"loss": {"l2": "mse", "mae": "l1"}, "model/tokenizer": {"C1D": "c1d", "CNN": "c1d", "SW": "sw"}}
OLDER_SECTIONS = {"training": "train", "optimizer": "opt", "viz": "tracking", "mlflow": "tracking", "wandb": "tracking"}


@cache
def known_keys(cls: type = Config, prefix: str = "") -> dict[str, bool]:
    """Return every dotted key of the schema; the value says whether the key is a section."""
    keys: dict[str, bool] = {}
    for name, kind in typing.get_type_hints(cls).items():
        keys[prefix + name] = dataclasses.is_dataclass(kind)
        sections = [model.config for model in MODEL_KINDS.values()] if kind is ModelConfig else [kind]
        for section in filter(dataclasses.is_dataclass, sections):
            keys.update(known_keys(section, f"{prefix}{name}."))
    return keys


def is_known(dotted: str) -> bool:
    """Return True for a key of the schema or of its free-form mapping, `tracking.tags`."""
    return dotted in known_keys() or dotted.startswith("tracking.tags.")


def suggest(dotted: str) -> str:
    """Return the advice for an unknown key: the present name of an older key, or the nearest known key."""
    section, _, rest = dotted.partition(".")
    for right in (OLDER_KEYS.get(dotted), f"{OLDER_SECTIONS.get(section, '')}.{rest}"):
        right = OLDER_KEYS.get(right or "", right)
        if right and is_known(right):
            return f"it is called {right} here"
    leaf = dotted.rpartition(".")[2]
    same_leaf = [known for known in known_keys() if known.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(dotted, known_keys(), n=1, cutoff=0.6)
    near = near or [
        k for k in known_keys() if leaf in difflib.get_close_matches(leaf, [k.rpartition(".")[2]], cutoff=0.75)
    ]
    return f"did you mean {near[0]}?" if near else "`specvit train --cfg job` lists every key"


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """Return "did you mean X? " for the word of `words` nearest to `word`, or an empty string."""
    by_lower = {w.lower(): w for w in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[near[0]]}? " if near else ""
