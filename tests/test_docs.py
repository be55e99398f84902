"""What the documents say is so: links lead somewhere, commands compose, the layout in the text is the layout read."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml

from specvit import cli
from specvit.config.build import build_config
from specvit.config.compose import compose, conf_dir
from specvit.config.spelling import known_keys
from specvit.quantities import ERROR, FLUX, LABELS, WAVE
from specvit.sweep.definition import definition_of
from specvit.sweep.grid import as_overrides, points_of
from specvit.sweep.order import order_of

TOP = Path(__file__).resolve().parent.parent
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.strip())
    for page in PAGES
    for line in page.read_text().splitlines()
    if re.match(r"    (specvit|make|python) \w", line)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_gap_left_to_fill(page: Path) -> None:
    assert not re.search(r"@[A-Z]+@|\b(TODO|SPEEDS|XXX)\b", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text.split("#")[0].strip()[:60])
def test_commands_are_ones_that_exist(page: str, command: str) -> None:
    words = shlex.split(command.split("  #")[0].split(" # ")[0])
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (TOP / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python":
        assert (TOP / words[1]).exists()
    else:
        assert words[1] in (*cli.COMMANDS, "completion")
        if words[1] == "train":
            overrides = [word for word in words[2:] if "=" in word]
            if "-m" in words or words[2].startswith("sweeps="):
                name = words[2].partition("=")[2] if words[2].startswith("sweeps=") else None
                order = order_of(name, overrides, tuple(words[1:]))
                assert order is not None
                overrides = as_overrides(points_of(order.definition, order.typed)[0].settings)
            build_config(compose(overrides))


@pytest.mark.parametrize(("page", "least"), [("sweeps.md", 15), ("slurm.md", 5)])
def test_the_tests_that_a_page_names_are_there(page: str, least: int) -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (TOP / "docs" / page).read_text())
    assert len(named) >= least
    for file, test in named:
        assert f"def {test}" in (TOP / "tests" / file).read_text(), (file, test)


def test_the_file_in_the_text_is_a_study() -> None:
    """Both blocks of the page, as one would copy them."""
    text = (TOP / "docs" / "sweeps.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"\n\n((?:    .*\n)+)", text)]
    grid, search = (next(block for block in blocks if f"\n{word}:" in f"\n{block}") for word in ("grids", "search"))
    defined = definition_of(yaml.safe_load(grid), "grid", where="docs")
    for point in points_of(defined):
        build_config(compose(as_overrides(point.settings)))
    assert len(points_of(defined)) == 15
    assert definition_of(yaml.safe_load(search), "search", where="docs").search is not None


def test_the_layout_in_the_text_is_the_layout_that_is_read() -> None:
    text = (TOP / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in text for name in (WAVE, FLUX, ERROR, *LABELS))


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_question_cost_expectation_and_source(path: Path) -> None:
    head = path.read_text().split("defaults:")[0]
    assert all(f"# {word}: " in head for word in ("Question", "Cost", "Expected", "Source"))


def test_every_key_is_set_and_so_documented_in_the_yaml_files() -> None:
    text = "\n".join(path.read_text() for path in conf_dir().rglob("*.yaml"))
    leaves = [key.rpartition(".")[2] for key, section in known_keys().items() if not section]
    assert [leaf for leaf in leaves if not re.search(rf"^\s*{leaf}:", text, re.MULTILINE)] == []
