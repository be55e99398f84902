"""The name of a run: what changes a result changes it, and nothing else does."""

import dataclasses
import typing
from argparse import ArgumentTypeError
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from specvit.config import schema
from specvit.config.build import build_config, to_plain
from specvit.config.compose import compose
from specvit.config.model_kinds import MODEL_KINDS
from specvit.config.schema import Config
from specvit.run_folder.identity import default_name, identity_of, run_id, without_effect
from specvit.utils.text import read_count, short_count

MANIFEST = {"train": {"shape": [100, 256], "labels": "0123456789abcdef", "rows": "fedcba9876543210"}}


def id_of(config: Any, manifest: dict[str, Any] = MANIFEST, extra: dict[str, Any] | None = None) -> str:
    return run_id(identity_of(config, manifest, extra))


def fields_of(
    cls: type, prefix: tuple[str, ...] = (), model: type = schema.ViTConfig
) -> list[tuple[tuple[str, ...], Any, Any]]:
    """Return (path, type, metadata) of every key of the schema."""
    found = []
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        kind = hints[item.name] if item.name != "model" else model
        if dataclasses.is_dataclass(kind):
            found += fields_of(typing.cast(type, kind), (*prefix, item.name))
        else:
            found.append(((*prefix, item.name), hints[item.name], item.metadata))
    return found


def with_value(section: Any, path: tuple[str, ...], value: Any) -> Any:
    """Return a copy of a config with one key replaced."""
    if len(path) > 1:
        value = with_value(getattr(section, path[0]), path[1:], value)
    return replace(section, **{path[0]: value})


