"""From a command line to a study: `sweep.*` options, the launcher, typed settings, and grids without a file."""

import os
from functools import cache, partial
from pathlib import Path

import pytest
from refusals import unlike

from specvit.cluster.slots import LauncherConfig
from specvit.commands.train import main, study_asked_for
from specvit.config import launcher
from specvit.config.folders import conf_dir
from specvit.config.overrides import bracket_lists
from specvit.study import request
from specvit.study.grid import points_of
from specvit.study.options import IN_BACKGROUND, SweepOptions, find_study, split_options
from specvit.study.request import StudyRequest, study_request
from specvit.study.yaml_schema import Typed
from specvit.utils.errors import ConfigError

GRID = "grids: [{axes: {model/tokenizer: [c1d, sw]}}]\nseeds: [1, 2]\n"
SEARCH = "search: {space: {opt.lr: [1, 2]}, metrics: {val_r2: maximize}, trials: 3}\n"


compose_launcher = cache(partial(lambda compose, *overrides: compose(overrides), launcher.compose_launcher))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two studies; a launcher that was composed before is not composed again."""
    monkeypatch.setattr(request, "compose_launcher", lambda overrides: dict(compose_launcher(*overrides)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tokens.yaml").write_text(GRID)
    (tmp_path / "sweeps" / "rates.yaml").write_text(SEARCH)
    return tmp_path


def order(name: str | None, *overrides: str) -> StudyRequest:
    return study_request(name, bracket_lists(overrides, grid=name is None), ())


# options


OPTIONS = [
    ("sweep.name=sw-1.5", "name", "sw-1.5"),
    ("sweep.name=12", "name", "12"),
    ("sweep.name=null", "name", None),
    ("sweep.folder=some where", "folder", "some where"),
    ("sweep.dry_run=true", "dry_run", True),
    ("+sweep.retry=True", "retry", True),
    ("sweep.max_parallel=3", "max_parallel", 3),
    ("sweep.trials=null", "trials", None),
    ("sweep.hours=2", "hours", 2.0),
    ("sweep.hours=5e-1", "hours", 0.5),
    ("sweep.failures=1", "failures", 1),
    ("sweep.health_minutes=7.5", "health_minutes", 7.5),
    ("sweep.storage=sqlite:///a=b.db", "storage", "sqlite:///a=b.db"),
]


def test_an_option_is_read() -> None:
    wrong = []
    for text, name, value in OPTIONS:
        options, others = split_options(["opt.lr=1", text, "model/size=tiny"])
        found = getattr(options, name)
        alone = options == SweepOptions(**{name: value})
        if (found, type(found), alone, others) != (value, type(value), True, ["opt.lr=1", "model/size=tiny"]):
            wrong.append((text, options, others))
    assert wrong == []


BAD_OPTIONS = [
    ("sweep.dryrun=true", "sweep.dryrun: unknown key; did you mean dry_run? there are name, folder, dry_run, "),
    ("sweep.=1", "sweep.: unknown key"),
    ("sweep.dry_run=1", "sweep.dry_run: expects true or false, not 1"),
    ("sweep.dry_run=maybe", "sweep.dry_run: expects true or false, not 'maybe'"),
    ("sweep.dry_run=[", "sweep.dry_run: expects true or false, not '['"),
    ("sweep.max_parallel=1.5", "sweep.max_parallel: expects a whole number of at least 1, not 1.5"),
    ("sweep.max_parallel=true", "sweep.max_parallel: expects a whole number of at least 1, not True"),
    ("sweep.max_parallel=0", "sweep.max_parallel: expects a whole number of at least 1, not 0"),
    ("sweep.trials=-1", "sweep.trials: expects a whole number of at least 1, not -1"),
    ("sweep.hours=1h", "sweep.hours: expects a number above 0, not '1h'"),
    ("sweep.hours=true", "sweep.hours: expects a number above 0, not True"),
    ("sweep.hours=.nan", "sweep.hours: expects a number above 0, not nan"),
    ("sweep.hours=.inf", "sweep.hours: expects a number above 0, not inf"),
    ("sweep.folder=null", "sweep.folder: expects text, not None"),
    ("sweep.name=../other", "sweep.name: '../other' cannot be a folder's name"),
    ("sweep.name=.", "sweep.name: '.' cannot be a folder's name"),
    *((f"sweep.{key}=", f"sweep.{key}: is empty") for key in ("name", "folder", "storage", "trials")),
]


def test_an_option_that_is_none_is_refused() -> None:
    assert unlike(BAD_OPTIONS, lambda text: split_options([text])) == []


def test_all_faulty_options_are_reported_together() -> None:
    with pytest.raises(ConfigError) as refusal:
        split_options(["sweep.dryrun=true", "sweep.hours=-1", "sweep.trials=3"])
    assert [fault.where for fault in refusal.value.parts] == ["sweep.dryrun", "sweep.hours"]


def test_options_need_a_study(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt.lr=1", "sweep.retry=true"]) == 2
    said = capsys.readouterr().err
    assert said == "specvit: sweep.retry: needs a study; name a study with sweeps=NAME, or add -m for a grid.\n"
    assert [path.name for path in place.iterdir()] == ["sweeps"]


@pytest.mark.parametrize("key", ["trials=3", "storage=sqlite:///a.db"])
def test_what_only_a_search_takes_is_refused_for_a_grid(key: str) -> None:
    assert order("rates", f"sweep.{key}").options != SweepOptions()
    for name, grid in (("tokens", []), (None, ["opt.lr=1,2"])):
        with pytest.raises(ConfigError, match="needs a search, and this is a grid"):
            order(name, f"sweep.{key}", *grid)


def test_one_command_starts_one_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweeps=tokens", "sweeps=rates"]) == 2
    assert capsys.readouterr().err == "specvit: sweeps: names 2 studies; start them one after the other.\n"
    assert study_asked_for([], ["sweeps=tokens", "sweeps=tokens"], ()) is not None


# a study by its name


def test_typed_settings_stand_beside_the_file() -> None:
    found = order("tokens", "sweeps=tokens", "opt.lr=1e-3", "train.epochs=2", "opt.lr=2e-3", "sweep.hours=1")
    assert list(found.typed.items()) == [("train.epochs", "2"), ("opt.lr", "2e-3")]  # the last one holds
    assert all(type(value) is Typed for value in found.typed.values())
    assert (found.definition.name, found.options.hours, found.launcher) == ("tokens", 1.0, LauncherConfig())


@pytest.mark.parametrize(("text", "seeds"), [("1,2", ["1", "2"]), ("range(3,6)", ["3", "4", "5"]), ("7", ["7"])])
def test_seeds_may_be_typed_anew(text: str, seeds: list[str]) -> None:
    found = order("tokens", f"train.seed={text}")
    assert [str(point.settings["train.seed"]) for point in points_of(found.definition, found.typed)] == seeds * 2


BAD = [
    ("tokens", "opt.lr=1,2", "opt.lr: has several values; a study's axes are in its file"),
    ("rates", "train.seed=1,2", "train.seed: has several values"),
    ("tokens", "opt.lr=interval(1,2)", "is an interval, from which a grid can take no values"),
    ("token", "opt.lr=1", "sweeps: has no study 'token'; did you mean tokens? there are "),
    (None, "opt.lr=shuffle(1,2)", "opt.lr: is in another order each time; list the values"),
    (None, "opt.lr=shuffle(range(1,3))", "opt.lr: is in another order each time; list the values"),
    (None, "+tracking.tags.a=1,2", "tracking.tags.a: has several values, but none makes another run"),
    ("xyz", "opt.lr=1", "sweeps: has no study 'xyz'; there are "),
    ("tokens", "hydra/launcher=basic", "hydra/launcher: basic is Hydra's, which can neither resume runs nor record"),
    (None, "hydra/launcher=basic", "hydra/launcher: basic is Hydra's, which can neither resume runs nor record"),
    ("tokens", "hydra/launcher=locl", "hydra/launcher: has no option 'locl'; did you mean local?"),
    ("tokens", "hydra.launcher.slots=2", "hydra.launcher.slots: needs slots; add hydra/launcher=local"),
    (None, "opt.lr=interval(1,2)", "opt.lr=interval(1,2): is an interval, from which a grid can take no values"),
    (None, "opt.lrr=1,2", "opt.lrr: unknown key; did you mean opt.lr?"),
    (None, "model/size=tiny,huge", "model/size: has no option 'huge'"),
    (None, "model/size=glob(x*)", "model/size=glob(x*): matches no option"),
]


def test_what_a_study_or_a_grid_cannot_take_is_refused() -> None:
    assert unlike([((name, override), words) for name, override, words in BAD], lambda case: order(*case)) == []


def test_a_bundled_study_is_found_and_a_users_own_lies_over_it(place: Path) -> None:
    assert find_study("why_sw_failed_small").parent.samefile(conf_dir().parent / "sweeps")
    own = place / "sweeps" / "why_sw_failed_small.yaml"
    own.write_text(GRID)
    assert find_study("why_sw_failed_small") == own


def test_a_launcher_is_chosen_and_set() -> None:
    found = order("tokens", "hydra/launcher=local", "hydra.launcher.slots=3", "+hydra.launcher.jobs_per_gpu=2")
    assert found.launcher == LauncherConfig(kind="local", slots=3, jobs_per_gpu=2)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.slot: unknown key; did you mean slots\?"):
        order("tokens", "hydra/launcher=local", "hydra.launcher.slot=3")


# a grid without a file


AXES = [
    (["opt.lr=1e-3,1e-5"], {"opt.lr": [1e-3, 1e-5]}),
    (
        ["model/tokenizer=c1d,sw", "train.seed=range(1,4)"],
        {"model/tokenizer": ["c1d", "sw"], "train.seed": [1, 2, 3]},
    ),
    (["model/size=glob(*)"], {"model/size": ["base", "demo", "small", "tiny"]}),
    (["train.gradient_clip=null,0.5"], {"train.gradient_clip": [None, 0.5]}),
    (["opt.betas=[0.9,0.99],[0.8,0.9]"], {"opt.betas": [[0.9, 0.99], [0.8, 0.9]]}),
    (["data.root='a, b','true'"], {"data.root": ["a, b", "true"]}),
    (["train.precision=32,16-mixed"], {"train.precision": [32, "16-mixed"]}),
    (["train.compile=true,false"], {"train.compile": [True, False]}),
    (["data.param=T_eff,log_g"], {"data.param": ["T_eff", "log_g"]}),
    (["data.param=T_eff,[T_eff,log_g]"], {"data.param": ["T_eff", ["T_eff", "log_g"]]}),
    (["data.param=[T_eff,log_g]"], {}),
    (["model=cnn", "model.channels=8,16"], {"model.channels": [8, 16]}),
    (["opt.betas=0.8,0.95"], {}),  # one number is no value
]


def test_swept_overrides_are_the_axes() -> None:
    wrong = []
    for overrides, expected in AXES:
        (grid,) = order(None, *overrides).definition.grids
        if (found := {axis.keys[0]: [value for (value,) in axis.values] for axis in grid.axes}) != expected:
            wrong.append((overrides, found))
    assert wrong == []


def test_the_same_grid_has_the_same_name() -> None:
    names = [
        order(None, *overrides).definition.name
        for overrides in (
            ["opt.lr=1,2", "train.epochs=3", "train.batch_size=4"],
            ["train.batch_size=4", "opt.lr=1,2", "train.epochs=3", "sweep.retry=true", "hydra/launcher=local"],
            ["opt.lr=1,3", "train.epochs=3", "train.batch_size=4"],
        )
    ]
    assert names[0] == names[1] != names[2]
    assert order(None, "opt.lr=1,2", "train.epochs=3").typed == {"train.epochs": "3"}


def test_a_study_is_asked_for_by_name_or_with_m() -> None:
    cases = [
        ([], ["opt.lr=1"], None),
        (["--cfg", "job"], ["opt.lr=1"], None),
        ([], ["sweeps=tokens"], "tokens"),
        (["-m"], ["sweeps=tokens"], "tokens"),
        (["--multirun"], ["opt.lr=1,2"], "grid-"),
    ]
    for flags, overrides, name in cases:
        asked = study_asked_for(flags, overrides, ("the", "words"))
        assert (asked and asked.words) == (("the", "words") if name else None), (flags, overrides)
        assert not (asked and name) or asked.definition.name.startswith(name)


def test_the_background_makes_a_single_run_a_study_and_a_command_there_stays_in_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for word in ("sweep.detach=true", "sweep.detach=TRUE", "+sweep.detach=yes", "sweep.detach=on"):
        asked = study_asked_for({}, ["opt.lr=1", word], ())
        assert asked and asked.detaches, word
        monkeypatch.setenv(IN_BACKGROUND, "1")
        there = study_asked_for({}, ["opt.lr=1", word], ())
        assert there and not there.detaches and IN_BACKGROUND not in os.environ, word
    with pytest.raises(ConfigError, match=r"sweep\.detach: needs a study"):
        study_asked_for({}, ["opt.lr=1", "sweep.detach=false"], ())


def test_a_study_that_cannot_be_meant_is_refused() -> None:
    cases = [
        ((["--cfg", "job"], ["sweeps=tokens"]), "does not go with --cfg"),
        (([], ["sweeps="]), "needs a name"),
        (([], ["sweep.retry=true"]), "needs a study"),
    ]
    assert unlike(cases, lambda case: study_asked_for(*case, ())) == []
