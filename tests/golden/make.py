"""Makes the golden corpus beside this file, with the specvit of commit 0e0e6c1 and no other; see README.md.

    cd EMPTY_FOLDER && CHECKOUT_OF_0e0e6c1/.venv/bin/python -P .../tests/golden/make.py

`canary`, `digest` and `versions` serve the tests, too: they say where numbers can be compared bit for bit.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

HERE = Path(__file__).resolve().parent
COMMIT = "0e0e6c1"
HOST = "golden"
"""What the records have for the name of the machine."""
PIXELS = 64
WORDS = {
    "FILES": "data=hdf5 data.root=data data.file_path=train_*/dataset.h5 data.val_path=val/dataset.h5 "
    "data.test_path=test/dataset.h5",
    "VIT": "model.patch_size=8 model.stride_size=8 model.hidden_size=8 model.num_hidden_layers=1 "
    "model.num_attention_heads=2 model.intermediate_size=16",
    "CNN": "model=cnn model.channels=[4,8] model.kernel_size=5 model.head_size=8",
    "TREES": "model=lightgbm model.num_trees=40 model.min_leaf_rows=8 model.pixel_fraction=0.5",
    "CLASSES": "loss=ce model.task_type=cls data.class_edges=[2.5,3.5] train.early_stopping.monitor=val_accuracy",
    "MADE": "data.num_samples=64 data.val_samples=16 data.test_samples=16 model.patch_size=256 model.stride_size=256 "
    "model.hidden_size=8 model.num_hidden_layers=1 model.num_attention_heads=2 model.intermediate_size=16",
    "EXPLODES": "model.num_hidden_layers=3 noise.noise_level=100 opt.lr=1.0 opt.lr_sch=constant opt.warmup_epochs=3 "
    "train.gradient_clip=null",
    "TRAINED": "train.epochs=4 train.batch_size=16 opt.lr=1e-2",
    "QUIET": "tracking.progress=lines tracking.live=false train.threads=1",
    "32": "train.precision=32",
    "BF16": "train.precision=bf16-mixed",
    "FP16": "train.precision=16-mixed",
}
"""What stands for several overrides. With EXPLODES the loss of the last epoch is four times that of the first."""
RUNS = """
c1d                  FILES VIT TRAINED 32
sw_l1_bf16           FILES VIT TRAINED BF16 model.proj_fn=SW loss=l1 opt.lr_sch=onecycle
sw_overlap_huber_16  opt=adam FILES VIT TRAINED FP16 model.proj_fn=SW model.stride_size=4 loss=huber \
                     loss.huber_delta=0.5 opt.warmup_epochs=1
c1d_overlap_rope     opt=sgd FILES VIT TRAINED model.stride_size=4 model.pos_encoding_type=rope model.pool=mean \
                     train.precision=auto
three_labels         FILES VIT TRAINED 32 data.param=[log_g,T_eff,M_H] data.label_norm=minmax model.pool=attention \
                     opt.type=RMSprop opt.lr_sch=step opt.step_epochs=1
classes              FILES VIT TRAINED 32 CLASSES loss.label_smoothing=0.1
classes_cnn_bf16     CNN FILES TRAINED BF16 CLASSES
cnn                  CNN FILES TRAINED 32
subset_float16       noise=homoscedastic FILES VIT TRAINED 32 data.num_samples=100 data.subset=random \
                     data.subset_seed=3 data.order=block data.storage=float16 train.batch_size=8 train.accumulate=2
legacy               noise=none FILES VIT TRAINED 32 model.init=legacy data.flux_norm=none opt.lr_sch=plateau \
                     opt.plateau_patience=0 model.pos_encoding_type=sinusoidal
