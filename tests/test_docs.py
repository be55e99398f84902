"""What the documents say is so: links lead somewhere, commands compose, the layout in the text is the layout read."""

import re
import shlex
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults import ROWS

from specvit import __version__, cli
from specvit.config.build import build_config
from specvit.config.compose import compose
from specvit.config.folders import conf_dir
from specvit.config.suggestions import known_keys
from specvit.metrics.metrics import CLASSIFICATION, REGRESSION
from specvit.study.grid import as_overrides, points_of
from specvit.study.request import study_request
from specvit.study.schema import definition_of
from specvit.utils.quantities import ERROR, FLUX, LABELS, WAVE

TOP = Path(__file__).resolve().parent.parent
PAGES = [
    TOP / "README.md",
    TOP / "CONTRIBUTING.md",
    TOP / "tools/spectral_grid/README.md",
    *sorted((TOP / "docs").glob("*.md")),
]
TRAIN = ["specvit", "train"]
COMMANDS = [
    (page.name, shlex.split(line.split("  #")[0].split(" # ")[0]))
    for page in PAGES
    for line in page.read_text().splitlines()
    if re.match(r"    (specvit|make|python) \w", line)
]


def test_no_page_has_a_gap_left_to_fill() -> None:
    assert not [page for page in PAGES if re.search(r"@[A-Z]+@|\b(TODO|SPEEDS|XXX)\b", page.read_text())]


def test_links_lead_to_files() -> None:
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    files = [(page, target) for page, target in links if not target.startswith("https://")]
    assert files and not [(page.name, target) for page, target in files if not (page.parent / target).exists()]


def test_the_index_lists_every_page() -> None:
    linked = re.findall(r"\]\(([^)]+)\)", (TOP / "docs/README.md").read_text())
    pages = {page.name for page in (TOP / "docs").glob("*.md")} - {"README.md"} | {"results/README.md"}
    assert sorted(linked) == sorted(pages)


def test_the_messages_in_troubleshooting_are_rows_of_the_fault_table() -> None:
    rows = re.findall(r"^\| .+ \| .*`(.+)` \| .+ \|$", (TOP / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) == 10
    assert not set(rows) - {row.message for row in ROWS}


def test_commands_are_ones_that_exist() -> None:
    makefile = (TOP / "Makefile").read_text()
    there: dict[str, Callable[[str], Any]] = {
        "make": lambda word: re.search(rf"^{word}:", makefile, re.MULTILINE),
        "python": lambda word: (TOP / word).exists(),
        "specvit": lambda word: word in (*cli.COMMANDS, "completion"),
    }
    assert len(COMMANDS) >= 10
    assert not [command for command in COMMANDS if not there[command[1][0]](command[1][1])]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({page for page, words in COMMANDS if words[:2] == TRAIN}))
def test_runs_and_studies_in_a_page_compose(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps").mkdir()
    for text in [path.read_text() for path in PAGES if path.name == page]:
        for name, block in re.findall(r"`(sweeps/\w+\.yaml)`:\n\n((?:    .*\n)+)", text):
            (tmp_path / name).write_text(textwrap.dedent(block))
    monkeypatch.chdir(tmp_path)  # a study that the page shows is beside the command
    for words in [words for name, words in COMMANDS if name == page and words[:2] == TRAIN]:
        overrides = [word for word in words[2:] if "=" in word]
        if "-m" in words or words[2].startswith("sweeps="):
            name = words[2].partition("=")[2] if words[2].startswith("sweeps=") else None
            order = study_request(name, overrides, tuple(words[1:]))
            assert order is not None
            study = order.definition
            first = (
                study.overrides | study.search.start[0] if study.search else points_of(study, order.typed)[0].settings
            )
            overrides = as_overrides(first)
        build_config(compose(overrides))


@pytest.mark.parametrize(("page", "least"), [("sweeps.md", 15), ("slurm.md", 5)])
def test_the_tests_that_a_page_names_are_there(page: str, least: int) -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (TOP / "docs" / page).read_text())
    assert len(named) >= least
    for file, test in named:
        assert f"def {test}" in (TOP / "tests" / file).read_text(), (file, test)


@pytest.mark.slow
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


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_layout_in_the_text_is_the_layout_that_is_read() -> None:
    text = (TOP / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in text for name in (WAVE, FLUX, ERROR, *LABELS))


def test_the_table_of_scores_has_every_metric_with_its_unit_and_direction() -> None:
    text = (TOP / "docs" / "scores.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| .+ \| (none|label) \| (lower|higher|neither|near [\d.]+) \|$", text, re.MULTILINE
    )
    listed = {name: (unit, better if better in ("lower", "higher") else None) for name, unit, better in rows}
    metrics = (REGRESSION | CLASSIFICATION).items()
    assert listed == {"loss": ("none", "lower")} | {name: (m.unit or "none", m.better) for name, m in metrics}


def test_the_changes_shown_to_contributors_apply_to_this_source() -> None:
    diffs = re.findall(r"^```diff\n(.*?)^```", (TOP / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert diffs
    for diff in diffs:
        command = ["git", "apply", "--check", "--verbose", "-"]
        checked = subprocess.run(command, cwd=TOP, input=diff, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "offset" not in checked.stderr, checked.stderr


def test_an_experiment_opens_with_its_question_cost_expectation_and_source() -> None:
    heads = {path.stem: path.read_text().split("defaults:")[0] for path in (conf_dir() / "experiment").glob("*.yaml")}
    words = [f"# {word}: " for word in ("Question", "Cost", "Expected", "Source")]
    assert heads and not [name for name, head in heads.items() if any(word not in head for word in words)]


def test_every_key_is_set_and_so_documented_in_the_yaml_files() -> None:
    text = "\n".join(path.read_text() for path in conf_dir().rglob("*.yaml"))
    leaves = [key.rpartition(".")[2] for key, section in known_keys().items() if not section]
    assert [leaf for leaf in leaves if not re.search(rf"^\s*{leaf}:", text, re.MULTILINE)] == []
