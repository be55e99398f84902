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
import yaml
from processes import Child, wait_until_computed

from specvit.sweep.folder import StudyFolder
from specvit.sweep.storage import open_storage

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
KILLS = 10
"""Of each kind."""


class Killed:
    """A study in a place of its own, whose command is given to forked processes."""

    def __init__(self, place: Path, definition: dict[str, Any], overrides: list[str]) -> None:
        """Write its file."""
        self.place, self.folder, self.count = place, StudyFolder(place / "multirun" / "toy"), 0
        base = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in overrides)}
        base |= {"train.epochs": 4, "train.threads": 1, "train.deterministic": True}
        (place / "sweeps").mkdir(parents=True)
        (place / "sweeps" / "toy.yaml").write_text(yaml.safe_dump({"overrides": base, **definition}, sort_keys=False))

    def start(self) -> Child:
        """Give the command."""
        self.count += 1
        return Child(["sweeps=toy"], (), self.place / f"{self.count}.txt")

    def result(self) -> list[tuple[Any, ...]]:
        """Return what each trial tried and what came of it, to the bit."""
        files = ("metrics.jsonl", "predictions.csv")
        return [
            (json.dumps(t.factors), self.folder.state(t), [_bytes(t.run.file(name)) for name in files])
            for t in self.folder.trials()
        ]

    def told(self) -> Counter[str]:
        """Return how many trials Optuna has in each state."""
        if self.folder.about()["kind"] == "grid":
            return Counter()
        trials = optuna.load_study(study_name=None, storage=open_storage(self.folder, None)).get_trials()
        return Counter(trial.state.name for trial in trials)


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Callable[[str], tuple[Any, ...]]:
    """Return `undisturbed(kind)`: the study, and the seconds that its command computed."""
    made: dict[str, tuple[Any, ...]] = {}

    def make(kind: str) -> tuple[Any, ...]:
        if kind not in made:
            study = Killed(tmp_path_factory.mktemp("whole") / "place", KINDS[kind], tiny)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(study.place)
                child = study.start()
                child.until_started()
                seconds = wait_until_computed(child.process.pid, math.inf, child.process.is_alive)
                assert child.wait() == 0, child.said
                child.close()
            made[kind] = study, seconds
        return made[kind]

    return make


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_killed_at_a_random_moment_ends_bitwise_equal(
    kind: str, number: int, undisturbed, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, seconds = undisturbed(kind)
    study = Killed(tmp_path / "place", KINDS[kind], tiny)
    monkeypatch.chdir(study.place)
    child = study.start()
    early = FIRST_SECOND[kind]
    if number < len(early):
        while child.process.is_alive() and not study.folder.path.exists():
            time.sleep(0.0005)
        time.sleep(early[number])
    else:
        child.until_started()
        share = (number - len(early) + random.Random(number).random()) / (KILLS - len(early))
        wait_until_computed(child.process.pid, share * seconds, child.process.is_alive)
    child.send(signal.SIGKILL)
    code, begun = child.wait(), study.folder.file("study.json").exists()
    child.close()
    again = study.start()
    ended = again.wait()
    said = again.said
    again.close()
    assert (code in (0, -signal.SIGKILL), ended) == (True, 0), (begun, said)
    assert study.result() == whole.result(), (begun, said)
    assert study.told() == whole.told()
