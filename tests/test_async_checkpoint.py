"""Checkpoints written beside the training: copies, in order, none after one that failed."""

import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from specvit.training import checkpoint
from specvit.training.checkpoint import MAX_PENDING, AsyncCheckpointWriter, host_copy
from specvit.utils.files import write_text


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every write back until the event is set."""
    opened, save = threading.Event(), checkpoint.save

    def waiting(*arguments, **named) -> None:
        assert opened.wait(30)
        save(*arguments, **named)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return opened


def test_a_copy_is_of_its_moment_and_shares_memory_as_its_source_did() -> None:
    buffer = torch.arange(6.0)
    content = {"a": buffer[:4].view(2, 2), "list": [buffer[4:], 3, "text"], "half": torch.ones(2).half(), "empty": {}}
    found = host_copy(content)
    buffer.zero_()
    assert torch.equal(found["a"], torch.arange(4.0).view(2, 2))
    assert torch.equal(found["list"][0], torch.tensor([4.0, 5.0]))
    assert found["list"][1:] == [3, "text"]
    assert (found["half"].dtype, found["empty"]) == (torch.float16, {})
    assert found["a"].untyped_storage().data_ptr() == found["list"][0].untyped_storage().data_ptr()
    assert torch.equal(host_copy({"none": torch.empty(0)})["none"], torch.empty(0))


def test_training_continues_while_a_file_is_written(tmp_path: Path, gate: threading.Event) -> None:
    writer, path = AsyncCheckpointWriter(), tmp_path / "a.ckpt"
    writer.put(path, {"number": 1})
    writer.check()
    assert not path.exists()
    gate.set()
    writer.finish()
    assert checkpoint.load(path)["number"] == 1


def test_a_slow_disk_holds_the_training_up_rather_than_fill_the_memory(tmp_path: Path, gate: threading.Event) -> None:
    writer = AsyncCheckpointWriter()
    for number in range(MAX_PENDING):
        writer.put(tmp_path / "a.ckpt", {"number": number})
    third = threading.Thread(target=writer.put, args=(tmp_path / "a.ckpt", {"number": 9}))
    third.start()
    third.join(0.3)
    assert third.is_alive()
    gate.set()
    third.join(30)
    writer.finish()
    assert checkpoint.load(tmp_path / "a.ckpt")["number"] == 9


def test_nothing_is_written_after_a_file_that_failed_and_the_failure_is_raised(
    tmp_path: Path, gate: threading.Event
) -> None:
    writer = AsyncCheckpointWriter()
    writer.put(tmp_path / "missing" / "best.ckpt", {"number": 1})
    writer.put(tmp_path / "last.ckpt", {"number": 1})
    gate.set()
    with pytest.raises(FileNotFoundError):
        writer.finish()
    assert list(tmp_path.iterdir()) == []
    writer.put(tmp_path / "last.ckpt", {"number": 2})
    writer.finish()
    assert checkpoint.load(tmp_path / "last.ckpt")["number"] == 2


def test_check_raises_once_a_write_has_failed(tmp_path: Path) -> None:
    writer = AsyncCheckpointWriter()
    writer.put(tmp_path / "missing" / "last.ckpt", {"number": 1})
    with pytest.raises(FileNotFoundError):
        for _ in range(1000):
            writer.check()
            threading.Event().wait(0.01)
    with pytest.raises(FileNotFoundError):
        writer.put(tmp_path / "last.ckpt", {"number": 2})
    with pytest.raises(FileNotFoundError):
        writer.finish()
    writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_two_threads_that_write_files_leave_the_umask_alone(tmp_path: Path) -> None:
    before, interval = os.umask(0o027), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def write(name: str) -> None:
            for _ in range(200):
                write_text(tmp_path / name, "x")

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.umask(0o027) == 0o027
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o640, 0o640]
    finally:
        sys.setswitchinterval(interval)
        os.umask(before)
