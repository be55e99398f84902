"""What a failed run advises can be pasted and helps."""

import dataclasses
import re
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from specvit.config.build import build_config, to_plain
from specvit.config.schema import Config, DataConfig
from specvit.config.suggestions import is_known
from specvit.run.outcome import remedy_for


def settings(**changes) -> Config:
    """Return a valid configuration on built-in spectra; sections are changed by name."""
    data = DataConfig(kind="builtin", num_samples=10_000, val_samples=100, test_samples=100)
    base = {"data": data} | {
        name: dataclasses.replace(getattr(Config(), name) if name != "data" else data, **values)
        for name, values in changes.items()
    }
    return build_config(to_plain(Config(**base)))


def overrides_in(remedy: str) -> dict[str, Any]:
    """Return the overrides of a remedy, their values as Hydra reads them."""
    texts = re.findall(r"[\w.]+=[^\s,]+", remedy)
    parsed = [OverridesParser.create().parse_override(text) for text in texts]
    return {override.key_or_group: override.value() for override in parsed}


STATES = ["diverged", "oom", "plateau"]
SITUATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one epoch": {"train": {"epochs": 1}},
    "low rate": {"opt": {"lr": 2e-5}},
    "high floor": {"opt": {"lr": 1e-3, "eta_min": 9e-4}},
    "one row": {"train": {"batch_size": 1, "accumulate": 4}},
    "odd batch": {"train": {"batch_size": 7, "precision": "32", "gradient_clip": None}},
    "compiled": {"train": {"compile": True, "precision": "32"}, "model": {"dropout": 0.0}},
    "long warmup": {"opt": {"warmup_epochs": 5.0}},
    "legacy": {"model": {"init": "legacy"}, "data": {"flux_norm": "none", "resident": "never"}},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("state", STATES)
def test_remedy_can_be_pasted_and_changes_something(state: str, situation: str) -> None:
    config = settings(**SITUATIONS[situation])
    overrides = overrides_in(remedy_for(state, config))
    assert overrides
    plain = to_plain(config)
    for dotted, value in overrides.items():
        assert is_known(dotted), dotted
        section, name = dotted.split(".")
        assert plain[section][name] != value, f"{dotted} has this value already"
        plain[section][name] = value
    build_config(plain)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_remedy_of_memory_takes_fewer_rows_at_a_time_and_no_more_a_step(batch_size: int) -> None:
    config = settings(train={"batch_size": batch_size, "accumulate": 2})
    overrides = overrides_in(remedy_for("oom", config))
    batch = overrides.get("train.batch_size", batch_size)
    assert batch * overrides.get("train.accumulate", 2) == 2 * batch_size
    assert batch == max(1, batch_size // 2)


def test_remedy_of_divergence_lowers_the_rate() -> None:
    assert overrides_in(remedy_for("diverged", settings()))["opt.lr"] < Config().opt.lr


@pytest.mark.parametrize("state", ["completed", "early_stopped", "preempted"])
def test_what_did_not_fail_needs_no_remedy(state: str) -> None:
    assert remedy_for(state, settings()) == ""
