"""What MLflow records cost a run: python benchmarks/tracking.py [--rounds 3].

Whole commands in processes of their own, interleaved: without MLflow (`tracking.live=false`), with it on a database
that is there, on a fresh one, on one that is locked, and with a server that is down. For each: seconds from process
start to the end of the first step, seconds of training an epoch (without the first), seconds of the whole command, and
CPU seconds of the sync process. Then `sync` by itself: one more epoch, and a whole run of 200 epochs.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from specvit.run_folder.folder import RunFolder
from specvit.tracking.mlflow import Server
from specvit.utils.files import read_json_lines, write_json

SETTINGS = ["experiment=demo_c1d", "data.num_samples=2000", "train.epochs=5", "tracking.progress=none"]
ARMS = ("without", "with", "fresh database", "locked database", "server down")


def main() -> None:
    """Measure and print one line an arm and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "ready.db"
        Server(f"sqlite:///{database}")
        measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        measure("without", Path(name) / "warm-up", database)  # spectra into the cache, files into the page cache
        for number in range(options.rounds):
            for arm in ARMS:
                measured[arm].append(measure(arm, Path(name) / f"{arm} {number}".replace(" ", "-"), database))
        result = {arm: summary(rows) for arm, rows in measured.items()} | {"sync": sync_alone(Path(name))}
    for arm in ARMS:
        print(f"{arm:16s}", "  ".join(f"{what} {value}" for what, value in result[arm].items()))
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "settings": SETTINGS, "rounds": options.rounds, **result}))


def measure(arm: str, folder: Path, database: Path) -> dict[str, float]:
    """Run one command and return its figures in seconds."""
    folder.mkdir()
    uri = {"server down": "http://127.0.0.1:9"}.get(arm, f"sqlite:///{folder / 'mlflow.db'}")
    if arm in ("with", "locked database"):
        shutil.copy(database, folder / "mlflow.db")
    overrides = [*SETTINGS, f"tracking.folder={folder / 'outputs'}", f"tracking.uri={uri}"]
    overrides += [f"tracking.live={str(arm != 'without').lower()}"]
    words = [sys.executable, __file__, "--child", *overrides]
    with locked_database(folder / "mlflow.db") if arm == "locked database" else contextlib.nullcontext():
        begun = time.monotonic()
        shown = subprocess.run(words, env={**os.environ, "BEGUN": str(begun)}, capture_output=True, text=True)
        whole = time.monotonic() - begun
    if shown.returncode:
        raise SystemExit(shown.stdout + shown.stderr)
    figures = json.loads(shown.stdout.splitlines()[-1])
    (run,) = (folder / "outputs").iterdir()
    epochs = [row["train_seconds"] for row in read_json_lines(run / "timing.jsonl")]
    subprocess.run(["pkill", "-9", "-f", f"specvit.track follow {run}"], check=False)
    return {**figures, "epoch": statistics.mean(epochs[1:]), "whole": whole}


@contextlib.contextmanager
def locked_database(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a sqlite database."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("begin exclusive")
        yield


def child(overrides: list[str]) -> None:
    """Train with a watch on the first step, and print when it was through and what child processes took."""
    from specvit.commands.train import main as train
    from specvit.training.step import Learner

    step, moments = Learner.step, []

    def watched(*arguments: object) -> None:
        step(*arguments)
        if not moments:
            moments.append(time.monotonic())

    Learner.step = watched
    code = train(overrides)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    sync_cpu = used.ru_utime + used.ru_stime
    print(json.dumps({"first_step": moments[0] - float(os.environ["BEGUN"]), "courier_cpu": sync_cpu}))
    sys.exit(code)


def summary(rows: list[dict[str, float]]) -> dict[str, str]:
    """Return median and range of each figure."""
    columns = {name: sorted(row[name] for row in rows) for name in rows[0]}
    return {n: f"{statistics.median(v):.3f} s ({v[0]:.3f}-{v[-1]:.3f})" for n, v in columns.items()}


def sync_alone(root: Path) -> dict[str, str]:
    """Time `sync` on a run folder that grows epoch by epoch, and on one of 200 epochs at once."""
    (run,) = (root / "without-0" / "outputs").iterdir()
    row, times = read_json_lines(run / "metrics.jsonl")[-1], read_json_lines(run / "timing.jsonl")[-1]

    def grow(folder: RunFolder, epochs: range) -> None:
        for name, line in (("metrics.jsonl", row), ("timing.jsonl", times)):
            with open(folder.file(name), "a") as stream:
                stream.writelines(json.dumps({**line, "step": 10 * k, "epoch": k}) + "\n" for k in epochs)

    def copy(name: str, record: str) -> RunFolder:
        shutil.copytree(run, root / name / run.name)
        folder = RunFolder(root / name / run.name, run.name[-8:])
        write_json(folder.file("run.json"), {"run_id": folder.run_id, "record": record})
        for file in ("metrics.jsonl", "timing.jsonl"):
            folder.file(file).write_text("")
        return folder

    server = Server(f"sqlite:///{root / 'sync.db'}")
    one, many = copy("one", "one"), copy("many", "many")
    server.sync(one)
    each = []
    for epoch in range(1, 101):
        grow(one, range(epoch, epoch + 1))
        each.append(seconds(lambda: server.sync(one)))
    grow(many, range(1, 201))
    whole, again = seconds(lambda: server.sync(many)), seconds(lambda: server.sync(many))
    return {
        "one more epoch": f"{1000 * statistics.median(each):.0f} ms (100 epochs, {len(row) + 1} metrics, with files)",
        "200 epochs at once": f"{1000 * whole:.0f} ms",
        "nothing new": f"{1000 * again:.0f} ms",
    }


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
