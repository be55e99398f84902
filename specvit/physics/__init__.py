"""Stars made from physics: labels -> LTE atmosphere -> spectrum -> pixels of the instrument, with its noise.

Two parts. The synthesis (`synthesis.padded_flux`) solves a one-dimensional LTE atmosphere and the lines of 7087-8863
Angstrom, a tenth of a second a star; it only makes the grid of spectra that lies in the package. The forward model
(`forward.ForwardModel`, `simulator.Simulator`) interpolates in that grid, thousands of stars a second, differentiable.
"""
