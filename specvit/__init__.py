"""specvit: experiment sweeps for 1-D Vision Transformers on stellar spectra. For use from Python: docs/api.md."""

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = ("load", "read_metrics", "read_runs", "run_study", "run_training", "SpecvitError")


def __getattr__(name: str) -> Any:
    """Import what is public where it is first used, which `import specvit` is too fast for."""
    if name in PUBLIC:
        return getattr(importlib.import_module("specvit.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is there, also what is not imported yet."""
    return sorted({*globals(), *PUBLIC})
