"""What wins: a typed key over a typed group, that over an experiment, over conf/local.yaml, over bundled defaults.

And Hydra's own settings: the launcher is taken from a file as from the command line, all else is refused by name.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from specvit.cluster.slots import LauncherConfig
from specvit.commands.train import main, study_asked_for
from specvit.config.build import build_config, to_plain
from specvit.config.compose import Composer, compose
from specvit.config.precedence import Replaced, replaced_lines
from specvit.utils.errors import ConfigError

HEADER = "# @package _global_\n"


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside a `./conf` whose experiment `best` is the configuration of a run, as its config.yaml has it."""
    monkeypatch.chdir(tmp_path)
    own = [
        "data/size=1k",
        "model.hidden_size=32",
        "loss=l1",
        "noise.noise_level=0.3",
        "opt.lr=2e-3",
        "data.param=T_eff",
    ]
    best = yaml.safe_dump(to_plain(build_config(compose(own))))
    for group in ("experiment", "tracking"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "best.yaml").write_text(HEADER + best)
    server = "defaults: [default, _self_]\nexperiment: shared\nuri: http://server:5000\n"
    (tmp_path / "conf" / "tracking" / "server.yaml").write_text(server)
    return tmp_path / "conf"


def said(*overrides: str) -> tuple[dict[str, Any], list[str]]:
    replaced: list[Replaced] = []
    return compose(overrides, replaced=replaced), replaced_lines(replaced)


SIZES = "model.num_hidden_layers=3, model.num_attention_heads=4, model.intermediate_size=256"
TYPED = {
    "data/size=2k": ({"data.num_samples": 2000}, "data.num_samples=1000"),
    "model/size=small": ({"model.hidden_size": 256, "model.patch_size": 64}, f"model.hidden_size=32, {SIZES}"),
    "model/tokenizer=sw": ({"model.proj_fn": "SW", "model.patch_size": 64}, "model.proj_fn=C1D"),
    "model/tokenizer=sw_p32": (
        {"model.patch_size": 32, "model.stride_size": 32},
        "model.proj_fn=C1D, model.patch_size=64, model.stride_size=64",
    ),
    "loss=huber": ({"loss.name": "huber"}, "loss.name=l1"),
    "opt=sgd": ({"opt.type": "SGD", "opt.lr": 0.01}, "opt.type=AdamW, opt.lr=0.002"),
    "noise=none": ({"noise.noise_type": "none", "noise.noise_level": 0.3}, "noise.noise_type=heteroscedastic"),
    "data=synth": ({"data.kind": "synth", "data.param": "T_eff", "data.num_samples": 1000}, "data.kind=builtin"),
    "train=scaling": (
        {"train.epochs": 200, "train.early_stopping.patience": 20},
        "train.epochs=15, train.batch_size=128, train.precision=auto, train.early_stopping.patience=null",
    ),
    "tracking=server": (
        {"tracking.uri": "http://server:5000"},
        "tracking.experiment=specvit, tracking.uri=null",
    ),
    "model=ridge": ({"model.kind": "ridge", "model.num_alphas": 33}, "model.kind=vit"),
}