early                FILES VIT TRAINED 32 train.epochs=40 train.early_stopping.patience=2
plateau              FILES VIT TRAINED 32 opt.lr=1e-9 opt.eta_min=0
exploded             FILES VIT TRAINED 32 EXPLODES train.seed=2
diverged             opt=sgd FILES VIT TRAINED 32 opt.lr=1e30 train.gradient_clip=null
ridge                model=ridge FILES
trees                TREES FILES
template             model=template FILES
builtin              data=builtin MADE TRAINED 32 model.proj_fn=SW
synth                data=synth MADE TRAINED 32 data.endless=true
started_from_c1d     FILES VIT TRAINED 32 train.seed=5 train.init_from=C1D
preempted            FILES VIT TRAINED 32 model.dropout=0.1 train.epochs=60 train.seed=1
killed               FILES VIT TRAINED 32 model.dropout=0.1 train.epochs=60 train.seed=2 model.proj_fn=SW
"""
INTERRUPTED = {"preempted": signal.SIGTERM, "killed": signal.SIGKILL}
"""How these were stopped; `unbroken/` has the same runs made in one go."""
THIRTY_STEPS = "FILES data.num_samples=96 train.batch_size=16 train.epochs=5 opt.lr=3e-3"
"""Added to each of these; what is fitted in one go takes FILES alone."""
DIGESTS = """
c1d          VIT
sw           VIT model.proj_fn=SW
c1d_overlap  VIT model.stride_size=4 model.pos_encoding_type=rope model.pool=mean
sw_overlap   VIT model.proj_fn=SW model.stride_size=4 model.pool=attention
cnn          CNN
adam         opt=adam VIT
sgd          opt=sgd VIT
rmsprop      VIT opt.type=RMSprop
classes      VIT CLASSES
ridge        model=ridge
lightgbm     TREES
template     model=template
"""
IN_EACH_PRECISION = ("c1d", "sw", "c1d_overlap", "sw_overlap", "cnn")
FITTED = ("ridge", "trees", "lightgbm", "template")
STUDIES: dict[str, dict[str, Any]] = {
    "grid": {
        "overrides": "FILES VIT TRAINED 32 QUIET",
        "grids": [
            {"axes": {"model/tokenizer": ["c1d", "sw"], "data.num_samples": [48, 96, 192]}},
            {"cells": {"diverged": "opt=sgd opt.lr=1e30 train.gradient_clip=null"}},
        ],
        "seeds": [1, 2],
    },
    "search": {
        "overrides": "FILES VIT TRAINED 32 QUIET train.epochs=6",
        "search": {
            "space": {"opt.lr": {"low": 1e-4, "high": 0.05, "log": True}, "model/tokenizer": ["c1d", "sw"]},
            "metrics": {"val_r2": "maximize"},
            "trials": 8,
            "sampler": "tpe",
            "pruner": {"name": "median", "n_startup_trials": 2, "warmup_steps": 12},
        },
    },
    "stopped": {
        "overrides": "FILES VIT TRAINED 32 QUIET train.epochs=60",
        "grids": [{"cells": {"exploded": "EXPLODES train.epochs=4"}}, {"axes": {"loss": ["mse", "l1"]}}],
        "seeds": [1, 2],
    },
}
STOPPED_TRIAL = 3


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "lightgbm")}


def canary() -> str:
    """Return a digest of fixed arithmetic; where it differs, so may the last bits of everything."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(96, 96, generator=generator) for _ in range(2))
    signal_, kernel = left[:, None, :], right[:8, None, :9].contiguous()
    results = [left @ right, left.exp(), torch.nn.functional.conv1d(signal_, kernel), torch.softmax(left @ right, 1)]
    results += [(left.bfloat16() @ right.bfloat16()).float(), (left.half() @ right.half()).float()]
    results += [torch.nn.functional.gelu(left), left.rsqrt().nan_to_num(), left.sum(1), torch.tanh(right)]
    solved = np.linalg.solve(left.double().numpy(), right.double().numpy())
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in results) + solved.tobytes()).hexdigest()[:16]


def digest(model: dict[str, Any]) -> str:
    """Return a digest of all parameters in the order of their names."""
    found = hashlib.sha256()
    for name, value in sorted(model.items()):
        content = (
            value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else json.dumps(value).encode()
        )
        found.update(name.encode() + content)
    return found.hexdigest()[:16]


def digest_of_run(run: Path) -> str:
    """Return the digest of what a run trained last, or fitted."""
    file = run / "last.ckpt" if (run / "last.ckpt").exists() else run / "best.ckpt"
    return digest(torch.load(file, weights_only=True)["model"])


def lines_of(text: str) -> list[tuple[str, str]]:
    """Return name and words of each line of a table."""
    found = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return [(name, words) for name, words in found]


def overrides_of(text: str) -> list[str]:
    """Return what words stand for, each key once: the last counts."""
    words = [word for part in text.split() for word in WORDS.get(part, part).split()]
    return list({word.partition("=")[0]: word for word in words}.values())


