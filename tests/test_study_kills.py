"""Studies killed at random moments, ten of them in their first second: the same command ends them, to the same bits."""

import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from processes import wait_until_computed
from studies import Study, settings_of

from specvit.study.optuna_study import open_storage

pytestmark = pytest.mark.nightly

SPACE = {"opt.lr": {"low": 1.0e-3, "high": 1.0e-2, "log": True}, "model/tokenizer": ["c1d", "sw"]}
SEARCH = {"space": SPACE, "metrics": {"val_r2": "maximize"}, "trials": 3, "sampler": "random", "seed": 3}
SEARCH["start"] = [{"opt.lr": 0.002, "model/tokenizer": "sw"}, {"opt.lr": 0.004, "model/tokenizer": "c1d"}]
PRUNER = {"name": "percentile", "percentile": 30.0, "n_startup_trials": 1}
KINDS = {
    "grid": {"grids": [{"axes": {"model/tokenizer": ["c1d", "sw"]}}], "seeds": [1, 2]},
    "search": {"search": SEARCH},
    "search with pruning": {"search": {**SEARCH, "trials": 4, "pruner": PRUNER}},
}
FIRST_SECOND = {"grid": [0.0, 0.02, 0.1, 0.4], "search": [0.0, 0.05, 0.3], "search with pruning": [0.01, 0.15, 0.8]}
SETTINGS = {"opt.lr": 3e-3, "train.epochs": 4, "train.deterministic": True}
FILES = ("metrics.jsonl", "predictions.csv")
KILLS = 10
"""Of each kind."""


def result(study: Study) -> list[tuple[Any, ...]]:
    """Return what each trial tried and what came of it, to the bit."""
    return [
        (json.dumps(t.factors), study.folder.state(t), [_bytes(t.run.file(name)) for name in FILES])
        for t in study.folder.trials()
    ]


def told(study: Study) -> Counter[str]:
    """Return how many trials Optuna has in each state."""
    if study.folder.about()["kind"] == "grid":
        return Counter()
    trials = optuna.load_study(study_name=None, storage=open_storage(study.folder, None)).get_trials()
    return Counter(trial.state.name for trial in trials)


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Callable[[str], tuple[Any, ...]]:
    """Return `undisturbed(kind)`: the study, and the seconds that its command computed."""
    studies: dict[str, tuple[Any, ...]] = {}

    def run(kind: str) -> tuple[Any, ...]:
        if kind not in studies:
            study = Study(tmp_path_factory.mktemp("whole") / "place", KINDS[kind], settings_of(tiny) | SETTINGS)
            child = study.start()
            child.until_started()
            seconds = wait_until_computed(child.process.pid, math.inf, child.process.is_alive)
            assert child.wait() == 0, child.said
            studies[kind] = study, seconds
        return studies[kind]

    return run


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_killed_at_a_random_moment_ends_bitwise_equal(kind: str, number: int, undisturbed, study) -> None:
    whole, seconds = undisturbed(kind)
    toy = study(KINDS[kind], SETTINGS)
    child = toy.start()
    early = FIRST_SECOND[kind]
    if number < len(early):
        while child.process.is_alive() and not toy.folder.path.exists():
            time.sleep(0.0005)
        time.sleep(early[number])
    else:
        child.until_started()
        share = (number - len(early) + random.Random(number).random()) / (KILLS - len(early))
        wait_until_computed(child.process.pid, share * seconds, child.process.is_alive)
    child.send(signal.SIGKILL)
    code, begun = child.wait(), toy.folder.file("study.json").exists()
    again = toy.start()
    assert (code in (0, -signal.SIGKILL), again.wait()) == (True, 0), (begun, again.said)
    assert result(toy) == result(whole), (begun, again.said)
    assert told(toy) == told(whole)
