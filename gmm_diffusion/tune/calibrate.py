"""Tier 2: how much noise a table adds, and coefficients that no theory gives.

A regression to a coupled teacher can tell neither: it does not see what samples look like together.

  (1) y_{n+1} <- y_{n+1} - (e - sqrt(e^2 - c^2)) eps_n + c z,   c = share_n e,
      e^2 = b_{n+1}^2 - std_n^2

exchanges a part of the direction eps_n = (y_n - a_n m_n) / b_n for noise; the variance at the next
level stays. Shares and coefficients are searched with the score of the samples. What is best for
single steps, by their energy score against the chain q, is far from best for their sequence: it
adds so much noise that few steps cannot take it back.
"""

import numpy as np

from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune.race import Candidate

SHARES, MOST = 4, 0.95  # a share of noise for a move, and the largest
NEWEST = 3  # predictions whose weights are moved


def stirred(table: Table, shares: np.ndarray) -> Table:
  """Equation (1), with a share [N] in [0, 1) for each step; the last has none."""
  keep, weights, std = table.keep.copy(), table.weights.copy(), table.std.copy()
  for n in range(len(keep) - 1):
    e = np.sqrt(np.maximum(table.b[n + 1] ** 2 - std[n] ** 2, 0))
    less = e - np.sqrt(e**2 - (shares[n] * e) ** 2)
    keep[n] -= less / table.time.b[n]
    weights[n, n] += less * table.time.a[n] / table.time.b[n]
    std[n] = np.hypot(std[n], shares[n] * e)
  return table._replace(keep=keep, weights=weights, std=std)


def free_numbers(start: Candidate) -> int:
  """How many numbers `candidate` takes."""
  steps = len(start.table.keep)
  return 2 * (steps - 1) + len(_newest(steps)[0])


def candidate(start: Candidate, moves: np.ndarray) -> Candidate:
  """A table with other noise and coefficients.

  Args:
    start: of N steps.
    moves: [free_numbers(start)]. The first N - 1, times SHARES and clipped to what can be used, are
      the shares of noise of all steps but the last. `keep` of these steps is multiplied by exp of
      the next N - 1. The rest, times the a of the next level, is added to the weights of the newest
      predictions.
  """
  steps = len(start.table.keep)
  shares, factors, added = np.split(np.asarray(moves), [steps - 1, 2 * (steps - 1)])
  keep, weights = start.table.keep.copy(), start.table.weights.copy()
  keep[:-1] *= np.exp(factors)[:, None]
  rows, columns = _newest(steps)
  weights[rows, columns] += (added * start.table.a[1:][rows])[:, None]
  shares = np.append(np.clip(SHARES * shares, 0, MOST), 0)
  table = stirred(start.table._replace(keep=keep, weights=weights), shares)
  words = f'{len(moves)} numbers moved, noise {np.round(shares, 2).tolist()}, from {start}'
  return Candidate('', (), words, table, start.bands)


def _newest(steps):
  """Rows and columns of the weights of the NEWEST predictions of each step."""
  below = np.tri(steps, dtype=bool)
  return np.nonzero(below & ~np.tri(steps, k=-NEWEST, dtype=bool))
