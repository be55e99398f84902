"""The fault table of `docs/fault_table.md` as the specification of the tests that it names.

A test that asks for `promised` stands in the table, and fails unless what it saw is what its row promises.
"""

import re
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from planted import Act, At, Stop
from processes import Child
from shared import once
from whole_runs import STEADY, assert_same_run, only_run

from specvit.run_folder.folder import DONE, STATES

TABLE = Path(__file__).resolve().parent.parent / "docs" / "fault_table.md"
COLUMNS = ["fault", "ends as", "message", "lost", "test"]
ENDS = ("refused", "continues", "nothing yet", *STATES)


@dataclass(frozen=True)
class Row:
    """One fault and what is promised of it."""

    fault: str
    ends: str
    message: str
    lost: str
    test: str

    @property
    def states(self) -> set[str]:
        """The states that the run may have; "continues" means that it finished all the same."""
        return {state for end in self.ends.split(" or ") for state in (DONE if end == "continues" else (end,))}

    @property
    def loses_nothing(self) -> bool:
        """Whether the run is to end as the unbroken one; one that is refused has no end."""
        return self.lost.startswith("nothing") and self.ends != "refused"

    def names(self, node: str) -> bool:
        """Say whether a test is this row's; `*` stands for any text, a name without brackets for all cases of it."""
        pattern = ".*".join(map(re.escape, self.test.split("*")))
        return re.fullmatch(pattern if "[" in self.test else rf"{pattern}(\[.*\])?", node) is not None

    def said_in(self, text: str) -> bool:
        """Say whether a line of `text` holds the message; `…` stands for any text, white space for white space."""
        parts = [".*?" if part == "…" else re.escape(" ".join(part.split())) for part in re.split("(…)", self.message)]
        return any(re.search("".join(parts), " ".join(line.split())) for line in text.splitlines())


def read_table(text: str) -> list[Row]:
    """Return the rows of all tables that have these columns."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells == COLUMNS:
            inside = True
        elif inside and cells and not set("".join(cells)) <= {"-", ":"}:
            assert len(cells) == len(COLUMNS), line
            rows.append(Row(*cells[:2], cells[2].strip("`"), cells[3], cells[4].strip("`")))
        elif not cells:
            inside = False
    return rows


ROWS = read_table(TABLE.read_text()) if TABLE.exists() else []


def short(node: str) -> str:
    """Return a test's name as the table has it: without folders."""
    path, _, name = node.partition("::")
    return f"{Path(path).name}::{name}"


class Promise:
    """A row, and what a test has shown of it."""

    def __init__(self, row: Row) -> None:
        """Nothing is shown yet."""
        self.row = row
        self.shown: set[str] = set()

    def kept(self, *, state: str, said: str) -> None:
        """Check how the run was left, or "refused", and that what was said holds the promised message."""
        assert state in self.row.states, f"{state}, not {self.row.ends}: {said}"
        assert self.row.said_in(said), f"not said: {self.row.message}\n{said}"
        self.shown.add("end")

    def whole(self, run: Path, unbroken: Path) -> None:
        """Check that a run ended bitwise as the unbroken one, so that nothing was lost."""
        assert self.row.loses_nothing, self.row.lost
        assert_same_run(run, unbroken)
        self.shown.add("whole")

    def missing(self) -> set[str]:
        """Return what the test has yet to show."""
        return {"end", *({"whole"} if self.row.loses_nothing else ())} - self.shown


@pytest.fixture
def promised(request: pytest.FixtureRequest) -> Promise:
    """Return what the table promises of the fault that the test makes."""
    rows = [row for row in ROWS if row.names(short(request.node.nodeid))]
    assert len(rows) == 1, f"{len(rows)} rows of {TABLE.name} name {short(request.node.nodeid)}"
    return Promise(rows[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that has passed without showing all that its row promises."""
    result = yield
    promise = getattr(item, "funcargs", {}).get("promised")
    assert not (promise and promise.missing()), f"the test does not show: {', '.join(promise.missing())}"
    return result


@dataclass(frozen=True)
class Ended:
    """A process that is over."""

    code: int
    said: str


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Return `launch(arguments, *plants)`, which starts `specvit train` in a process of its own."""
    children: list[Child] = []

    def start(arguments: list[str], *plants: Act) -> Child:
        children.append(Child(arguments, plants, tmp_path / f"output-{len(children)}.txt"))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def trained(launch: Callable[..., Child]) -> Callable[..., Ended]:
    """Return `trained(arguments, *plants)`, which waits for such a process and says how it ended."""

    def train(arguments: list[str], *plants: Act) -> Ended:
        child = launch(arguments, *plants)
        return Ended(child.wait(), child.said)

    return train


@pytest.fixture(scope="session")
def unbroken(reference_run: Callable[[Sequence[str]], Path]) -> Callable[[Sequence[str]], Path]:
    """Return `unbroken(arguments)`: the folder of that run, made without any fault."""
    return reference_run


@pytest.fixture(scope="session")
def stopped(shared: Path, tiny: list[str]) -> Path:
    """Return the run of `STEADY` that SIGTERM stopped after step 31; copy it to change it."""

    def make(place: Path) -> None:
        place.mkdir(parents=True)
        child = Child(
            [*tiny, *STEADY, f"tracking.folder={place / 'runs'}"],
            [At("specvit.training.step.Learner.step", Stop(signal.SIGTERM), call=31)],
            place / "output.txt",
        )
        assert child.wait() == 143, child.said
        child.close()

    return only_run(once(shared / "stopped", make) / "runs")


def by_day(cases: Iterable[Any], *daily: Any) -> list[Any]:
    """Return the cases of a test as parameters: those in `daily` for `make test`, the others for the night."""
    cases = list(cases)
    assert set(daily) <= set(cases)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[] if case in daily else [pytest.mark.nightly]
        )
        for case in cases
    ]
