"""What a run folder keeps: identity and formats, and how results are forgotten, cut back and found again."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from specvit.run_folder.folder import CHECKPOINTS, RESULTS, RunFolder, find_folder
from specvit.utils.errors import FolderError
from specvit.utils.files import read_json, write_json

RUN_ID = "0123abcd"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / f"toy-{RUN_ID}").mkdir()
    return RunFolder(tmp_path / f"toy-{RUN_ID}", RUN_ID)


def test_an_identity_is_written_once(folder: RunFolder) -> None:
    folder.create({"first": 1}, "a: 1\n")
    folder.create({"first": 1}, "a: 2\n")
    about = read_json(folder.file("run.json"))
    assert {name: about[name] for name in ("format", "run_id", "identity")} == {
        "format": 1,
        "run_id": RUN_ID,
        "identity": {"first": 1},
    }
    assert folder.file("config.yaml").read_text() == "a: 2\n"


def test_another_run_under_the_same_id_is_refused(folder: RunFolder) -> None:
    folder.create({"first": 1}, "a: 1\n")
    with pytest.raises(FolderError, match="holds another run"):
        folder.create({"second": 2}, "a: 2\n")


def test_a_writer_that_lives_on_another_host_is_respected(folder: RunFolder) -> None:
    folder.set_status("running", host="elsewhere", pid=17)
    folder.file(".heartbeat").touch()
    with pytest.raises(FolderError, match="process 17 on elsewhere is working on this run"), folder.claimed():
        pass
    an_hour_ago = time.time() - 3600
    os.utime(folder.file(".heartbeat"), (an_hour_ago, an_hour_ago))
    with folder.claimed():
        assert folder.state(claimed=True) == "lost"


LEFT = (*CHECKPOINTS, *RESULTS, "last.ckpt.damaged", "best.ckpt.damaged")


@pytest.mark.parametrize("removed", range(len(LEFT) + 2))
def test_forgetting_that_is_cut_off_leaves_a_run_that_is_still_to_forget(
    folder: RunFolder, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.create({}, "a: 1\n")
    folder.set_status("completed")
    for name in LEFT:
        folder.file(name).touch()
    unlink, left = Path.unlink, [removed]

    def unlink_some(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "unlink", unlink_some)
        folder.forget()
    whole = removed == len(LEFT) + 1
    assert (folder.state(), folder.to_forget()) == (("", False) if whole else ("lost", True))
    folder.forget()
    assert (folder.state(), folder.to_forget()) == ("", False)
    assert {path.name for path in folder.path.iterdir()} == {"run.json", "config.yaml"}


def test_a_folder_of_another_format_is_refused(folder: RunFolder) -> None:
    write_json(folder.file("run.json"), {"format": 99, "run_id": RUN_ID})
    with pytest.raises(FolderError, match="has format 99"):
        folder.create({}, "")
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("torn", ["", '{"step": 1', '{"epoch": 3}\n', "\x00\x00\x00", "[1]\n"])
def test_cutting_back_drops_later_and_torn_lines(name: str, torn: str, folder: RunFolder) -> None:
    lines = "".join(json.dumps({"epoch": n, "step": 10 * n}) + "\n" for n in (1, 2, 3))
    folder.file(name).write_text(lines + torn)
    folder.cut_back(20)
    assert [json.loads(line)["step"] for line in folder.file(name).read_text().splitlines()] == [10, 20]
    folder.cut_back(0)
    assert folder.file(name).read_text() == ""


def test_forgetting_leaves_only_what_names_the_run_and_its_history(folder: RunFolder) -> None:
    folder.create({}, "a: 1\n")
    folder.set_status("completed")
    folder.record_attempt(event="start")
    for name in LEFT:
        folder.file(name).write_text("old")
    folder.forget()
    assert folder.state() == ""
    assert {path.name for path in folder.path.iterdir()} == {"run.json", "config.yaml", "attempts.jsonl"}


def test_a_folder_is_found_by_its_id_whatever_its_name_and_not_beside_a_copy(folder: RunFolder) -> None:
    root = folder.path.parent
    assert find_folder(root, RUN_ID, "another-name").path == folder.path
    renamed = folder.path.rename(root / f"best-so-far-{RUN_ID}")
    assert find_folder(root, RUN_ID, "toy").path == renamed
    (root / f"notes-on-{RUN_ID}").mkdir()
    renamed.joinpath("run.json").write_text("{}")
    assert find_folder(root, RUN_ID, "toy").path == renamed
    shutil.copytree(renamed, root / f"backup-{RUN_ID}")
    with pytest.raises(FolderError, match=f"as backup-{RUN_ID} and best-so-far-{RUN_ID}; move all of these but one"):
        find_folder(root, RUN_ID, "toy")
    new = find_folder(root, "ffff0000", "toy")
    assert (new.path, new.path.exists()) == (root / "toy-ffff0000", False)
    assert find_folder(root / "none", RUN_ID, "toy").path == root / "none" / f"toy-{RUN_ID}"
