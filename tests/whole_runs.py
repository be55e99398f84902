"""What whole runs in processes of their own share: the run that is killed, and the proof that nothing was lost."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from specvit.run_folder.folder import RunFolder
from specvit.training import checkpoint

STEADY = ["model.dropout=0.1", "noise.noise_level=1.0", "train.epochs=4", "opt.lr=3e-3"]
STEADY += ["train.threads=1", "train.deterministic=true"]
"""Added to `tiny`: a run of four epochs of twelve steps, with dropout, shuffling and noise, that learns."""


def only_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def state_of(run: Path) -> str:
    return RunFolder(run, "").state() or "nothing yet"


def same_content(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_content(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_content(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_run(run: Path, reference: Path) -> None:
    for name in ("metrics.jsonl", "predictions.csv", "val_predictions.csv", "summary.json"):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = checkpoint.load(run / name), checkpoint.load(reference / name)
        for content in (ours, theirs):
            del content["config"]  # where files lie may differ; all else in it makes the run id
            del content["made_by"]  # the sources may be edited while the tests run
        assert same_content(ours, theirs), name


def whole_and_stopped(words: Callable[[str], list[str]], number: signal.Signals, moment: str) -> str:
    """Make the run `words("whole")`; stop `words("stopped")` at the line with `moment` and begin it again.

    Return what that one says.
    """

    def begin(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "specvit.train", *words(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = begin("whole")
    whole.communicate()
    stopped = begin("stopped")
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if moment in line:
            stopped.send_signal(number)
            break
    stopped.communicate()
    again = begin("stopped")
    said = again.communicate()[0]
    assert whole.returncode == again.returncode == 0 and stopped.returncode != 0
    return said
