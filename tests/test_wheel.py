"""An installed specvit carries its configuration and tables with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly
TOP = Path(__file__).resolve().parent.parent


def test_the_wheel_works_away_from_the_source_tree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(TOP)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    site, here = tmp_path / "site", tmp_path / "here"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    bundled = {
        f"specvit/{path.relative_to(TOP)}" for path in (TOP / "conf").rglob("*.yaml") if path.name != "local.yaml"
    }
    assert bundled <= names
    tables = {f"specvit/physics/{name}" for name in ("pfs_mr_noise.csv", "grid.npz", "grid.json")}
    tables |= {"specvit/analysis/published.csv", "specvit/analysis/templates/owner_zh.md"}
    assert {"specvit/py.typed", *tables} <= names
    assert not any(name.startswith(("tests", "tools", "conf/", "outputs")) for name in names)
    # Composes from the bundled files, with the user's own laid over.
    (here / "conf" / "experiment").mkdir(parents=True)
    (here / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nopt:\n  lr: 0.0123\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ask = [sys.executable, "-m", "specvit.train", "experiment=mine", "--cfg", "job"]
    answer = subprocess.run(ask, cwd=here, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "lr: 0.0123" in answer.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import specvit; print(specvit.__file__)"],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert str(site) in where.stdout
