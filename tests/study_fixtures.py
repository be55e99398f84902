"""Studies for all tests that want one, and a real cluster for those whose jobs go there."""

import getpass
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster as slurm
import pytest
from studies import Study, settings_of, until


@pytest.fixture
def study(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Return `study(definition, settings, name="toy", place=tmp_path)`, which writes the file of a study of `tiny`."""
    studies: list[Study] = []
    common = settings_of(tiny) | {"opt.lr": 3e-3}

    def write(
        definition: dict[str, Any], settings: dict[str, Any] | None = None, name: str = "toy", place: Path = tmp_path
    ) -> Study:
        studies.append(Study(place, definition, common | (settings or {}), name))
        return studies[-1]

    yield write
    for one in studies:
        one.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """Start a cluster; without its programs the test is skipped."""
    if missing := slurm.missing():
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}")
    with slurm.running() as started:
        yield started


@pytest.fixture
def cluster_study(
    cluster: slurm.Cluster, study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Study]]:
    """Return `study` for jobs on the cluster; what still waits or runs in the end is cancelled."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    yield study
    cluster.works("scancel", f"--user={getpass.getuser()}")
    until(lambda: not cluster.queue(), "an empty queue", 60.0)
