"""Studies made by a generator whose truth is known, judged by the functions that write reports; nothing is trained.

    python tests/judge.py 2000     # the table of docs/ablation.md, so many studies a line, half with an effect

A study is a factor (or two) by seeds. All settings of a seed share its effect, as large as the spread of runs.
`effect` is what the last setting gains, in spreads. What is measured, for each kind of study:

- false: studies with a "better" or "worse" that is not so, on any line of the table (familywise);
- cover: intervals that hold the true difference, and their number;
- found: planted differences that are called what they are.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specvit.analysis.comparisons import differences, sentence
from specvit.analysis.records import Runs, run_row, run_table
from specvit.config.schema import Config
from specvit.study.results import Outcome

CONFIG = Config()
SPREAD = 0.01
"""Of R² over seeds."""
FEW = 500
"""Shares of fewer are not shown."""
LOOK, LAST = 78, 4680
"""Steps between two looks at the validation set, and at the end of a run."""


@dataclass(frozen=True)
class Kind:
    """A kind of study: `settings` of one factor by `seeds`."""

    name: str
    settings: int
    seeds: int
    effect: float = 0.0
    scatter: tuple[float, float] = (1.0, 1.0)
    """Of the first and of the last setting, in spreads."""
    fails: tuple[float, float] = (0.0, 0.0)
    """The chance that a run explodes: of all settings but the last, and of the last."""
    rates: int = 1
    """Values of a second factor, which has no effect."""
    alike: float = 0.0
    """Correlation of the noise of runs that differ by the second factor alone; 1: twins to the last digit."""
    steps: float = 0.0
    """The share of runs that never leave the plateau; if given, the metric is steps, and a spread a factor of two."""

    @property
    def metric(self) -> str:
        """What is compared."""
        return "escape_step" if self.steps else "test_r2"


def study(kind: Kind, rng: np.random.Generator) -> Runs:
    """Return the runs of one study."""
    k, r, s = kind.settings, kind.rates, kind.seeds
    own, common = rng.normal(size=(k, r, s)), rng.normal(size=(k, 1, s))
    noise = (1 - kind.alike) ** 0.5 * own + kind.alike**0.5 * common
    scatter = np.ones(k)
    scatter[[0, -1]] = kind.scatter
    gains = np.zeros(k)
    gains[-1] = kind.effect
    value_krs = gains[:, None, None] + noise * scatter[:, None, None] + rng.normal(size=s)
    chance = np.full(k, float(kind.fails[0]))
    chance[-1] = kind.fails[1]
    fails_krs = rng.random((k, r, s)) < chance[:, None, None]
    rows = [
        _run({"setting": n, "rate": m}, seed, float(value_krs[n, m, seed]), bool(fails_krs[n, m, seed]), kind)
        for n in range(k)
        for m in range(r)
        for seed in range(s)
    ]
    return run_table(rows)


def _run(factors: dict[str, int], seed: int, value: float, fails: bool, kind: Kind) -> dict[str, Any]:
    state, summary, rows = "completed", {}, []
    if kind.steps:  # a median of 10 looks, a factor of 2 a spread; runs beyond the quantile of `steps` are cut off
        last = LOOK * int(10 * 2 ** _quantile(1 - kind.steps)) if kind.steps < 1 else LAST
        step = LOOK * int(np.ceil(10 * 2.0**-value))
        state = "completed" if step <= last else "plateau"
        seen = [LOOK, last] if step > last else [LOOK, max(step, 2 * LOOK)]
        rows = [{"step": at, "epoch": n, "val_r2": 0.5 if at >= step else 0.0} for n, at in enumerate(seen, 1)]
    elif fails:
        state = "diverged"
    else:
        summary = {"test_r2": 0.5 + SPREAD * value}
        rows = [{"step": LOOK, "epoch": 1, "val_r2": summary["test_r2"], "train_loss": 1.0}]
    return run_row(f"{seed:08d}", dict(factors), seed, state, CONFIG, Outcome(summary, rows, []))


def _quantile(share: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf(share)) * 2**0.5  # of run and seed together


@dataclass
class Verdicts:
    """What is measured of a kind of study."""

    studies: int = 0
    false: int = 0
    intervals: int = 0
    covered: int = 0
    planted: int = 0
    found: int = 0

    @property
    def cells(self) -> list[str]:
        """The cells of a table's line: shares in per cent."""
        pairs = (self.false, self.studies), (self.covered, self.intervals), (self.found, self.planted)
        return [f"{100 * part / whole:.1f}" if whole >= FEW else "" for part, whole in pairs]