def leaf(plain: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        plain = plain[name]
    return plain[0] if isinstance(plain, list) else plain


def wrong(choices: Iterable[str], origin: str, *before: str) -> list[Any]:
    """Return the choices that, typed after `before`, lead to other values or words than expected, with these."""
    found = {choice: said(*before, choice) for choice in choices}
    values = {choice: {key: leaf(plain, key) for key in TYPED[choice][0]} for choice, (plain, _) in found.items()}
    lines = {choice: [f"{choice} replaces {TYPED[choice][1]} of {origin}"] for choice in found}
    return [(c, values[c], found[c][1]) for c in found if (values[c], found[c][1]) != (TYPED[c][0], lines[c])]


def test_a_typed_group_wins_over_the_keys_of_an_experiment_and_says_so(conf: Path) -> None:
    assert not wrong(["data/size=2k", "opt=sgd"], "experiment best", "experiment=best")
    many = Composer()
    assert (many(["experiment=best", "opt=sgd"]), replaced_lines(many.replaced)) == said("experiment=best", "opt=sgd")


@pytest.mark.slow
def test_every_typed_group_wins_over_the_keys_of_an_experiment_or_a_site(conf: Path) -> None:
    assert not wrong(TYPED, "experiment best", "experiment=best")
    (conf / "local.yaml").write_text((conf / "experiment" / "best.yaml").read_text())  # a site's defaults, the same
    assert not wrong(TYPED, "conf/local.yaml")


def test_what_is_typed_as_a_key_wins_over_all_and_nothing_is_said_of_it(conf: Path) -> None:
    plain, lines = said("data.num_samples=3000", "experiment=best", "data/size=2k")
    assert (plain["data"]["num_samples"], lines) == (3000, [])
    with pytest.raises(ConfigError, match=r"model/tokenizer=sw means model\.proj_fn=SW, but another setting"):
        compose(["experiment=best", "model/tokenizer=sw", "model.proj_fn=C1D"])


def test_the_order_from_weak_to_strong(conf: Path) -> None:
    (conf / "local.yaml").write_text("opt: {lr: 0.5, weight_decay: 0.5}\ndata: {root: /site}\n")
    (conf / "experiment" / "rate.yaml").write_text(f"{HEADER}opt: {{lr: 0.25}}\n")
    rates = [compose(words)["opt"]["lr"] for words in ([], ["experiment=rate"], ["experiment=rate", "opt=sgd"])]
    assert rates == [0.5, 0.25, 0.01]
    assert compose(["opt.lr=3", "opt=sgd", "experiment=rate"])["opt"]["lr"] == 3
    plain, lines = said("experiment=rate", "opt=sgd", "data=bosz")
    assert lines == ["opt=sgd replaces opt.lr=0.25 of experiment rate"]
    assert plain["opt"]["weight_decay"] == 0.5  # the same in all of opt's files: a default, which a site may set
    assert plain["data"]["root"] == "/site"  # no option of data says where a site keeps it


def test_a_choice_in_an_experiments_defaults_gives_way_as_its_keys_do(conf: Path) -> None:
    text = f"{HEADER}defaults: [override /data/size: 10k, override /opt: sgd]\n"
    (conf / "experiment" / "chosen.yaml").write_text(text)
    (conf / "experiment" / "based.yaml").write_text(f"{HEADER}defaults: [best, _self_]\n")
    assert compose(["experiment=chosen"])["data"]["num_samples"] == 10_000
    plain, lines = said("experiment=chosen", "data/size=2k")
    assert (plain["data"]["num_samples"], plain["opt"]["type"], lines) == (2000, "SGD", [])
    plain, lines = said("experiment=based", "data/size=2k")
    assert lines == ["data/size=2k replaces data.num_samples=1000 of experiment based"]


def test_files_to_read_are_not_an_options_to_take_away(conf: Path) -> None:
    paths = "file_path: a.h5, val_path: b.h5, test_path: c.h5"
    (conf / "experiment" / "survey.yaml").write_text(f"{HEADER}data: {{kind: hdf5, {paths}, num_samples: -1}}\n")
    plain, lines = said("experiment=survey", "data=hdf5")
    assert (plain["data"]["file_path"], lines) == ("a.h5", [])
    plain, lines = said("experiment=survey", "data=builtin", "data/size=2k")
    assert (plain["data"]["file_path"], plain["data"]["kind"]) == (None, "builtin")
    build_config(plain)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["-m", "data/size=2k,5k"], ["sweeps=sizes"]])
def test_studies_and_grids_follow_and_say_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").mkdir()
    text = "overrides: {experiment: best}\ngrids: [{cells: {a: {loss: mse}, b: {}}, axes: {data/size: [2k, 5k]}}]\n"
    (tmp_path / "sweeps" / "sizes.yaml").write_text(text)
    typed = [] if "sweeps=sizes" in words else ["experiment=best"]
    assert main([*words, *typed, "model=ridge", "loss.name=mse", "sweep.dry_run=true"]) in (0, 2)
    out = capsys.readouterr().out
    for size in ("2k", "5k"):
        assert f"data/size={size} replaces data.num_samples=1000 of experiment best\n" in out


