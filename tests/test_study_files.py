"""Every study in `sweeps/` says what it asks, and each of its runs can be one."""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from specvit.commands.train import main
from specvit.config.build import build_config
from specvit.config.compose import Composer
from specvit.config.folders import conf_dir
from specvit.config.schema import Config, TrackingConfig
from specvit.study.grid import as_overrides, points_of
from specvit.study.plan import try_space
from specvit.study.schema import Definition, read_definition
from specvit.study.search_space import Dimension, Search
from specvit.study.store import StudyFolder
from specvit.study.yaml_schema import Settings, matches

FILES = {path.stem: path for path in sorted((conf_dir().parent / "sweeps").glob("*.yaml"))}
compose = Composer()
ON_OBSERVED_STARS = {"miles_models"}
ABOUT_SMALL_NETWORKS = {
    "recipe_causes_small",
    "recipe_parts_small",
    "recipe_patch_small",
    "recipe_search_small",
    "recipe_small",
    "error_bars_small",
}
"""Studies that ask about a small network itself, so have no full form."""


@cache
def study(name: str) -> Definition:
    return read_definition(FILES[name])


def search_of(name: str) -> Search:
    search = study(name).search
    assert search is not None
    return search


GRIDS = [name for name in FILES if study(name).grids]
SEARCHES = [name for name in FILES if study(name).search]


def build(settings: Settings) -> Config:
    return build_config(compose(as_overrides(settings)))


def draw(name: str, wanted: Dimension, value: object, rng: random.Random) -> Settings:
    """Return a random point of a search's space that has `value` for `wanted` and is not forbidden."""
    for _ in range(1000):
        chosen: Settings = {}
        given = False
        for dimension in search_of(name).space:
            if matches(chosen, dimension.when):
                given |= dimension is wanted
                chosen |= dimension.settings(value if dimension is wanted else rng.choice(dimension.examples()))
        settings = {**study(name).overrides, **chosen}
        if given and not any(matches(settings, rule) for rule in search_of(name).forbid):
            return settings
    raise AssertionError(f"{wanted.key}={value} is never asked for")


def test_a_study_opens_with_its_question_cost_expectation_and_source() -> None:
    opened = {}
    for name, path in FILES.items():
        head = path.read_text().split("overrides:")[0].splitlines()
        opened[name] = [line.split()[1] for line in head if not line.startswith("#  ")]
    assert opened == {name: ["Question:", "Cost:", "Expected:", "Source:"] for name in FILES}
    assert [name for name in FILES if not study(name).question.endswith("?")] == []  # it is told in one line


def test_a_study_has_a_full_form_on_the_reference_set_and_a_small_one_on_built_in_spectra() -> None:
    wrong = []
    for name in FILES.keys() - ON_OBSERVED_STARS - ABOUT_SMALL_NETWORKS:
        full = name.removesuffix("_small")
        config = build(points_of(study(name))[0].settings if name in GRIDS else study(name).overrides)
        right = ("hdf5" if name == full else "builtin", ("log_g",), True)
        if (config.data.kind, config.data.param, {full, f"{full}_small"} <= FILES.keys()) != right:
            wrong.append(name)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_every_point_of_a_grid_is_a_run_and_no_two_are_the_same(name: str) -> None:
    assert len(set(study(name).seeds)) >= 3
    points = points_of(replace(study(name), seeds=study(name).seeds[:1]))
    built = [replace(build(point.settings), tracking=TrackingConfig()) for point in points]
    assert [point for point, config in zip(points, built, strict=True) if built.count(config) > 1] == []


@pytest.mark.parametrize("name", SEARCHES)
def test_every_choice_of_a_search_is_asked_for_and_is_a_run(name: str) -> None:
    rng = random.Random(0)
    for dimension in search_of(name).space:
        for value in dimension.examples():
            build(draw(name, dimension, value, rng))


def test_start_points_of_a_search_are_runs() -> None:
    for name in SEARCHES:
        space = {dimension.key: dimension for dimension in search_of(name).space}
        for point in search_of(name).start:
            settings = dict(study(name).overrides)
            for key, value in point.items():
                settings |= space[key].settings(value)
            assert not any(matches(settings, rule) for rule in search_of(name).forbid), (name, point)
            build(settings)


@pytest.mark.parametrize("name", [name for name in SEARCHES if name.endswith("_small")])
def test_a_small_search_can_be_tried_without_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert try_space(study(name), {}, StudyFolder(tmp_path / name), compose).run_id
    assert list(tmp_path.iterdir()) == []


def test_case_does_not_matter_in_the_kind_of_a_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sweeps=tokenization_small", "data/size=1k", "train.epochs=2", "model.kind=VIT", "sweep.dry_run=true"]
    assert main(words) == 0, capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("_small")])
def test_a_small_study_can_be_rehearsed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([f"sweeps={name}", "data/size=1k", "train.epochs=2", "sweep.dry_run=true"]) == 0, capsys.readouterr()
    shown, shortened = capsys.readouterr().out, "train.epochs=2 shortens opt.warmup_epochs=2 of 15 epochs to 0.2667\n"
    of_15_epochs = {f"{study}_small" for study in ("tokenization", "loss_labelnorm", "position", "architecture")}
    of_15_epochs |= {f"recipe_{part}_small" for part in ("causes", "parts", "patch")}
    assert shown.count(shortened) == (name in of_15_epochs)
    assert (" runs: " in shown) == (name in GRIDS)
    if name == "scaling_small":  # all sizes become one, with 3 models and 3 seeds
        assert "data/size=1k replaces data/size=2k,5k,10k,20k of the study\n" in shown
        assert "\n9 runs: 9 to do\n" in shown
    assert list(tmp_path.iterdir()) == []
