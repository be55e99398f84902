"""specvit: experiment sweeps for 1-D Vision Transformers on stellar spectra."""

__version__ = "0.1.0"
