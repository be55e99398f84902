"""Stars made from physics: labels -> LTE atmosphere -> spectrum -> pixels of the instrument, with its noise.

A simple one-dimensional model: a grey temperature law with a cooled surface, hydrostatic pressure, H- continuum,
some 300 atomic and 150 CN lines on eleven layers. TiO and the weaker lines are left out, so the coolest stars
(T_eff < 4300 K) lack their bands.
"""
