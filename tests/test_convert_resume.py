"""A conversion that is killed or stopped resumes by the same command, to the same bytes; nothing else is touched."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from convert_inputs import ONE, PATTERN, interrupt, texts

from specvit.commands import data as data_cli
from specvit.utils.files import locked
from specvit.utils.processes import process_pool

MANY = [(4000.0 + 20 * i, 1 + i % 5, -1.0) for i in range(80)]
OPTIONS = [*PATTERN, "--magnitudes", "20.5", "22.5", "--split", "0.6,0.2,0.2", "--shard", "20"]
SLOWLY = """
import sys, time
from specvit.convert.progress import Progress
real = Progress.__call__
def slowly(self, done, total):
    time.sleep(0.1)
    real(self, done, total)
Progress.__call__ = slowly
from specvit.commands.data import main
if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 80 spectra."""
    return texts(tmp_path_factory.mktemp("many") / "source", MANY)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a conversion that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert data_cli.main(command(source, out, *ONE)) == 0
    found = files_of(out)
    shards = [f"train_{i}/dataset.h5" for i in range(3)] + ["val_0/dataset.h5", "test_0/dataset.h5"]
    assert sorted(found) == sorted([*shards, "manifest.json"])
    return found


def command(source: Path, out: Path, *options: str) -> list[str]:
    return ["convert", str(source), str(out), *OPTIONS, *options]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    words = [sys.executable, "-c", restore + SLOWLY, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(child: "subprocess.Popen[str]", happened: Callable[[], bool]) -> bool:
    """Wait until it has happened; False if the child has ended before."""
    end = time.monotonic() + 60
    while not happened():
        if child.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.005)
    return True


def shards_in(out: Path) -> dict[Path, tuple[int, int]]:
    """Return the finished shards, each with what would change if it were made again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*/dataset.h5")}


def recorded(out: Path) -> set[str]:
    return {path.stem for path in (out / ".convert").glob("*_*.json")}


@pytest.mark.parametrize("most", [pytest.param(2, marks=pytest.mark.slow), pytest.param(99, marks=pytest.mark.nightly)])
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    most: int, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pieces, kills, seen = out / ".convert" / "pieces", 0, {}
    while kills < most and not (out / "manifest.json").exists():
        done, there = len(recorded(out)), len(list(pieces.glob("*.npz")))
        child = start(command(source, out, *ONE))

        def something_new(done: int = done, there: int = there) -> bool:
            return len(recorded(out)) > done or len(list(pieces.glob("*.npz"))) > there

        if wait_for(child, something_new):
            time.sleep(0.02 * (kills % 6))  # between pieces, within one, within the writing of a shard
            child.kill()
            kills += 1
        child.communicate()
        now = shards_in(out)
        kept = {path: facts for path, facts in seen.items() if path.parent.name in recorded(out)}
        assert {path: now[path] for path in kept} == kept  # a finished shard is not made again
        seen = {path: facts for path, facts in now.items() if path.parent.name in recorded(out)}
    assert kills >= min(most, 4)
    assert data_cli.main(command(source, out, *ONE)) == 0
    assert files_of(out) == whole


