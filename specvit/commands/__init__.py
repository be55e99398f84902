"""The commands: each module parses its command line, calls the package that does the work, and prints."""

import importlib
from types import ModuleType

COMMANDS = {
    "train": "one run: spectra -> trained model -> test score; with sweeps=NAME a study, with -m a plain grid",
    "runs": "the runs in a folder: state, scores, and the settings in which they differ",
    "sweep": "studies: list, status, table, why, diff, retry, cancel",
    "evaluate": "score a finished run again, on any file",
    "predict": "labels of your spectra (FITS, CSV, NPZ, HDF5, shards) by one run or several seeds",
    "analysis": "from finished runs: ceiling (the best that a test set allows), scaling, ablation, attention …",
    "track": "send MLflow the records that it lacks from run folders",
    "doctor": "check a configuration before a run; --against: two first steps side by side; --cluster: can jobs run",
    "data": "generate built-in spectra, inspect files, convert other formats",
    "import": "configurations, W&B sweeps and tables of runs of other programs, in our words",
    "completion": 'completion for bash, zsh or fish: eval "$(specvit completion bash)"',
}
"""Each is `main` of the module of its name here."""


def module_of(command: str) -> ModuleType:
    """Return the module of a command; `import` is a word of Python's own."""
    return importlib.import_module(f"{__name__}.{'import_' if command == 'import' else command}")
