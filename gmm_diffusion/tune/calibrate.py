"""Tier 2: how much noise a table adds, which no regression to a coupled teacher can tell.

  (1) y_{n+1} <- y_{n+1} - (b - sqrt(b^2 - c^2)) eps_n + c z,   c = share_n b,   b = b_{n+1}

exchanges a part of the direction eps_n = (y_n - a_n m_n) / b_n for noise; the variance at the
next level stays. `local` takes the share of each step that has the least energy score

  (2) ES = E|Y - X| - E|Y - Y'| / 2    [Gneiting & Raftery 2007],  Y, Y' draws of the step

against x_s of the chain q from items of the data, which a step's true distribution alone minimises;
with predictions that are kept, so that no call is made twice. What is best for single steps need
not be best for their sequence: `moved` proposes shares for a search with the score of the end.
"""

from collections.abc import Iterator

import numpy as np

from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune.fit import chain
from gmm_diffusion.tune.race import Candidate
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Time

SHARES = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95)


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


def _energy_score(fitted, c, goal, z):
  """(2) of draws fitted + c z against goal, rows [n, D]; z is a pair of draws."""
  one, two = fitted + c * z[0], fitted + c * z[1]
  norm = lambda x: np.sqrt(np.mean(x**2, 1)).mean()
  return (norm(one - goal) + norm(two - goal)) / 2 - norm(one - two) / 2


def local(subject: Subject, table: Table, items: np.ndarray, seed: int) -> np.ndarray:
  """Shares [N] of a table of one band with the least energy score of each step alone."""
  ids, path = np.arange(len(items)), chain(table, items, seed)
  random = np.random.Generator(np.random.SFC64(seed + 1))
  flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)
  history: list[np.ndarray] = []
  out = np.zeros(len(table.keep))
  for n in range(len(table.keep) - 1):
    time = Time(*(part[n] for part in table.time))
    history.insert(0, flat(subject.predict(path[n], time, ids)))
    z = random.standard_normal((2, *history[0].shape))

    def score(share, n=n, z=z):
      some = stirred(table._replace(std=np.zeros_like(table.std)), np.full(len(table.keep), share))
      fitted = some.keep[n, 0] * flat(path[n])
      fitted = fitted + sum(some.weights[n, n - i, 0] * m for i, m in enumerate(history))
      return _energy_score(fitted, some.std[n, 0], flat(path[n + 1]), z)

    out[n] = min(SHARES, key=score)
  return out


def candidate(start: Candidate, shares: np.ndarray, words: str) -> Candidate:
  """A table with noise of the given shares."""
  table = stirred(start.table, shares)
  return Candidate('', (), f'{words} {np.round(shares, 2).tolist()} in {start}', table, start.bands)


def moved(
  start: Candidate, shares: np.ndarray, width: float, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, Candidate]]:
  """Shares near the given ones with their tables, without end."""
  while True:
    near = np.clip(np.abs(shares + width * random.standard_normal(len(shares))), 0, 0.95)
    near[-1] = 0
    yield near, candidate(start, near, 'noise')