def judge(kind: Kind, studies: int) -> Verdicts:
    """Return how the real functions judge so many studies, half of it where there is something to find."""
    record = Verdicts()
    studies = studies // 2 if kind.effect else studies
    rng = np.random.default_rng([*kind.name.encode(), kind.settings, kind.seeds, int(10 * kind.effect)])
    for _ in range(studies):
        wrong = False
        for one in differences(study(kind, rng), kind.metric):
            better = sentence(one, kind.metric).endswith(": better")
            claims = better or sentence(one, kind.metric).endswith(": worse")
            true = _truth(kind, one)
            wrong |= claims and (better - (not better)) * np.sign(true) != 1
            if true:
                record.planted += 1
                record.found += claims and better == (true > 0)
            if one.low is not None and one.high is not None and not kind.steps:
                record.intervals += 1
                record.covered += one.low <= SPREAD * _gain(kind, one) <= one.high
        record.false += bool(wrong)
        record.studies += 1
    return record


def _gain(kind: Kind, one: Any) -> float:
    return kind.effect if one.factor == "setting" and one.value == kind.settings - 1 else 0.0


def _truth(kind: Kind, one: Any) -> float:
    """Return the true difference, of R² with explosions as 0; its sign says what is better."""
    if one.factor == "rate" or one.value < kind.settings - 1:
        return 0.0
    before, after = kind.fails
    return (1 - after) * (0.5 + SPREAD * kind.effect) - (1 - before) * 0.5


def kinds() -> Iterator[Kind]:
    """Yield the kinds of study."""
    for seeds in (3, 5):
        for settings in (2, 4, 8):
            for effect in (0, 1, 2, 3):
                yield Kind("plain", settings, seeds, effect)
        for times in (2, 3, 4):
            yield Kind(f"base scatters {times} times as much", 8, seeds, scatter=(times, 1))
        yield Kind("last scatters 4 times as much", 8, seeds, scatter=(1, 4))
        for settings in (2, 6):
            yield Kind("1 of 10 runs explodes", settings, seeds, fails=(0.1, 0.1))
            yield Kind("3 of 10 runs explode", settings, seeds, fails=(0.3, 0.3))
            yield Kind("2 of 3 runs of the last explode", settings, seeds, 3, fails=(0, 2 / 3))
        yield Kind("three rates", 3, seeds, rates=3)
        yield Kind("three rates", 3, seeds, 3, rates=3)
        yield Kind("three rates, nearly alike", 3, seeds, rates=3, alike=0.9)
        yield Kind("three rates that are twins", 4, seeds, rates=3, alike=1.0)
        yield Kind("three rates that are twins", 4, seeds, 3, rates=3, alike=1.0)
        yield Kind("steps off the plateau", 4, seeds, steps=1e-9)
        for effect in (0, 3):
            yield Kind("steps, 3 of 10 never left", 4, seeds, effect, steps=0.3)


def table(studies: int) -> Iterator[str]:
    """Yield the lines of a markdown table; each cell has three seeds and five."""
    yield "| studies | settings | effect | false, % | cover, % | found, % |"
    yield "|---|---|---|---|---|---|"
    for kind in kinds():
        if kind.seeds == 3:
            three, five = (judge(replace(kind, seeds=seeds), studies).cells for seeds in (3, 5))
            both = (", ".join(cell or "-" for cell in pair if any(pair)) for pair in zip(three, five, strict=True))
            yield f"| {' | '.join([kind.name, str(kind.settings), f'{kind.effect:g}', *both])} |"


if __name__ == "__main__":
    for line in table(int(sys.argv[1])):
        print(line, flush=True)