def test_the_run_and_cfg_job_show_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "experiment=best", "model/size=small"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["hidden_size"] == 256
    assert main(["--cfg=job", "--package", "model", "experiment=best"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["hidden_size"] == 32
    assert main(["experiment=best", "opt=sgd", "train.device=cuda:99"]) == 2
    assert "opt=sgd replaces opt.type=AdamW, opt.lr=0.002 of experiment best\n" in capsys.readouterr().out
    assert main(["experiment=demo", "model=ridge", "train.epochs=3", "train.device=cuda:99"]) == 2
    note = "note: train.epochs has no effect on the result of this run (model.kind=ridge)\n"
    assert note in capsys.readouterr().out


# experiments without a header


def test_an_experiment_needs_no_header(conf: Path) -> None:
    file = conf / "experiment" / "best.yaml"
    before = compose(["experiment=best"])
    file.write_text(file.read_text().removeprefix(HEADER))
    assert compose(["experiment=best"]) == before


BROKEN = {
    b"opt: {lr: 1.0}\n# caf\xe9\n": "is not UTF-8 text",
    b"opt: " + 3000 * b"[" + 3000 * b"]": "is nested too deeply",
    b"- opt\n": "expects keys with values",
    b"opt: {lr: [\n": "is not valid YAML",
    b"opt: {lr: 1.0}\nopt: {lr: 2.0}\n": "is not valid YAML",
}


@pytest.mark.parametrize("file", ["experiment/broken.yaml", "local.yaml"])
def test_a_file_that_cannot_be_read_is_named(file: str, conf: Path, refused_here: Callable[[list[str]], str]) -> None:
    for text, words in BROKEN.items():
        (conf / file).write_bytes(text)
        sentence = refused_here(["experiment=broken"] if file != "local.yaml" else [])
        assert sentence.startswith(f"specvit: {conf / file}: {words}")


@pytest.fixture
def refused_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[list[str]], str]:
    """Return a function that returns the one sentence of a refusal, after which no run and no study is there."""

    def run(arguments: list[str]) -> str:
        assert main(arguments) == 2, arguments
        shown = capsys.readouterr()
        assert re.fullmatch(r"specvit: [^\n]+[.?]\n", shown.err), shown.err
        assert not list(tmp_path.glob("outputs/*")) + list(tmp_path.glob("multirun/*"))
        return shown.err

    return run


# Hydra's own settings


@pytest.mark.slow
def test_a_launcher_in_an_experiment_is_taken_as_if_typed(conf: Path) -> None:
    launch = f"{HEADER}defaults:\n  - override /hydra/launcher: local\nhydra: {{launcher: {{slots: 3}}}}\n"
    (conf / "experiment" / "launch.yaml").write_text(launch)
    local = LauncherConfig(kind="local", slots=3)
    for flags, words in (([], []), (["-m"], ["train.seed=1,2"])):
        order = study_asked_for(flags, ["experiment=launch", *words], ())
        assert order is not None and order.launcher == local
    order = study_asked_for([], ["experiment=launch", "hydra.launcher.slots=2"], ())
    assert order is not None and order.launcher == LauncherConfig(kind="local", slots=2)
    order = study_asked_for(["-m"], ["experiment=launch", "hydra/launcher=inprocess"], ())
    assert order is not None and order.launcher == LauncherConfig()
    with pytest.raises(ConfigError, match="some choose another launcher than others; type hydra/launcher"):
        study_asked_for(["-m"], ["experiment=launch,best"], ())
    assert study_asked_for([], ["experiment=best"], ()) is None


@pytest.mark.slow
def test_a_site_may_set_its_cluster_and_its_launcher(conf: Path) -> None:
    (conf / "local.yaml").write_text("hydra: {launcher: {partition: gpu}}\n")
    assert study_asked_for([], ["opt.lr=1"], ()) is None  # says nothing to a run in the command's process
    order = study_asked_for(["-m"], ["opt.lr=1", "hydra/launcher=slurm"], ())
    assert order is not None and order.launcher.partition == "gpu"
    (conf / "local.yaml").write_text("defaults: [override /hydra/launcher: slurm]\n")
    order = study_asked_for([], ["opt.lr=1"], ())
    assert order is not None and order.launcher.kind == "slurm"
    (conf / "local.yaml").write_text("hydra: {launcher: {partion: gpu}}\n")
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.partion: unknown key"):
        study_asked_for(["-m"], ["hydra/launcher=slurm"], ())


FILES = {
    "hydra: {mode: MULTIRUN, sweeper: {params: {train.seed: '1,2'}}}": "hydra.mode: has no effect in specvit; add -m",
    "hydra: {run: {dir: out}, job: {chdir: true}}": "hydra.run.dir: has no effect in specvit; set tracking.folder",
    "hydra: {sweeper: {params: {a: 1}}}": "hydra.sweeper.params.a: has no effect in specvit; type the values after -m",
    "hydra: {searchpath: ['file:///x']}": "hydra.searchpath: has no effect in specvit; put your files into ./conf",
    "hydra: 1": "hydra: has no effect in specvit",
    "defaults: [override /hydra/job_logging: default]": "hydra/job_logging: has no effect in specvit",
    "defaults: [override /hydra/sweeper: basic]": "hydra/sweeper: has no effect in specvit; type the values after -m",
    "defaults: [override /hydra/sweeper: optuna]": "hydra/sweeper=optuna: has no effect in specvit; specvit searches",
    "defaults: [override /hydra/launcher: submitit_slurm]": "hydra/launcher: submitit_slurm is Hydra's",
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]], ids=str)
def test_other_settings_of_hydra_in_a_file_are_refused(
    flags: list[str], conf: Path, refused_here: Callable[[list[str]], str]
) -> None:
    for text, refusal in FILES.items():
        (conf / "experiment" / "other.yaml").write_text(f"{HEADER}{text}\n")
        assert f"{conf}/experiment/other.yaml: {refusal}" in refused_here([*flags, "experiment=other"])


