"""LTE synthesis of cool stars' spectra, and the command that compresses them to `specvit/physics/grid.npz`."""
