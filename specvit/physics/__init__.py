"""Stellar spectra from a physical model: labels -> clean spectrum -> pixels of the instrument and their noise.

The forward model interpolates in a grid of LTE spectra (`grid.npz`), thousands of stars per second, differentiable.
`tools/spectral_grid` in the source tree synthesises that grid.
"""
