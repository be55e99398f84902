"""All that only an accelerator can show, in one call of under 9 minutes: python benchmarks/gpu.py [--json FILE].

Checks first, each printed as ok or FAILED (gpu_checks.py): kernels, masks, loss scale, exact repeats and resumes for
all networks, optimizers and precisions, no hidden device sync, agreement with the CPU. Then speed (gpu_speed.py): the
same side-by-side table as `make bench` (the peer only where its packages are), the step as shipped, as one CUDA graph
and compiled, each with its share of the matrix-product peak that was measured in the same run.

The file is written after each part, so that a fault that comes late loses nothing; parts for which no time is left are
skipped. Needs torch, numpy, scipy and h5py, not Hydra, MLflow or rich. Rehearsed on a CPU by `--device cpu --small`.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import machine
import torch
from gpu_checks import Ground, all_checks
from gpu_speed import LONGEST_TABLE, peaks, rate_of, sizes, speed_table, steps_of

from specvit.training.device import fault_of, hardware

LONGEST_PART = LONGEST_TABLE + 30.0
"""Seconds; no part is begun so late that it could end after the limit."""


def main() -> int:
    """Run the checks and the timings; the exit code is the number of parts that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes and short rounds, to see that it runs through")
    parser.add_argument("--only", default="", metavar="TEXT", help="parts whose names match this pattern")
    parser.add_argument("--seconds", type=float, default=540.0, help="limit in all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    machine.set_up(device)
    facts = {**machine.facts(device), "hardware": hardware(device)}
    if device.type == "cuda":
        facts["kernels"] = torch.cuda.get_arch_list()
    print(json.dumps(facts), flush=True)
    record = Record(facts, device, options)
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(device, Path(folder), options.small)
        for name, check in all_checks(ground).items():
            record.part(name, check)
        machine.set_up(device)
        peak = record.part("matrix products", partial(peaks, ground)) or {}
        for case in sizes(ground):
            record.part(f"speed {case.name}", partial(speed_table, case, ground, peak))
        for name, (case, build) in steps_of(ground).items():
            record.part(f"speed {name}", partial(rate_of, case, build, ground, peak))
    return record.close()


class Record:
    """What was found, on file after each part."""

    def __init__(self, facts: dict[str, Any], device: torch.device, options: argparse.Namespace) -> None:
        """Nothing was tried yet."""
        self.content: dict[str, Any] = {**facts, "failed": [], "skipped": [], "parts": {}}
        self.device, self.options, self.started = device, options, time.perf_counter()

    def part(self, name: str, act: Callable[[], Any]) -> Any:
        """Try one part, and return what it found, or None."""
        began, result, good = self.seconds, None, True
        if not re.search(self.options.only, name):
            return None
        if began > self.options.seconds - LONGEST_PART:
            self.content["skipped"].append(name)
            print(f"skipped {name}: no time left", flush=True)
            return None
        try:
            result = act()
        except Exception as problem:
            traceback.print_exc()
            good, result = False, f"{type(problem).__name__}: {problem}".splitlines()[0]
            self.content["failed"].append(name)
        spent = round(self.seconds - began, 2)
        print(
            f"{'ok    ' if good else 'FAILED'} {name}  {spent} s  {'' if result is None else json.dumps(result)}",
            flush=True,
        )
        self.content["parts"][name] = {"passed": good, "seconds": spent, "found": result}
        self._write()
        if not good and (fault := fault_of(self.device)):
            print(f"the device does not work any more: {fault}")
            sys.exit(self.close())
        return result if good else None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def close(self) -> int:
        """Sum up, and return how many parts failed."""
        self.content["seconds"] = round(self.seconds, 1)
        self._write()
        failed, skipped = self.content["failed"], self.content["skipped"]
        print(f"{self.content['seconds']} s in all; failed: {failed or 'nothing'}; skipped: {skipped or 'nothing'}")
        return len(failed)

    def _write(self) -> None:
        if self.options.json:
            self.options.json.write_text(json.dumps(self.content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
