"""The job of `specvit doctor --cluster`: examines its node and the shared folder, and writes a report."""

import os
import shutil
import sys
import time
from pathlib import Path

from specvit.run_folder.folder import hostname, job_here
from specvit.utils.files import is_locked, write_atomic, write_json

FOUND, LOCK = "probe.json", "probe.lock"


def main(words: list[str]) -> int:
    """Examine the node; `words` are the shared folder and the size in bytes of a checkpoint to save there."""
    folder, size = Path(words[0]), int(words[1])
    facts = {"host": hostname(), "job": job_here(), "python": sys.executable, "lock_seen": is_locked(folder / LOCK)}
    facts |= {"scontrol": shutil.which("scontrol") is not None}
    facts |= {"cores": len(os.sched_getaffinity(0)), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    content = os.urandom(size)
    started = time.monotonic()
    write_atomic(folder / "probe.ckpt", lambda stream: stream.write(content))
    facts["save_seconds"] = round(time.monotonic() - started, 3)
    (folder / "probe.ckpt").unlink()
    started = time.monotonic()
    import torch

    facts |= {"import_seconds": round(time.monotonic() - started, 1), "torch": torch.__version__}
    from specvit.training.device import hardware, resolve_device
    from specvit.utils.errors import ConfigError

    try:
        gpu = hardware(resolve_device("cuda"))
        facts |= {
            "gpu": f"{gpu['device']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}",
            "kernels": torch.cuda.get_arch_list(),
        }
    except ConfigError as problem:
        facts |= {"gpu": None, "gpu_fault": str(problem).removeprefix("train.device: ")}
    write_json(folder / FOUND, facts)
    return 0
