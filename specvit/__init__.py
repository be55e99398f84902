"""specvit: experiment sweeps for 1-D Vision Transformers on stellar spectra."""

__version__ = "0.1.0"

NUMERICS_VERSION = 2
"""Part of every run's identity; raised when the maths or a random stream changes."""