def value_of(section: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        section = getattr(section, name)
    return section


USED_WITH = {
    "data.subset_seed": {"data.subset": "random"},
    "data.fold": {"data.folds": 5},
    "data.builtin_seed": {"data.kind": "builtin"},
    "data.max_redshift": {"data.kind": "builtin"},
    "data.label_prior": {"data.kind": "builtin"},
    "data.endless": {"data.kind": "synth"},
    "loss.huber_delta": {"loss.name": "huber"},
    "loss.label_smoothing": {"loss.name": "ce"},
    "opt.momentum": {"opt.type": "SGD"},
    "opt.step_epochs": {"opt.lr_sch": "step"},
    "opt.factor": {"opt.lr_sch": "step"},
    "opt.plateau_patience": {"opt.lr_sch": "plateau"},
    "noise.noise_level": {},
    "noise.eval_seed": {},
    "opt.betas": {},
    "opt.eta_min": {},
    **{
        f"model.reduction.{name}": {"model.reduction.kind": "static"}
        for name in ("select", "merge_ratio", "target_merge_tokens", "select_label", "keep_wavelengths")
    },
}
"""Keys that only count beside some value of another one, and that value (none needed: the defaults have it)."""


def another_value(old: Any, kind: Any, rules: Any) -> Any:
    """Return a value of the key's type and range that is not the one it has."""
    if rules.get("choices"):
        return next((choice for choice in rules["choices"] if choice != old), None)
    kinds = [option for option in typing.get_args(kind) or (kind,) if option is not type(None)]
    if typing.get_origin(kind) is tuple or typing.get_origin(kinds[0]) is tuple:
        values = {str: ("another",), float: (0.5, 0.75), int: (3, 5), tuple[float, float]: ((1.0, 2.0),)}
        return values[typing.get_args(kind if old else kinds[0])[0]]
    if kinds[0] is bool:
        return not old
    if kinds[0] is int:
        return (old or 1) + 1
    return {float: lambda: (old or 1.0) / 2, str: lambda: "another"}.get(kinds[0], lambda: {"another": "tag"})()


@pytest.mark.parametrize("name", MODEL_KINDS)
def test_a_key_changes_the_id_if_and_only_if_it_can_change_a_result(name: str) -> None:
    model = MODEL_KINDS[name].config
    keys = fields_of(Config, model=model)
    assert len(keys) > 50
    wrong = [
        ".".join(path)
        for path, kind, rules in keys
        if changes_the_id(Config(model=model()), path, kind, rules)
        not in (None, rules["identity"] and is_used(name, path))
    ]
    assert not wrong


def is_used(name: str, path: tuple[str, ...]) -> bool:
    """Ridge, trees and templates know no optimizer, and of training at most the seed; all but trees no loss."""
    sections = {
        "ridge": ("model", "data", "noise"),
        "lightgbm": ("model", "data", "noise", "loss"),
        "template": ("model", "data", "noise"),
    }
    unused = {"ridge": ("order",), "lightgbm": ("order",), "template": ("order", "flux_norm")}
    if name not in sections or (path == ("train", "seed") and name != "template"):
        return True
    return path[0] in (*sections[name], "tracking") and not (path[0] == "data" and path[1] in unused[name])


def changes_the_id(base: Config, path: Any, kind: Any, rules: Any) -> bool | None:
    """Return whether the id changes with the key where the key counts; None where it has but one value."""
    for dotted, value in USED_WITH.get(".".join(path), {}).items():
        base = with_value(base, tuple(dotted.split(".")), value)
    old = value_of(base, path)
    new = another_value(old, kind, rules)
    if new is None:
        assert rules["choices"] == (old,)
        return None
    assert new != old
    return id_of(with_value(base, path, new)) != id_of(base)


def test_keys_without_effect_beside_the_others_are_these() -> None:
    assert {".".join(path) for path, _, rules in fields_of(Config) if rules.get("used_if")} == set(USED_WITH)


@pytest.mark.parametrize(
    ("key", "value", "beside"),
    [
        ("opt.momentum", 0.5, {}),
        ("opt.betas", (0.5, 0.5), {"opt.type": "SGD"}),
        ("opt.factor", 0.1, {}),
        ("opt.eta_min", 1e-7, {"opt.lr_sch": "constant"}),
        ("loss.huber_delta", 3.0, {}),
        ("loss.label_smoothing", 0.1, {}),
        ("data.subset_seed", 9, {}),
        ("data.fold", 3, {}),
        ("data.builtin_seed", 9, {}),
        ("data.max_redshift", 0.001, {}),
        ("data.label_prior", "published", {}),
        ("data.endless", True, {"data.kind": "builtin"}),
        ("noise.noise_level", 9.0, {"noise.noise_type": "none"}),
        ("model.reduction.merge_ratio", 0.5, {}),
    ],
)
def test_a_key_without_effect_does_not_rename_a_run(key: str, value: Any, beside: dict[str, Any]) -> None:
    base = Config()
    for dotted, other in beside.items():
        base = with_value(base, tuple(dotted.split(".")), other)
    assert id_of(with_value(base, tuple(key.split(".")), value)) == id_of(base)


def test_the_keys_outside_the_id_are_these() -> None:
    outside = {".".join(path) for path, _, rules in fields_of(Config) if not rules["identity"]}
    places = {f"data.{name}" for name in ("root", "file_path", "val_path", "test_path", "resident")}
    places |= {f"data.{name}" for name in ("num_samples", "val_samples", "test_samples", "observed")}  # in the manifest
    places |= {"data.max_masked"}  # refuses only
    handling = {
        f"train.{name}"
        for name in ("log_every", "save_every", "init_from", "device", "threads", "keep_memory", "rerun")
    } | {"train.checkpoint_blocks"}
    assert {key for key in outside if not key.startswith("tracking.")} == places | handling
    assert all(not rules["identity"] for path, _, rules in fields_of(Config) if path[0] == "tracking")


def test_the_id_of_a_run_never_changes() -> None:
    """If this fails, every folder of every user gets another name: give a new key a `neutral` value instead."""
    assert id_of(Config()) == "05c65e3c"


RENAMED = {
    "learned": ["08046e0e", "05c65e3c", "a1f3f751", "96779281"],
    "sinusoidal": ["9e309665", "7c2d8d9c", "c2a4ef24", "076a6a89"],
    "rope": ["2dd06379", "38656e0f", "7638eafc", "9cdd7d07"],
    "none": ["df6098a3", "04ab85b4", "646fc875", "d75b06d8"],
}
"""Ids in 32, 16-mixed, bf16-mixed and auto. The last three of rope and none belong to numerics version 3."""


@pytest.mark.parametrize("kind", RENAMED)
def test_a_numerics_version_renames_only_the_runs_whose_numbers_it_changed(kind: str) -> None:
    base = with_value(Config(), ("model", "pos_encoding_type"), kind)
    configs = [with_value(base, ("train", "precision"), name) for name in ("32", "16-mixed", "bf16-mixed", "auto")]
    assert [id_of(config) for config in configs] == RENAMED[kind]
    versions = [identity_of(config, MANIFEST)["numerics_version"] for config in configs]
    assert versions == ([2, 3, 3, 3] if kind in ("rope", "none") else [2] * 4)


def test_data_and_weights_to_start_from_are_part_of_the_id() -> None:
    ids = [id_of(Config()), id_of(Config(), {}), id_of(Config(), extra={"init_from": "0123456789abcdef"})]
    assert len(set(ids)) == 3
    assert id_of(Config(), extra={}) == id_of(Config(), extra=None) == ids[0]


@pytest.mark.parametrize(
    "overrides", [["opt.lr=1"], ["opt.lr=1.0e0"], ["loss=mse", "opt.lr=1."], ["loss.name=l2", "opt.lr=1.0"]]
)
def test_spelling_does_not_matter(overrides: list[str]) -> None:
    config = build_config(compose(overrides))
    assert id_of(config) == id_of(build_config(compose(["opt.lr=1.0"])))
    assert id_of(build_config(to_plain(config))) == id_of(config)


@dataclass(frozen=True)
class Inner:
    """A section that was added later, whole."""

    keep: float = schema.key(1.0, neutral=1.0)


@dataclass(frozen=True)
class Older:
    """A schema as it once was."""

    model: schema.ModelConfig = field(default_factory=schema.ViTConfig)
    width: int = schema.key(8)


@dataclass(frozen=True)
class Newer(Older):
    """The same with keys that were added later."""

    trick: str = schema.key("none", neutral="none")
    limit: float | None = schema.key(None, neutral=None)
    inner: Inner = field(default_factory=Inner)


def test_a_neutral_key_is_left_out_of_the_id() -> None:
    assert id_of(Newer()) == id_of(Older())


@pytest.mark.parametrize("change", [{"trick": "more"}, {"limit": 0.0}, {"inner": Inner(0.5)}, {"width": 9}], ids=str)
def test_a_later_key_off_its_neutral_value_is_part_of_the_id(change: dict[str, Any]) -> None:
    assert id_of(Newer(**change)) != id_of(Older())


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "c1d-p64-h64-log_g-builtin-5k-s42"),
        (["model.proj_fn=SW", "data.param=T_eff,log_g", "train.seed=7"], "sw-p64-h64-T_eff-log_g-builtin-5k-s7"),
        (["data=bosz", "data.param=T_eff,log_g,M_H"], "c1d-p64-h64-3labels-hdf5-all-s42"),
        (["data=synth", "data/size=10k"], "c1d-p64-h64-log_g-synth-10k-s42"),
        (["data=synth", "data.endless=true"], "c1d-p64-h64-log_g-endless-5k-s42"),
        (["model=ridge", "data/size=20k"], "ridge-log_g-builtin-20k-s42"),
        (["model=template", "data/size=20k"], "template-log_g-builtin-20k"),
    ],
)
def test_a_folder_is_named_after_what_is_varied(overrides: list[str], name: str) -> None:
    assert default_name(build_config(compose(overrides))) == name