def settings_of(text: str) -> dict[str, Any]:
    """Return overrides as a study's file has them."""
    pairs = (word.partition("=") for word in overrides_of(text))
    return {key: value if key == "train.precision" else yaml.safe_load(value) for key, _, value in pairs}


def write_data() -> None:
    """Write spectra whose lines are as deep as the labels say; few bits a value, so that they compress."""
    import pandas as pd

    from specvit.data.shards import write_shard
    from specvit.utils.quantities import LABELS

    grid_P = np.arange(PIXELS) / PIXELS
    for seed, (name, rows) in enumerate({"train_0": 96, "train_1": 96, "val": 48, "test": 64}.items()):
        rng = np.random.default_rng(seed)
        labels = pd.DataFrame({name: rng.uniform(0.0, 1.0, rows).round(3) for name in LABELS})
        labels["log_g"], labels["T_eff"] = 1 + 4 * labels["log_g"], 3750 + 2250 * labels["T_eff"]
        labels["mag"], labels["snr"] = 17 + 4 * labels["mag"], 10 + 30 * labels["snr"]
        depths = (labels["log_g"] / 6, labels["M_H"] / 2, labels["T_eff"] / 12000)
        flux_NP = np.ones((rows, PIXELS))
        for centre, depth in zip((0.4, 0.7, 0.15), depths, strict=True):
            flux_NP *= 1 - depth.to_numpy()[:, None] * np.exp(-0.5 * ((grid_P - centre) / 0.05) ** 2)
        error_NP = rng.uniform(0.01, 0.03, (rows, 1)).round(4) * np.ones(PIXELS)
        flux_NP = flux_NP.astype(np.float16).astype(np.float32)
        wave_P = 7100.0 + 0.5 * np.arange(PIXELS)
        folder = Path("data") / name
        folder.mkdir(parents=True)
        write_shard(folder / "dataset.h5", wave_P=wave_P, flux_NP=flux_NP, error_NP=error_NP, labels=labels)


def in_child(work: Callable[[], Any]) -> int:
    """Fork, do the work there and return the child's pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = int(work() or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def train(words: list[str]) -> int:
    """Give `specvit train` its words."""
    from specvit.commands.train import main

    sys.argv = ["specvit train", *words]
    return main(words)


def whole(words: list[str]) -> int:
    """Train in a child and return the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(in_child(lambda: train(words)), 0)[1])


def stopped(words: list[str], with_signal: int, run: Callable[[], Path | None], epochs: int) -> None:
    """Train in a child and stop it when so many epochs of a run are on file."""
    pid = in_child(lambda: train(words))

    def on_file() -> int:
        found = run()
        with contextlib.suppress(OSError):
            return len((found / "metrics.jsonl").read_text().splitlines()) if found else 0
        return 0

    while on_file() < epochs:
        time.sleep(0.0005)
    time.sleep(random.uniform(0.005, 0.03))
    os.kill(pid, with_signal)
    os.waitpid(pid, 0)


def only(pattern: str) -> Path | None:
    """Return the one folder that a pattern finds, or None."""
    return next(Path().glob(pattern), None)


def steps_of(run: Path) -> int:
    """Return the step of a run's last checkpoint."""
    return int(torch.load(run / "last.ckpt", weights_only=True)["state"]["step"])


def make_runs() -> dict[str, Any]:
    """Make the run folders and return what is to be known of each."""
    expected: dict[str, Any] = {}
    for name, text in lines_of(RUNS):
        words = [*overrides_of(f"{text} QUIET"), f"tracking.name={name}"]
        words = [word.replace("=C1D", f"={only('outputs/c1d-*')}") for word in words]
        if name in INTERRUPTED:
            whole([*words, "tracking.folder=unbroken"])
            while (run := only(f"outputs/{name}-*")) is None or (name == "preempted" and not steps_of(run) % 12):
                shutil.rmtree(run or "nowhere", ignore_errors=True)
                stopped(words, INTERRUPTED[name], lambda name=name: only(f"outputs/{name}-*"), epochs=25)
        else:
            whole(words)
        run = only(f"outputs/{name}-*")
        assert run is not None, name
        state = json.loads((run / "status.json").read_text())["state"]
        expected[name] = {"overrides": words, "folder": run.name, "state": "lost" if state == "running" else state}
    return expected


