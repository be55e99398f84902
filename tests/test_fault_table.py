"""The fault table and the tests that it names belong together, row by row."""

from collections import Counter

import pytest
from faults import ENDS, ROWS, TABLE, Row, read_table, short


@pytest.fixture(scope="module")
def collected(request: pytest.FixtureRequest) -> dict[str, bool]:
    """Return all tests of the files that the table names, and whether each asks for `promised`."""
    folder = TABLE.parent.parent / "tests"
    files = {row.test.partition("::")[0] for row in ROWS}
    files |= {path.name for path in folder.glob("test_*.py") if "promised" in path.read_text()}
    modules = [pytest.Module.from_parent(request.session, path=folder / name) for name in sorted(files)]
    items = [item for module in modules for item in request.session.genitems(module)]
    return {short(item.nodeid): "promised" in item.fixturenames for item in items}


def test_the_table_is_long_enough_and_each_row_is_another_fault() -> None:
    assert len(ROWS) >= 60
    for column in ("fault", "test"):
        assert [value for value, times in Counter(getattr(row, column) for row in ROWS).items() if times > 1] == []


def test_every_row_is_whole() -> None:
    assert [row for row in ROWS if not all((row.fault, row.ends, row.message, row.lost, row.test))] == []
    assert [row for row in ROWS if not set(row.ends.split(" or ")) <= set(ENDS)] == []


def test_every_row_names_tests_that_exist_and_ask_for_it(collected: dict[str, bool]) -> None:
    empty = [row.test for row in ROWS if not any(row.names(node) and asks for node, asks in collected.items())]
    assert empty == []


def test_every_test_that_asks_for_a_promise_has_one_row(collected: dict[str, bool]) -> None:
    asking = [node for node, asks in collected.items() if asks]
    assert len(asking) >= len(ROWS)
    assert {node: count for node in asking if (count := sum(row.names(node) for row in ROWS)) != 1} == {}


def test_a_message_is_found_whatever_stands_for_its_dots_and_only_within_a_line() -> None:
    row = Row("a", "lost", "crashed: … is full (…)", "nothing", "test_a.py::test_b[c *]")
    assert row.said_in("first\n  crashed:  the disk  is full (/tmp/x)  /tmp/y\n")
    assert not row.said_in("crashed: the disk\nis full (/tmp/x)")
    assert not row.said_in("crashed: the disk is full")


def test_a_test_is_named_whole_for_all_its_cases_or_by_a_pattern() -> None:
    names = {test: Row("a", "lost", "b", "nothing", test).names for test in ("t.py::a", "t.py::a[b *]", "t.py::a[*b]")}
    assert [names["t.py::a"](node) for node in ("t.py::a", "t.py::a[x-y]", "t.py::ab", "t.py::ab[x]")] == [1, 1, 0, 0]
    assert [names["t.py::a[b *]"](node) for node in ("t.py::a[b c]", "t.py::a[b ]", "t.py::a[c]")] == [1, 1, 0]
    assert [names["t.py::a[*b]"](node) for node in ("t.py::a[ab]", "t.py::a[bc]")] == [1, 0]


def test_other_tables_and_prose_are_no_rows() -> None:
    head = "| fault | ends as | message | lost | test |\n|---|---|---|---|---|\n"
    text = (
        f"| a | b |\n|---|---|\n| x | y |\n\n{head}| a | lost | `m…` | nothing | `t.py::t` |\n\n| 1 | 2 | 3 | 4 | 5 |\n"
    )
    assert read_table(text) == [Row("a", "lost", "m…", "nothing", "t.py::t")]
