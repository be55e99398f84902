"""Files that are whole or absent, and locks that die with their process."""

import errno
import os
import stat
from pathlib import Path

import hostile
import pytest
import yaml
from processes import ready_process

from specvit.utils.errors import FolderError
from specvit.utils.files import (
    append_line,
    check_aliases,
    locked,
    read_json,
    read_json_lines,
    read_yaml,
    write_atomic,
    write_text,
)

LOCKER = """
import sys, time
from pathlib import Path
from specvit.utils.files import locked
with locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail(stream) -> None:
        stream.write(b"new, but only ha")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_old_file_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    path, kept = tmp_path / "a.txt", tmp_path / "kept.txt"
    for number in range(3):
        write_atomic(path, lambda stream, number=number: stream.write(b"%d" % number), keep=kept)
        assert kept.exists() == (number > 0)
    assert (path.read_text(), kept.read_text()) == ("2", "1")


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_between_the_renames_loses_neither_file(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "a.txt", tmp_path / "kept.txt"
    kept.write_text("oldest")
    path.write_text("old")
    real, left = os.replace, [renames]

    def replace(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, lambda stream: stream.write(b"new"), keep=kept)
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == ({"a.txt": "old", "kept.txt": "oldest"} if renames == 0 else {"kept.txt": "old"})


def test_a_new_file_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "a")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_lock_is_let_go_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "made" / ".lock"
    with ready_process(LOCKER, str(path)) as child:
        with locked(path, seconds=0) as mine:
            assert not mine
        child.kill()
        with locked(path) as mine:
            assert mine


@pytest.mark.parametrize("content", [None, b"", b"{half", b"\xff\xfe"])
def test_a_missing_or_damaged_json_file_gives_the_default(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json", {"fresh": True}) == {"fresh": True}


def test_a_line_after_one_that_was_cut_off_is_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for torn in ("", '{"n": 0}', '{"n": 0}\n', '{"n": 0}\n{"n', "\n"):
        file.write_text(torn)
        append_line(file, {"n": 1})
        append_line(file, {"n": 2}, durable=True)
        assert read_json_lines(file)[-2:] == [{"n": 1}, {"n": 2}], torn


def test_only_a_file_that_is_not_there_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, real, left = tmp_path / "a.json", Path.read_text, [2]
    file.write_text('{"n": 1}')

    def stale(self: Path, **named: object) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return real(self, **named)

    monkeypatch.setattr(Path, "read_text", stale)
    assert read_json(file) == {"n": 1}  # the server fails twice
    left[0] = 3
    with pytest.raises(OSError, match="Stale"):
        read_json(file)
    monkeypatch.setattr(Path, "read_text", real)
    assert (read_json(tmp_path / "none", 7), read_json(file / "none", 7)) == (7, 7)
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


def test_aliases_may_stand_for_as_many_values_as_a_file_could_hold_and_not_for_themselves() -> None:
    check_aliases("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n")
    merged = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 26))
    for text, line in ((hostile.YAML["aliases without end"], 16), (merged, 16), (hostile.YAML["alias of itself"], 1)):
        with pytest.raises(yaml.YAMLError, match=f"line {line}: an alias refers to itself or to more than 100,000"):
            check_aliases(text)


BAD_RECORDS = [
    b"[1, 2]",
    b"3",
    b"caf\xe9: 1",
    b"a: [",
    3000 * b"[",
    b"a: " + 5000 * b"9",
    hostile.YAML["alias of itself"].encode(),
]


@pytest.mark.parametrize("text", BAD_RECORDS, ids=repr)
def test_a_record_that_holds_no_names_with_values_is_damaged(text: bytes, tmp_path: Path) -> None:
    (record := tmp_path / "record").write_bytes(text)
    assert read_json(record, {"none": 0}) == {"none": 0}
    with pytest.raises(FolderError, match="is damaged"):
        read_yaml(record)