def make_studies() -> dict[str, Any]:
    """Make the studies and the archive of one, and return what is to be known of each."""
    Path("sweeps").mkdir()
    expected: dict[str, Any] = {}
    for name, definition in STUDIES.items():
        definition["overrides"] = settings_of(definition["overrides"])
        for grid in definition.get("grids", []):
            grid |= {"cells": {cell: settings_of(text) for cell, text in grid.get("cells", {}).items()}}
        text = f"# Question: what does {name} show?\n" + yaml.safe_dump(definition, sort_keys=False)
        (Path("sweeps") / f"{name}.yaml").write_text(text)
        words = [f"sweeps={name}", "tracking.folder=outputs"]
        words += ["hydra/launcher=local", "hydra.launcher.slots=2"] if name == "grid" else []
        if name == "stopped":
            trial = Path(f"multirun/{name}/trials/{STOPPED_TRIAL:04d}.json")

            def run(trial: Path = trial) -> Path | None:
                with contextlib.suppress(OSError, ValueError):
                    return trial.parent / ".." / json.loads(trial.read_text())["folder"]
                return None

            stopped(words, signal.SIGTERM, run, epochs=25)
        else:
            whole(words)
        trials = [json.loads(path.read_text()) for path in sorted(Path(f"multirun/{name}/trials").glob("*.json"))]
        states = []
        for trial in trials:
            status = Path(f"multirun/{name}") / trial["folder"] / "status.json"
            states.append(json.loads(status.read_text())["state"] if status.exists() else "waiting")
        expected[name] = {"overrides": words, "run_ids": [trial["run_id"] for trial in trials], "states": states}

    def archive() -> int:
        from specvit.commands.analysis import main

        return main(["archive", "multirun/grid", "archive.tar.xz"])

    os.waitpid(in_child(archive), 0)
    return expected


def make_digests() -> dict[str, Any]:
    """Return the digest of each model at each precision after 30 steps, with the overrides that lead to it."""
    found = {}
    for model, text in lines_of(DIGESTS):
        for precision in ("32", "BF16", "FP16") if model in IN_EACH_PRECISION else ("32",):
            more = "FILES" if model in FITTED else f"{THIRTY_STEPS} {precision}"
            words = [*overrides_of(f"{text} {more} QUIET"), "tracking.name=run"]
            shutil.rmtree("digests", ignore_errors=True)
            assert whole([*words, "tracking.folder=digests"]) == 0, words
            run = only("digests/*")
            assert run is not None
            found[f"{model} {precision}"] = {"overrides": words, "digest": digest_of_run(run)}
    return found


def pack(name: str, folders: list[str]) -> None:
    """Write folders into one file, without figures, locks and disk reserves, and with another name for the machine."""
    renamed = {str(Path.cwd()): "/golden", f'"{os.uname().nodename}"': f'"{HOST}"'}
    for path in (path for folder in folders for path in Path(folder).rglob("*.*")):
        if path.suffix in (".json", ".jsonl", ".txt", ".log") and path.is_file() and not path.is_symlink():
            text, times = path.read_text(), path.stat()
            for old, new in renamed.items():
                text = text.replace(old, new)
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        base = Path(info.name).name
        if base in ("figures", ".lock", ".ballast", "__pycache__") or base.endswith(".lock"):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(HERE / name, "w:xz", preset=9) as packed:
        for folder in folders:
            packed.add(folder, filter=chosen)


def main() -> None:
    """Make all of it."""
    from specvit.utils.provenance import commit

    assert commit() == COMMIT, f"make it with the specvit of {COMMIT}, not {commit()}"
    assert not list(Path().iterdir()), "begin in an empty folder"
    socket.gethostname = lambda: HOST
    os.environ["SPECVIT_CACHE"] = str(Path.cwd().with_name(Path.cwd().name + "-cache"))
    torch.set_num_threads(1)
    write_data()
    digests = make_digests()
    runs = make_runs()
    pack("runs.tar.xz", ["data", "outputs", "unbroken"])
    shutil.rmtree("outputs")
    studies = make_studies()
    pack("studies.tar.xz", ["sweeps", "outputs", "multirun"])
    shutil.copy("archive.tar.xz", HERE / "archive.tar.xz")
    facts = {"commit": COMMIT, "versions": versions(), "canary": canary(), "threads": 1, "processor": _processor()}
    text = json.dumps({**facts, "runs": runs, "studies": studies, "digests": digests}, indent=1)
    (HERE / "expected.json").write_text(text + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
