"""The best sampler for N calls of a given denoiser.

subject.py   the denoiser: draws samples by any table, and asks it about any states
scores.py    how far samples are from a reference: energy distances in features
race.py      tier 0: all samplers on all grids
search.py    CMA-ES, and what it moves: times and ratios, or a choice for each step
fit.py       tier 1: tables in closed form, from forward calls alone
calibrate.py tier 2: how much noise, and all coefficients
descend.py   tier 3: the gradient of the energy distance through the sampling loop
"""