TYPED_HYDRA = {
    "hydra=1": "hydra: has no effect",
    "hydra={verbose:true}": "hydra: has no effect",
    "hydra.verbose=foo": "hydra.verbose: has no effect in specvit; set tracking.progress",
    "hydra.run.dir=out": "set tracking.folder=FOLDER",
    "hydra.sweep.dir=out": "set sweep.folder=FOLDER",
    "hydra.mode=MULTIRUN": "add -m",
    "hydra.searchpath=[file:///nope]": "put your files into ./conf",
    "hydra.sweeper.params={train.seed:'1,2'}": "type the values after -m",
    "+hydra.sweeper.params={a:1}": "type the values after -m",
    "hydra.job.chdir=true": "a run works in the folder from which the command is started",
    "hydra.help.app_name=x": "hydra.help.app_name: has no effect",
    "hydra.callbacks={}": "hydra.callbacks: has no effect",
    "hydra/sweeper=other": "hydra/sweeper: has no effect",
    "hydra/sweeper=optuna": "hydra/sweeper=optuna: has no effect in specvit; specvit searches by Optuna",
    "hydra.sweeper.n_trials=20": "type sweep.trials=N",
    "hydra.sweeper.sampler.seed=1": "write a study with `search:`",
    "hydra/launcher=submitit_slurm": "submitit_slurm is Hydra's, which can neither resume runs nor record how they "
    "end; use hydra/launcher=slurm",
    "hydra/launcher=submitit_local": "use hydra/launcher=local",
    "hydra/launcher=joblib": "use hydra/launcher=local",
    "hydra/launcher=basic": "use hydra/launcher=inprocess",
    "hydra/job_logging=default": "hydra/job_logging: has no effect",
    "~hydra.run": "hydra.run: has no effect",
    "hydra.launcher.slots=2": "needs slots; add hydra/launcher=local",
    "hydra.launcher.slos=2": "hydra.launcher.slos: unknown key; did you mean slots?",
    "hydra.launcher={slots:2}": "hydra.launcher: is a group of files",
    "hydra.launcher=local": "choose one with hydra/launcher=local",
    "hydra/launcher=locl": "did you mean local?",
    "hydra/launcher=local,slurm": "gives several values",
}


def test_typed_settings_of_hydra_are_refused(refused_here: Callable[[list[str]], str]) -> None:
    heard = {word: refused_here([word]) for word in TYPED_HYDRA}
    assert not {word: sentence for word, sentence in heard.items() if TYPED_HYDRA[word] not in sentence}


@pytest.mark.slow
def test_typed_settings_of_hydra_are_refused_beside_a_grid(refused_here: Callable[[list[str]], str]) -> None:
    heard = {word: refused_here([word, "-m", "train.seed=1,2"]) for word in TYPED_HYDRA}
    assert not {word: sentence for word, sentence in heard.items() if TYPED_HYDRA[word] not in sentence}


FLAGS = {
    "--resolve": "--resolve: needs --cfg job",
    "--package opt": "--package: needs --cfg job",
    "--package": "--package: needs a value",
    "--cfg": "--cfg: needs a value; such as --cfg job",
    "--cfg all": "--cfg: expects job or hydra, not 'all'",
    "--cfg job --package optt": "--package optt: unknown section",
    "--info config": "--info: expects defaults or",
    "--cfg job --info plugins": "--cfg: does not go with --info",
    "--hydra-help": "--hydra-help: unknown flag; did you mean --help?",
    "--experimental-rerun config.pickle": "--experimental-rerun: unknown flag",
    "--config-name other": "--config-name: unknown flag",
    "--config-dir /tmp": "--config-dir: unknown flag",
    "--config-path=/tmp": "--config-path=/tmp: unknown flag",
    "--multi": "--multi: unknown flag; did you mean --multirun?",
    "-x": "-x: unknown flag",
}


def test_a_flag_without_an_effect_is_refused(refused_here: Callable[[list[str]], str]) -> None:
    heard = {line: refused_here(line.split()) for line in FLAGS}
    assert not {line: sentence for line, sentence in heard.items() if FLAGS[line] not in sentence}