@pytest.mark.parametrize(
    "workers", [pytest.param("1", marks=pytest.mark.nightly), pytest.param("2", marks=pytest.mark.slow)]
)
def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(
    workers: str, source: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    child = start(command(source, out, "--workers", workers))
    assert wait_for(child, lambda: "train_0" in recorded(out))
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "specvit: stopped by Ctrl-C; run the same command again to resume.\n" in said and "Traceback" not in said
    before = shards_in(out)
    assert "manifest.json" not in files_of(out) and not list(out.rglob("*.tmp"))
    capsys.readouterr()
    assert data_cli.main(command(source, out, "--workers", workers)) == 0
    assert "spectra are there already" in capsys.readouterr().out
    assert {path: facts for path, facts in shards_in(out).items() if path in before} == before
    assert files_of(out) == whole


@pytest.mark.slow
def test_workers_end_with_a_killed_conversion(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = start(command(source, out, "--workers", "2"))
    assert wait_for(child, lambda: len(list((out / ".convert" / "pieces").glob("*.npz"))) > 0)
    children = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    assert len(children) >= 2
    child.kill()
    child.communicate()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert data_cli.main(command(source, out, *ONE)) == 0
    assert files_of(out) == whole


@pytest.mark.slow
def test_a_worker_that_dies_ends_it_in_one_sentence(source: Path, tmp_path: Path) -> None:
    child = start(command(source, tmp_path / "out", "--workers", "2"))

    def workers() -> list[int]:
        pids = map(int, Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split())
        return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    assert wait_for(child, lambda: bool(workers()))
    os.kill(workers()[0], signal.SIGKILL)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 2 and "Traceback" not in said
    assert (
        "specvit: a worker process died, perhaps for lack of memory; run the same command again to resume; --workers"
        in said
    )


def test_leftovers_of_a_kill_are_swept_up_and_a_shard_without_record_is_made_again(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, "test_0")
    assert data_cli.main(command(source, out, *ONE)) == 130
    monkeypatch.undo()
    (out / ".convert" / "val_0.json").unlink()  # killed between the shard and its record
    (out / "val_0" / "dataset.h5").write_bytes(b"half")
    os.truncate(out / "train_2" / "dataset.h5", 5000)  # by a machine that died, with its record
    leftovers = [out / "train_1" / ".dataset.h5.77.tmp", out / ".convert" / "pieces" / ".x.npz.7.tmp"]
    for leftover in leftovers:
        leftover.touch()
    before = {path: facts for path, facts in shards_in(out).items() if path.parent.name in ("train_0", "train_1")}
    assert len(before) == 2
    assert data_cli.main(command(source, out, *ONE)) == 0
    assert files_of(out) == whole
    assert {path: facts for path, facts in shards_in(out).items() if path in before} == before


def test_a_finished_conversion_is_left_alone(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert data_cli.main(command(source, out, *ONE)) == 0
    before, found = shards_in(out), files_of(out)
    capsys.readouterr()
    assert data_cli.main(command(source, out, *ONE)) == 0
    assert f"{out} is finished: nothing to do" in capsys.readouterr().out
    assert data_cli.main(command(source, out, *ONE, "--seed", "4")) == 2
    assert f"{out}: was made with no --seed, and not with --seed 4; type the same" in capsys.readouterr().err
    assert data_cli.main([*command(source, out, *ONE), "--magnitudes", "20", "21"]) == 2
    assert "was made with --magnitudes 20.5 22.5, and not with --magnitudes 20 21" in capsys.readouterr().err
    assert (shards_in(out), files_of(out)) == (before, found)
    (out / "val_0" / "dataset.h5").write_bytes(b"")
    assert data_cli.main(command(source, out, *ONE)) == 2
    assert "val_0/dataset.h5: is not what its manifest says; name another target" in capsys.readouterr().err


def test_one_that_was_begun_refuses_other_options_and_other_sources(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    for path in sorted(source.iterdir())[:20]:
        (folder / path.name).write_bytes(path.read_bytes())
    interrupt(monkeypatch, "val_0")
    assert data_cli.main(command(folder, out, *ONE)) == 130
    monkeypatch.undo()
    found = files_of(out)

    def refused(*options: str) -> str:
        capsys.readouterr()
        assert data_cli.main(command(folder, out, *ONE, *options)) == 2
        assert files_of(out) == found
        return capsys.readouterr().err

    assert "was begun with no --air or --vacuum, and not with --air; " in refused("--air")
    assert "was begun with --shard 20, and not with --shard 10" in refused("--shard", "10")
    (folder / "9000_1.0_0.0.txt").write_text("7000 1\n9000 1\n")
    assert "was begun from other sources (9000_1.0_0.0.txt); name another target" in refused()
    (folder / "9000_1.0_0.0.txt").unlink()
    touched = sorted(folder.iterdir())[3]
    os.utime(touched, ns=(1, 1))
    assert f"was begun from other sources ({touched.name})" in refused()


def test_one_of_which_nothing_is_made_yet_may_be_begun_otherwise(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, "train_0")
    assert data_cli.main(command(source, out, *ONE)) == 130
    assert not out.exists()
    monkeypatch.undo()
    (out / ".convert" / "unpacked").mkdir(parents=True)  # killed there
    (out / ".convert" / "plan.json").write_text('{"format": 1, "options": {}, "inputs": {}, "sources": []}')
    assert data_cli.main(command(source, out, *ONE, "--seed", "4")) == 0


def test_two_processes_do_not_convert_into_one_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "out" / ".convert" / ".lock"):
        assert data_cli.main(command(source, tmp_path / "out", *ONE)) == 2
    assert "out: another process converts into it; wait until it is done." in capsys.readouterr().err


def test_inspect_knows_a_converted_file_by_its_manifest(
    source: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name, content in whole.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    path = out / "val_0" / "dataset.h5"
    data_cli.main(["inspect", str(path)])
    assert "manifest.json: these bytes were written by `specvit data convert`" in capsys.readouterr().out
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    assert data_cli.main(["inspect", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"FAULT: it is not the file that {out}/manifest.json describes" in shown


def test_progress_is_told_in_lines(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(command(source, tmp_path / "out", *ONE)) == 0
    shown = capsys.readouterr().out
    assert "converting 80 spectra\n" in shown and "converted 80 of 80 spectra\n" in shown
    paths = "data.file_path='train_*/dataset.h5' data.val_path='val_*/dataset.h5' data.test_path='test_*/dataset.h5'"
    assert f"train on them:  specvit train data=hdf5 data.root={tmp_path / 'out'} {paths}\n" in shown


@pytest.mark.parametrize("fault", [OSError(errno.EPIPE, ""), OSError("handle is closed"), OSError(errno.EBADF, "")])
def test_a_worker_that_dies_as_one_starts_is_not_a_closed_output(
    fault: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: object) -> None:
        raise fault

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", died)
    with pytest.raises(BrokenProcessPool), process_pool(2) as pool:
        pool.submit(len, "")


def test_a_queue_closed_by_another_death_breaks_the_pool_and_does_not_hang() -> None:
    with pytest.raises(BrokenProcessPool), process_pool(2) as pool:
        pool.submit(time.sleep, 60)
        pool._call_queue._reader.close()  # pyright: ignore[reportAttributeAccessIssue] # as the pool's own thread does
        pool.submit(len, "")
