"""From a command line to a checked configuration."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from specvit.config.build import build_config, to_plain
from specvit.config.compose import compose
from specvit.config.folders import conf_dir
from specvit.config.foreign_keys import tables
from specvit.config.model_kinds import MODEL_KINDS, VIT_GROUPS
from specvit.config.schema import Config
from specvit.config.suggestions import is_known, known_keys, suggest
from specvit.run_folder.identity import identity_of
from specvit.utils.errors import ConfigError

CLASSES = ["model.task_type=cls", "train.early_stopping.monitor=val_accuracy", "train.early_stopping.mode=max"]
EXPERIMENTS = sorted(path.stem for path in conf_dir().glob("experiment/*.yaml"))
NEEDS = {
    "data=hdf5": ["data.file_path=a.h5", "data.val_path=b.h5", "data.test_path=c.h5"],
    "data/size=all": ["data=bosz"],
    "loss=ce": [*CLASSES, "data.class_edges=[2,3]"],
}


def rounds_of_options() -> list[list[str]]:
    """Return overrides that choose one option of every group at once, until every option was chosen once."""
    groups: dict[str, list[str]] = {}
    for path in sorted(conf_dir().glob("*/**/*.yaml")):
        group = str(path.parent.relative_to(conf_dir()))
        if group.partition("/")[0] not in ("experiment", "hydra"):
            groups.setdefault(group, []).append(f"{group}={path.stem}")
    longest = max(map(len, groups.values()))
    return [[options[number % len(options)] for options in groups.values()] for number in range(longest)]


def build(*overrides: str) -> Config:
    return build_config(compose(overrides))


@cache
def default() -> Config:
    return build()


def leaves(plain: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in plain.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name}
    return found


def test_the_default_is_a_small_run_on_builtin_spectra() -> None:
    config = default()
    assert (config.data.kind, config.data.param, config.data.num_samples) == ("builtin", ("log_g",), 5000)
    assert (config.model.proj_fn, config.model.patch_size, config.model.stride_size) == ("C1D", 64, 64)
    assert (config.noise.noise_level, config.loss.name, config.train.seed) == (1.0, "mse", 42)


def test_the_composed_default_lists_every_key_of_the_schema() -> None:
    """With every kind of model in turn."""
    listed = set().union(*(leaves(compose([f"model={kind}"])) for kind in MODEL_KINDS))
    assert listed == {key for key, section in known_keys().items() if not section}


def test_keys_on_the_command_line_reach_the_config() -> None:
    config = build("model.proj_fn=SW", "opt.lr=1.5e-4")
    assert (config.model.proj_fn, config.opt.lr) == ("SW", 1.5e-4)


@pytest.mark.parametrize("overrides", [["model.proj_fn=sw"], ["model/tokenizer=sw", "model.proj_fn=SW"]])
def test_tokenizer_file_and_key_are_the_same_run(overrides: list[str]) -> None:
    assert identity_of(build(*overrides), {}) == identity_of(build("model/tokenizer=sw"), {})


def test_tokenizer_file_and_key_may_not_contradict() -> None:
    for file, key in (("sw", "C1D"), ("c1d", "SW"), ("linear", "SW"), ("sw_overlap8", "CNN")):
        with pytest.raises(ConfigError, match="another setting makes it"):
            compose([f"model/tokenizer={file}", f"model.proj_fn={key}"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [("tiny", (128, 4, 4, 512)), ("small", (256, 6, 8, 1024)), ("base", (512, 6, 8, 2048)), ("demo", (64, 3, 4, 256))],
)
def test_model_sizes(size: str, expected: tuple[int, ...]) -> None:
    model = build(f"model/size={size}").model
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads, model.intermediate_size) == expected


def test_data_sizes_are_what_they_are_called() -> None:
    for name, rows in {"1k": 1000, "50k": 50_000, "500k": 500_000, "1m": 1_000_000}.items():
        assert build(f"data/size={name}").data.num_samples == rows


def test_all_of_the_reference_set_is_minus_one() -> None:
    data = build("data=bosz").data
    assert (data.kind, data.num_samples, data.file_path) == ("hdf5", -1, ("train_200k_*/dataset.h5",))


@pytest.mark.parametrize(
    ("overrides", "stride"),
    [
        (["model.patch_size=32"], 32),
        (["model/tokenizer=sw_overlap8"], 8),
        (["model.patch_size=32", "model.stride_size=4"], 4),
    ],
)
def test_patches_do_not_overlap_unless_asked(overrides: list[str], stride: int) -> None:
    assert build(*overrides).model.stride_size == stride


@pytest.mark.slow
def test_every_experiment_builds_and_is_another_run_than_the_default() -> None:
    default_run = identity_of(default(), {})
    assert not [name for name in EXPERIMENTS if identity_of(build(f"experiment={name}"), {}) == default_run]


@pytest.mark.slow
@pytest.mark.parametrize("options", rounds_of_options(), ids=" ".join)
def test_every_group_option_builds(options: list[str]) -> None:
    chosen = {option.partition("=")[0]: option for option in options}
    needed = [text for option in options for text in NEEDS.get(option, [])]
    chosen |= {text.partition("=")[0]: text for text in needed}
    if chosen["model"] != "model=vit":
        chosen = {group: text for group, text in chosen.items() if group not in VIT_GROUPS}
    if chosen["model"] not in ("model=vit", "model=cnn"):  # they do regression, mostly by least squares, of noisy flux
        chosen = {
            g: text for g, text in chosen.items() if g not in ("loss", "noise", *(c.split("=")[0] for c in CLASSES))
        }
        chosen.pop("data.class_edges", None)
    build(*chosen.values())


def test_every_kind_of_model_takes_an_experiment_of_the_vit() -> None:
    """What files choose for the ViT is left out for the others."""
    for name, kind in MODEL_KINDS.items():
        plain = compose([f"model={name}", "experiment=scaling_50k", "data=builtin"])
        assert set(plain["model"]) == set(kind.config.__dataclass_fields__)


@pytest.mark.parametrize(
    ("override", "key", "canonical"),
    [
        ("loss.name=l2", ("loss", "name"), "mse"),
        ("loss.name=mae", ("loss", "name"), "l1"),
        ("loss.name=MSE", ("loss", "name"), "mse"),
        ("opt.type=rmsprop", ("opt", "type"), "RMSprop"),
        ("data.label_norm=MinMax", ("data", "label_norm"), "minmax"),
        ("model.proj_fn=CNN", ("model", "proj_fn"), "C1D"),
        ("model.task_type=regression", ("model", "task_type"), "reg"),
        ("opt.type=adamw", ("opt", "type"), "AdamW"),
        ("train.precision=32", ("train", "precision"), "32"),
        ("data.param=T_eff,log_g", ("data", "param"), ("T_eff", "log_g")),
        ("data.param=[T_eff,log_g]", ("data", "param"), ("T_eff", "log_g")),
        ('data.param="T_eff,log_g,M_H"', ("data", "param"), ("T_eff", "log_g", "M_H")),
        ("data.param='T_eff, log_g'", ("data", "param"), ("T_eff", "log_g")),
        ("data.param=M_H", ("data", "param"), ("M_H",)),
        ("opt.betas=0.8,0.95", ("opt", "betas"), (0.8, 0.95)),
        ("opt.lr=1", ("opt", "lr"), 1.0),
        ("train.gradient_clip=null", ("train", "gradient_clip"), None),
        ("+tracking.tags.paper=one", ("tracking", "tags"), {"paper": "one"}),
    ],
)
def test_a_value_is_canonical_after_building(override: str, key: tuple[str, str], canonical: object) -> None:
    value = getattr(getattr(build(override), key[0]), key[1])
    assert value == canonical
    assert type(value) is type(canonical)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=demo", "data.param=T_eff,log_g", "+tracking.tags.a=b"],
        ["loss=ce", *CLASSES, "data.class_edges=2,3.5", "train.gradient_clip=null"],
    ],
)
def test_a_config_survives_yaml_and_json(overrides: list[str]) -> None:
    config = build(*overrides)
    assert build_config(yaml.safe_load(yaml.safe_dump(to_plain(config), sort_keys=False))) == config
    assert build_config(json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", True),
        ("train", "epochs", "3"),
        ("train", "epochs", 3.0),
        ("train", "deterministic", 1),
        ("train", "early_stopping", None),
        ("opt", "betas", [0.9, 0.99, 0.999]),
        ("opt", "lr", "3e-4"),
        ("data", "param", []),
        ("tracking", "tags", "a"),
        ("noise", "sigma", 1.0),
    ],
)
def test_a_stored_config_with_a_wrong_type_is_refused_by_key(section: str, key: str, value: object) -> None:
    plain = to_plain(default())
    plain[section][key] = value
    with pytest.raises(ConfigError) as refusal:
        build_config(plain)
    assert refusal.value.where.startswith(f"{section}.{key}")


def test_an_older_spelling_is_refused_with_a_name_that_exists() -> None:
    for name, others in tables()["keys"].items():
        assert is_known(name)
        unknown = [old for old in others.split() if not is_known(old) and old not in ("model", "loss", "noise", "opt")]
        assert {suggest(old) for old in unknown} <= {f"it is called {name} here"}
    with pytest.raises(ConfigError, match=r"it is called train\.epochs here"):
        compose(["train.ep=1"])


def test_all_faults_of_a_configuration_are_reported_together() -> None:
    plain = {**to_plain(default()), "training": {"lr": 1.0, "early_stopping": {"mode": "max"}}, "plots": [1]}
    plain["model"] |= {"type": "ViT", "head_dim": 32, "image_size": 4096, "dropout": 2.0}
    with pytest.raises(ConfigError) as refusal:
        build_config(plain)
    assert str(refusal.value).splitlines() == [
        "7 faults:",
        "  training.lr: unknown key; it is called opt.lr here.",
        "  training.early_stopping.mode: unknown key; it is called train.early_stopping.mode here.",
        "  plots: unknown key; leave it out: every run draws its own figures, "
        "and `specvit analysis` those of many runs.",
        "  model.type: unknown key; it is called model.kind here.",
        "  model.head_dim: unknown key; it is model.hidden_size / model.num_attention_heads: set these.",
        "  model.image_size: unknown key; leave it out: a spectrum has the pixels that its file has.",
        "  model.dropout: expects a number from 0 to 0.95, not 2.0.",
    ]


def test_all_unknown_keys_of_a_command_are_reported_together() -> None:
    with pytest.raises(ConfigError) as refusal:
        compose(["opt.lrr=1", "model.image_size=4096", "train.epochs=3", "data.source=BOSZ"])
    assert str(refusal.value).splitlines() == [
        "3 faults:",
        "  opt.lrr: unknown key; did you mean opt.lr?",
        "  model.image_size: unknown key; leave it out: a spectrum has the pixels that its file has.",
        "  data.source: unknown key; choose data=bosz, or data=hdf5 with data.file_path.",
    ]


def test_a_key_is_suggested_only_where_it_is_close() -> None:
    keys = {
        "opt.lrr": "opt.lr",
        "train.batch_sise": "train.batch_size",
        "trakcing.name": "tracking.name",
        "model.colour": "",
        "data.origin": "",
        "plans.type": "",
    }
    assert {key: suggest(key) for key in keys} == {
        key: f"did you mean {right}?" if right else "`specvit train --cfg job` lists every key"
        for key, right in keys.items()
    }


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user's own `./conf` with an experiment, an option and a site's defaults."""
    files = {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /loss: soft\nopt:\n  lr: 2.0e-3\n",
        "loss/soft.yaml": "defaults: [mse, _self_]\nname: huber\nhuber_delta: 0.3\n",
        "local.yaml": "opt:\n  lr: 7.0e-4\n  eta_min: 1.0e-6\ntracking:\n  folder: elsewhere\n",
    }
    for name, text in files.items():
        (path := tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf"


def test_a_users_own_conf_lies_over_the_bundled_one(own_conf: Path) -> None:
    config = build("experiment=mine")
    assert (config.loss.name, config.loss.huber_delta, config.opt.lr) == ("huber", 0.3, 2e-3)
    assert config.model == build("experiment=demo_c1d").model  # the bundled files are still there


@pytest.mark.parametrize(
    ("overrides", "lr"), [([], 7e-4), (["opt.lr=1e-3"], 1e-3), (["experiment=mine"], 2e-3), (["opt=sgd"], 1e-2)]
)
def test_local_yaml_gives_defaults_only(own_conf: Path, overrides: list[str], lr: float) -> None:
    config = build(*overrides)
    assert (config.opt.lr, config.opt.eta_min, config.tracking.folder) == (lr, 1e-6, "elsewhere")


def test_an_unknown_key_in_a_users_file_is_refused(own_conf: Path) -> None:
    (own_conf / "experiment" / "mine.yaml").write_text("# @package _global_\nopt:\n  learning_rate: 1.0\n")
    with pytest.raises(ConfigError, match=r"opt\.learning_rate: unknown key"):
        build("experiment=mine")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.yaml", "a: 1\n", "would replace them all"),
        ("local.yaml", "model: {a: [\n", "is not valid YAML"),
        ("local.yaml", "a: &a [*a]\n", "line 1: an alias refers to itself"),
    ],
)
def test_a_conf_folder_that_cannot_be_laid_over_ours_is_refused(
    name: str, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / name).write_text(text)
    with pytest.raises(ConfigError, match=expected):
        compose([])
