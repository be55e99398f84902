"""A real cluster for all tests that want one, and studies whose jobs go there."""

import getpass
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster as slurm
import pytest
from studies import Study, until


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """Start a cluster; without its programs the test is skipped."""
    if missing := slurm.missing():
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}")
    with slurm.running() as found:
        yield found


@pytest.fixture
def cluster_study(
    cluster: slurm.Cluster, tiny: list[str], tmp_path: Path, monkeypatch: Any
) -> Iterator[Callable[..., Study]]:
    """Return a maker of studies whose jobs go to the cluster; what still waits or runs in the end is cancelled."""
    made: list[Study] = []
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)

    def make(definition: dict[str, Any], settings: dict[str, Any] | None = None) -> Study:
        common = {"train.threads": 1, "opt.lr": 3e-3, **(settings or {})}
        words = [text for text in tiny if text.partition("=")[0] not in common]
        made.append(Study(tmp_path, "toy", definition, [*words, *(f"{k}={v}" for k, v in common.items())]))
        return made[-1]

    yield make
    cluster.works("scancel", f"--user={getpass.getuser()}")
    for one in made:
        one.close()
    until(lambda: not cluster.queue(), "an empty queue", 60.0)
