"""The words of a comparison, on studies whose truth is known: how often they are wrong, and how often they come."""

import pytest
from judge import FEW, Kind, judge, kinds


def test_little_is_called_better_that_is_not_and_much_that_is() -> None:
    null, planted = (judge(Kind("plain", 4, 5, effect), 60 + 60 * (effect > 0)) for effect in (0, 3))
    failing = judge(Kind("2 of 3 runs of the last explode", 4, 3, 3, fails=(0, 2 / 3)), 80)
    assert null.false <= 0.05 * null.studies and null.intervals == 180
    assert planted.found >= 0.7 * planted.planted and planted.false <= 0.05 * planted.studies
    assert failing.false <= 0.05 * failing.studies, "a setting that wins by the runs that did not explode"


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_the_bounds_hold_for_every_kind_of_study() -> None:
    """At most 5 % of studies have a false word, and 95 +- 1.5 % of intervals hold the true difference."""
    wrong = []
    for kind in kinds():
        record = judge(kind, 2000)
        false, cover = record.false / record.studies, record.covered / max(record.intervals, 1)
        if false > 0.05 or (record.intervals >= FEW and abs(cover - 0.95) > 0.015):
            wrong.append(f"{kind}: {record}")
        if kind.name == "plain" and kind.effect == 3 and record.found < (0.25, 0.6)[kind.seeds == 5] * record.planted:
            wrong.append(f"not found: {kind}: {record}")
    assert not wrong
