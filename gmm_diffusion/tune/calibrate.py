"""Tier 2: how much noise a table adds, which no regression to a coupled teacher can tell.

  (1) y_{n+1} <- y_{n+1} - (b - sqrt(b^2 - c^2)) eps_n + c z,   c = share_n b,   b = b_{n+1}

exchanges a part of the direction eps_n = (y_n - a_n m_n) / b_n for noise; the variance at the next
level stays. The shares are searched with the score of the samples. What is best for single steps,
by their energy score against the chain q, is far from best for their sequence: it adds so much
noise that few steps cannot take it back.
"""

import numpy as np

from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune.race import Candidate

MOST = 0.95  # of the noise at the next level


def stirred(table: Table, shares: np.ndarray) -> Table:
  """Equation (1), with a share [N] in [0, 1) for each step; the last has none."""
  keep, weights, std = table.keep.copy(), table.weights.copy(), table.std.copy()
  for n in range(len(keep) - 1):
    b = table.b[n + 1]
    less = b - np.sqrt(b**2 - (shares[n] * b) ** 2)
    keep[n] -= less / table.time.b[n]
    weights[n, n] += less * table.time.a[n] / table.time.b[n]
    std[n] = np.hypot(std[n], shares[n] * b)
  return table._replace(keep=keep, weights=weights, std=std)


def candidate(start: Candidate, shares: np.ndarray) -> Candidate:
  """A table with noise of the given shares [N], clipped to what can be used."""
  shares = np.append(np.clip(shares[:-1], 0, MOST), 0)
  table = stirred(start.table, shares)
  return Candidate('', (), f'noise {np.round(shares, 2).tolist()} in {start}', table, start.bands)