def test_short_counts() -> None:
    assert [short_count(count) for count in (5000, 1_000_000, 1_500_000, 1234, 999)] == [
        "5k",
        "1m",
        "1500k",
        "1234",
        "999",
    ]


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["experiment=demo", "model=ridge", "train.epochs=3", "train.early_stopping.patience=2"], (2, 3)),
        (["model=ridge", "opt=sgd", "opt.lr=1", "loss.name=mse", "train.device=cpu", "data/size=1k"], (1, 2)),
        (["model=ridge", "train.seed=3", "train.threads=2", "noise.noise_level=2", "model.num_alphas=9"], ()),
        (["model=ridge", "noise=none", "train.seed=3", "tracking.name=a", "+tracking.tags.a=b"], (2,)),
        (["model=template", "data.flux_norm=none"], (1,)),
        (["train.epochs=3", "opt=sgd", "opt.lr=1", "data.max_redshift=0", "train.early_stopping.target=null"], ()),
        (["data.subset_seed=3", "opt.step_epochs=3", "model=vit", "model/size=small"], (0, 1)),
    ],
)
def test_typed_keys_without_effect_are_known(overrides: list[str], idle: tuple[int, ...]) -> None:
    keys = [text.lstrip("+").partition("=")[0] for text in overrides]
    assert without_effect(build_config(compose(overrides)), keys) == [keys[index] for index in idle]


def test_counts_are_read() -> None:
    assert [read_count(text) for text in ("5000", "5k", "1M", " 7 ", "007")] == [5000, 5000, 1_000_000, 7, 7]
    assert read_count("0", least=0) == 0


@pytest.mark.parametrize("text", ["abc", "", "k", "-5", "0", "1", "1.5k", "1_000", "5kk", "٣", "9" * 5000])
def test_a_text_that_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a whole number of at least 2, such as 500, 5k or 1m"):
        read_count(text, least=2)
