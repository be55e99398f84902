"""Processes in the background run the code of the command that started them, wherever it is given."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from studies import LOCAL, until

from specvit.cluster.slots import Slot
from specvit.config.folders import conf_dir
from specvit.utils import processes
from specvit.utils.files import read_json_lines
from specvit.utils.processes import python_environment, shell_exports
from specvit.utils.provenance import SOURCE, made_by

MINE = "raise SystemExit('a file of the folder was imported')\n"
NAMES = ("statistics.py", "mlflow.py", "pickle.py", "runpy.py", "signal.py", "types.py")


def codes_in(place: Path) -> set[str]:
    """Return which code made the runs in `place/outputs`."""
    logs = (read_json_lines(path) for path in place.glob("outputs/*/attempts.jsonl"))
    return {row["made_by"]["code"] for rows in logs for row in rows if row["event"] == "ready"}


def copy_of_specvit(place: Path, line: str) -> Path:
    """Write a clone of specvit, with one more line, into `place`."""
    shutil.copytree(SOURCE, place / "specvit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "sweeps"):
        shutil.copytree(conf_dir().parent / name, place / name, dirs_exist_ok=True)
    with open(place / "specvit" / "study" / "worker.py", "a") as stream:
        stream.write(line)
    return place


@pytest.fixture
def command(tiny: list[str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `command(place, *start)`: a study of two runs, with its record in MLflow, given in `place`."""

    def give(place: Path, *start: str) -> subprocess.CompletedProcess[str]:
        (place / "sweeps").mkdir(exist_ok=True)
        (place / "sweeps" / "two.yaml").write_text(yaml.safe_dump({"grids": [{}], "seeds": [1, 2]}))
        words = [*start, "sweeps=two", *(word for word in tiny if word != "tracking.live=false"), *LOCAL]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=240)

    return give


@pytest.mark.slow
def test_a_study_in_a_folder_with_other_code_runs_the_code_of_the_command(command, tmp_path: Path) -> None:
    place = copy_of_specvit(tmp_path / "other_clone", MINE)
    shutil.rmtree(place / "conf")  # with a whole one specvit refuses to start there
    for name in NAMES:
        (place / name).write_text(MINE)
    done = command(place, str(Path(sys.executable).parent / "specvit"), "train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert codes_in(place) == {made_by()["code"]}
    log = place / "multirun" / "two" / "tracking.log"
    until(lambda: (place / "mlflow.db").exists(), f"the record; {log.read_text()}")


@pytest.mark.nightly
def test_a_checkout_that_is_not_installed_runs_its_own_code_in_the_background_too(command, tmp_path: Path) -> None:
    place = copy_of_specvit(tmp_path / "checkout", "\n# of this checkout\n")
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    done = command(place, str(tmp_path / "venv" / "bin" / "python"), "-m", "specvit.train", "sweep.detach=true")
    assert done.returncode == 0, done.stdout + done.stderr
    log = place / "multirun" / "two" / "driver.log"
    until(lambda: "[2/2]" in log.read_text() or "failed" in log.read_text(), "the study's end", 180.0)
    assert "failed" not in log.read_text()
    codes = codes_in(place)
    assert len(codes) == 1 and made_by()["code"] not in codes
    until(lambda: (place / "mlflow.db").exists(), "the record")


def test_processes_of_a_pool_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    place, script = tmp_path / "place", tmp_path / "script.py"
    place.mkdir()
    for name in NAMES:
        (place / name).write_text(MINE)
    script.write_text(
        "from specvit.utils.processes import process_pool\n"
        "if __name__ == '__main__':\n"
        "    with process_pool(1) as pool:\n"
        "        print(pool.submit(abs, -3).result(60))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != processes.SAFE_PATH}
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_what_the_user_has_on_the_path_comes_after_specvit(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = processes.import_folder()
    before = [folder] if folder else []
    for theirs, paths in ((None, []), ("", []), ("/lib/a:/lib/b", ["/lib/a:/lib/b"]), (folder, [])):
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if theirs is not None:
            monkeypatch.setenv("PYTHONPATH", theirs)
        environment = python_environment()
        assert environment[processes.SAFE_PATH] == "1"
        assert environment.get("PYTHONPATH", "") == ":".join([*before, *paths])
    assert Slot(0, None, 1).environment() == {**environment, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("theirs", ["", "/lib/a"])
def test_a_job_runs_the_copy_of_the_code_wherever_that_lies(theirs: str, tmp_path: Path) -> None:
    code = tmp_path / 'with "quotes" and $HOME'
    script = "\n".join([*shell_exports(code), 'printf "%s\\n" "$PYTHONPATH" "$PYTHONSAFEPATH"'])
    done = subprocess.run(["bash", "-c", script], env={"PYTHONPATH": theirs}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{code}:{theirs}" if theirs else str(code), "1"]
